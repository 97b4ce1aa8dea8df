#!/usr/bin/env bash
# Run a config on this machine, on all GPUs or as CPU processes: bash launch/local.sh [--print] CONFIG [key=value ...]
# The number of workers is the config's `processes` (auto: one per GPU, else 2), e.g. processes=4.
source "$(dirname "$0")/environment.sh"
[ $# -ge 1 ] || { echo "usage: bash launch/local.sh [--print] CONFIG [key=value ...]" >&2; exit 2; }
ensure_environment quickstart
start lemon run "$@"
