#!/usr/bin/env bash
# Install what tests need and run them: bash launch/test.sh [pytest arguments]; -m long runs the long ones.
source "$(dirname "$0")/environment.sh"
ensure_environment test
exec python -m pytest "$@"
