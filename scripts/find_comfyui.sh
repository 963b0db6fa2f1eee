#!/bin/sh
# Prints "FOLDER<tab>INTERPRETER<tab>VERSION" of the ComfyUI tree for the tests, or one line on stderr that says what is missing.
# Folder: $COMFYUI_PATH, else ~/comfy/ComfyUI.  Interpreter: $DC_COMFYUI_PYTHON, else the tree's own.
has_torch='import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)'
folder=${COMFYUI_PATH:-$HOME/comfy/ComfyUI}

complain() {
    echo "no real ComfyUI to test with: $1" >&2
    exit 1
}

[ -f "$folder/comfyui_version.py" ] || complain "$folder is not a ComfyUI tree; set COMFYUI_PATH to one (0.3.64 or later)"
for python in "$DC_COMFYUI_PYTHON" "$folder/.venv/bin/python" "$folder/venv/bin/python" \
    "$folder/.venv/Scripts/python.exe" "$folder/venv/Scripts/python.exe" "$folder/../python_embeded/python.exe"; do
    [ -n "$python" ] || continue
    if "$python" -c "$has_torch" 2>/dev/null; then
        version=$(sed -n 's/^__version__ *= *"\(.*\)"/\1/p' "$folder/comfyui_version.py")
        printf '%s\t%s\t%s\n' "$folder" "$python" "$version"
        exit 0
    fi
    [ "$python" = "$DC_COMFYUI_PYTHON" ] && complain "DC_COMFYUI_PYTHON=$python has no torch"
done
complain "$folder has no interpreter of its own with torch; set DC_COMFYUI_PYTHON to the one that runs it"
