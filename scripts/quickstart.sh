#!/usr/bin/env bash
# The main job on the embedded sample: two variants trained on two CPU ranks and evaluated, and compared.
# Run again, it reuses what is there. A first argument names another folder than runs/quickstart.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
export PATH="$PWD/.venv/bin:$PATH"
export DS_ACCELERATOR=cpu CUDA_VISIBLE_DEVICES= # two CPU ranks, also on a machine with GPUs
runs=${1:-runs/quickstart}

python -m data.sample
for variant in vanilla rmsnorm; do
    deepspeed --quiet --num_accelerators 2 train.py --config recipes/sample.yaml \
        --deepspeed_config ds_configs/zero1_bf16_cpu.json --run_dir "$runs/$variant" --model.variant "$variant"
done
python -m eval.scorecard "$runs/vanilla" "$runs/rmsnorm"
python -m eval.report "$runs/vanilla" "$runs/rmsnorm" --out "$runs/report.html"
