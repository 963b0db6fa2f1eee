#!/bin/sh
# Prints a Python that can run and make the environment, or one line on stderr that says what this system lacks.
# First $PYTHON, when set; else the environment's own; else the first of python3, python3.13 ... python3.10 that fits.
fits='import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))'

complain() {
    echo "$1" >&2
    exit 1
}

if [ -z "$PYTHON" ] && .venv/bin/python -c "$fits" 2>/dev/null && .venv/bin/python -c 'import pip' 2>/dev/null; then
    echo .venv/bin/python
    exit 0
fi

found='' without_venv=''
for name in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.10}; do
    path=$(command -v "$name") || continue
    "$path" -c 'import sys' 2>/dev/null || continue   # the shim of a version manager may have nothing behind it
    found=$("$path" -c 'import platform; print(platform.python_version())')
    "$path" -c "$fits" || continue
    if "$path" -c 'import ensurepip, venv' 2>/dev/null; then
        echo "$path"
        exit 0
    fi
    without_venv=$path
done

if [ -n "$without_venv" ]; then
    package=$("$without_venv" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
    complain "$without_venv cannot make virtual environments; install its venv module (Debian, Ubuntu: apt-get install $package)"
elif [ -n "$PYTHON" ]; then
    state="does not run"
    [ -n "$found" ] && state="is Python $found"
    complain "PYTHON=$PYTHON $state; name one of 3.10 to 3.13, or leave PYTHON out"
elif [ -n "$found" ]; then
    complain "Python 3.10 to 3.13 is needed, this system has $found; install one or name it: make PYTHON=/path/to/python3.12"
fi
complain "Python 3.10 to 3.13 is needed; install it (Debian, Ubuntu: apt-get install python3 python3-venv)"
