#!/usr/bin/env bash
# Runs the short tests that the version of torch can change with the oldest Python and torch that NormLab runs on,
# and the quickstart's training: ./scripts/test_oldest.sh [ARGUMENTS OF PYTEST]. The environment, .cache/oldest, is
# made once: torch is PyPI's build for CUDA, a download of 3 GB and 6 GB with what it needs. PYTHON names a Python 3.11.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=.cache/oldest

python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || {
    echo "error: $("$python" --version) is not the oldest Python, 3.11 (set PYTHON to one)" >&2
    exit 2
}
mkdir -p .cache
# torch 2.11 refuses the newer setuptools.
sed "s/^torch==.*/torch==2.11.0/; s/^setuptools==.*/setuptools==81.0.0/" requirements.txt > .cache/oldest.txt
PIP_NO_CACHE_DIR=1 ./scripts/setup.sh $venv .cache/oldest.txt

export PATH="$PWD/$venv/bin:$PATH"
export NORMLAB_SAMPLE_DIR="$PWD/$venv/sample" # made of the packages installed there
python -m data.sample
[ $# -gt 0 ] || set -- tests/model tests/training
python -m pytest -p no:cacheprovider -m "not slow" "$@"

# The quickstart's training, on CPU ranks also where there are GPUs.
export DS_ACCELERATOR=cpu CUDA_VISIBLE_DEVICES= WANDB_MODE=offline
run=$(mktemp -d)
trap 'rm -rf "$run"' EXIT
deepspeed --quiet --num_accelerators 2 train.py --config recipes/sample.yaml \
    --deepspeed_config ds_configs/zero1_bf16_cpu.json --run_dir "$run/vanilla"
