# Sourced by the launch scripts: one virtual environment, .venv at the root, installed once for each set of extras.
# PYTHON chooses the interpreter (3.11 or 3.12). A torch that the interpreter already has is kept: on a GPU machine,
# set LEMON_SYSTEM_SITE=1 to see the packages of that interpreter. LEMON_VENV: the folder of an environment that has the
# package already (an image's, a cluster's); nothing is installed then.
# With --print as its first argument a script prints the command that it would run, and does nothing else.
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="${LEMON_VENV:-$ROOT/.venv}"
PRINT=""
if [ "${1:-}" = --print ]; then
    PRINT=1
    shift
fi

ensure_environment() {  # extras, such as "quickstart"
    [ -z "$PRINT" ] || return 0
    [ -n "${LEMON_VENV:-}" ] || install "$1"
    export PATH="$VENV/bin:$PATH"
}

install() {  # extras
    local mark="$VENV/.installed-${1//,/-}" site=""
    [ -n "${LEMON_SYSTEM_SITE:-}" ] && site="--system-site-packages"
    exec 9>"$ROOT/.venv.lock"  # several nodes may share this folder: one installs, the others wait
    flock 9
    "$VENV/bin/python" -m pip --version >/dev/null 2>&1 || "${PYTHON:-python3}" -m venv --clear $site "$VENV"
    if [ ! -e "$mark" ] || [ "$ROOT/setup.py" -nt "$mark" ] || [ "$ROOT/constraints.txt" -nt "$mark" ]; then
        echo "installing into .venv (once, a minute or two) ..."
        "$VENV/bin/python" -m pip install --quiet -e "$ROOT[$1]" -c "$ROOT/constraints.txt"
        touch "$mark"
    fi
    exec 9>&-
}

run() {  # a command: run it, or print it
    if [ -z "$PRINT" ]; then
        "$@"
    else
        local line
        printf -v line '%q ' "$@"
        echo "${line% }"
    fi
}

start() {  # the last command of a script, which takes its place and gets its signals
    [ -n "$PRINT" ] || exec "$@"
    run "$@"
}
