#!/usr/bin/env bash
# Install what tests need and run them, in a process for each CPU: bash launch/test.sh [pytest arguments]
source "$(dirname "$0")/environment.sh"
cd "$ROOT"
ensure_environment test
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"  # tiny tensors: threads would only wait for each other
start python -m pytest -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder "$@"
