#!/usr/bin/env bash
# Make .venv and install the project with all it needs; run by `make install`.
#   PYTHON3=/path/to/python3   the interpreter to build on (3.11 to 3.13); found by itself otherwise
#   TORCH=torch==2.11.0        another version of torch
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { echo "error: $*" >&2; exit 2; }

supported() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; }

find_python() {
    local each candidates=(python3.11 python3.12 python3)
    [ -z "${PYTHON3:-}" ] || candidates=("$PYTHON3")
    for each in "${candidates[@]}"; do
        if supported "$each"; then command -v "$each"; return; fi
    done
    return 1
}

# Debian keeps venv's half, ensurepip, in a package of its own.
debian_install() {
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
        fail "$1; install it with: sudo apt-get install $2"
    fi
    echo "installing $2"
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$2" >/dev/null; } ||
        fail "$1, and apt-get could not install $2; install it by hand"
}

wanted="Python 3.11, 3.12 or 3.13 is needed"
name_it="install one and name it: make install PYTHON3=/path/to/python3.11"
if [ -z "${PYTHON3:-}" ] && ! command -v python3 >/dev/null; then
    debian_install "$wanted and there is no python3" python3-venv
fi
python=$(find_python) || fail "$wanted, and ${PYTHON3:-python3} is not one; $name_it"
"$python" -c 'import ensurepip, venv' 2>/dev/null || {
    package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
    debian_install "$python cannot make virtual environments, $package is missing" "$package"
}

echo "environment: .venv on $("$python" --version)"
# An environment whose interpreter is gone (the folder was moved, Python upgraded) is made anew.
[ -x .venv/bin/python ] && .venv/bin/python -m pip --version >/dev/null 2>&1 || rm -rf .venv
[ -d .venv ] || "$python" -m venv .venv

export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore DS_BUILD_OPS=0
# By name and first, so that nothing below chooses another build of it.
.venv/bin/python -m pip install "${TORCH:-torch==2.13.0}"
.venv/bin/python -m pip install -e ".[train,data,remote,export,finetune,dev]"
# The programs of tests/peers. What else they ask for is not needed, and would change versions.
.venv/bin/python -m pip install --no-deps -r tests/peers/requirements.txt
touch .venv/.installed
echo "installed"
