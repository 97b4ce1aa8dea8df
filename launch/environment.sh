# Sourced by the launch scripts: one virtual environment, .venv at the root, installed once for each set of extras.
# PYTHON chooses the interpreter (3.11 or 3.12). A torch that the interpreter already has is kept: on a GPU machine,
# set LEMON_SYSTEM_SITE=1 to see the packages of that interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

ensure_environment() {  # extras, such as "quickstart,test"
    local mark=".venv/.installed-${1//,/-}" site=""
    [ -n "${LEMON_SYSTEM_SITE:-}" ] && site="--system-site-packages"
    [ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv $site .venv
    if [ ! -e "$mark" ] || [ setup.py -nt "$mark" ] || [ constraints.txt -nt "$mark" ]; then
        echo "installing into .venv (once, a minute or two) ..."
        .venv/bin/python -m pip install --quiet -e ".[$1]" -c constraints.txt
        touch "$mark"
    fi
    export PATH="$PWD/.venv/bin:$PATH"
}
