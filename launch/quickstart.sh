#!/usr/bin/env bash
# Set up on a fresh machine and run the main job: bash launch/quickstart.sh [--print] [bert|vit|llama] [key=value ...]
# Safe to run again: nothing is installed twice, finished stages are skipped, an interrupted one resumes.
source "$(dirname "$0")/environment.sh"
cd "$ROOT"
which="${1:-bert}"
[ -e "configs/quickstart/$which.yaml" ] || { echo "usage: bash launch/quickstart.sh [bert|vit|llama] [key=value ...]" >&2; exit 2; }
ensure_environment quickstart
start lemon run "configs/quickstart/$which.yaml" "${@:2}"
