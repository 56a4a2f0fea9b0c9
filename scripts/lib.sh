# Sourced by scripts/search and scripts/test. `ready base|dev` returns at once when .venv is up to date with
# pyproject.toml and this checkout, and sets it up otherwise.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)

fingerprint() {
    local sum
    sum=$(sha256sum < "$1" 2>/dev/null) || sum=$(shasum -a 256 < "$1" 2>/dev/null) || sum=$(cksum < "$1")
    sum=${sum%%-*}
    echo "${sum// /}"
}

find_python() {
    local candidate found
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.14 python3.13 python3.12 python3.11 python; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    found=$(python3 --version 2>/dev/null) || found="no python3 at all"
    echo "tailorbird: no Python 3.11 or newer was found ($found);" \
        "install one, or name it: PYTHON=/path/to/python3 $0" >&2
    return 1
}

ready() {
    local kind=$1 stamp python have=
    stamp="$(fingerprint "$root/pyproject.toml") $root"
    if [[ -x $root/.venv/bin/python && -f $root/.venv/.stamp-$kind ]]; then
        read -r have < "$root/.venv/.stamp-$kind" || true
    fi
    [[ $have == "$stamp" ]] && return
    python=$(find_python) || exit 1
    "$python" "$root/scripts/setup.py" "$stamp" "$kind" || exit
}
