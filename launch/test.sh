#!/usr/bin/env bash
# Install what tests need and run them: bash launch/test.sh [pytest arguments]
source "$(dirname "$0")/environment.sh"
cd "$ROOT"
ensure_environment test
exec python -m pytest "$@"
