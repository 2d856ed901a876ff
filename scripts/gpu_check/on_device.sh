#!/usr/bin/env bash
# Checks and measures NormLab on a machine with a GPU and without a network (docs/gpu.md). Run it in the root of the
# checkout, whose .gpu_kit was filled by scripts/gpu_check/prepare.sh:
#
#   bash .gpu_kit/on_device.sh                # first: install imports docmask probe small eval medium
#   bash .gpu_kit/on_device.sh bench tests    # any parts, in this order
#
# Parts:
#   install   versions, the GPU                     imports   everything that is imported late
#   docmask   small with data.document_mask         probe     the step's pieces, each by itself
#   small     GPT-2 small, pre-flight included, at each of $SMALL
#   eval      a checkpoint of `small`, in fp32 on the GPU
#   medium    GPT-2 Medium at each of $MEDIUM       bench     scripts/bench_engine.py at GPT-2 Medium's size
#   launcher  small under `deepspeed`, 3 steps      profile   --profile of GPT-2 Medium
#   tests     the tests that a GPU changes          designs   scripts/bench_designs.py at GPT-2 small's size
# A part that fails does not keep the next from running; the exit status is 1 where one failed. Logs are packed all
# the while, so that they are there too where something ends the whole of it.
#
# Settings, from the environment: SMALL and MEDIUM (micro-batches), STEPS, ACCUMULATION, EXTRA (options of train.py),
# PROBE, BENCH, DESIGNS, TESTS (arguments of these parts), PATIENCE (all time limits times this), KIT, SCRATCH (packages, runs,
# logs), OUT (gets logs.tar.gz, every PACK_S seconds). DEVICE=cpu with a tiny EXTRA is a rehearsal on a machine without a GPU.
set -uo pipefail
kit=${KIT:-.gpu_kit}
scratch=${SCRATCH:-.cache/gpu_check}
runs=$scratch/runs logs=$scratch/logs site=$scratch/site out=${OUT:-$scratch}
read -ra small <<< "${SMALL:-8 24}"
read -ra medium <<< "${MEDIUM:-24 48}"
read -ra extra <<< "${EXTRA:-}"
read -ra probe <<< "${PROBE:-}"
read -ra bench <<< "${BENCH:---n_layer 24 --n_head 16 --n_embd 1024 --block_size 1024 --micro_batches 24 48}"
read -ra designs <<< "${DESIGNS:-}"
read -ra tests <<< "${TESTS:-tests/model/test_document_mask.py tests/model/test_loss.py}"
steps=${STEPS:-20} accumulation=${ACCUMULATION:-4} patience=${PATIENCE:-1}
launcher=(python3) one_rank=(--num_gpus 1)
began=$SECONDS failed=()

stage() { # NAME SECONDS COMMAND...: run the command within its limit, log it, say how it ended
    local name=$1 seconds=$(($2 * patience)) started=$SECONDS status=0
    shift 2
    echo "=== $name (at $((SECONDS - began)) s)"
    timeout -k 5 "$seconds" "$@" > "$logs/$name.log" 2>&1 || status=$?
    echo "--- $name: exit status $status, $((SECONDS - started)) s"
    [ "$status" = 0 ] || failed+=("$name")
    pack
}
pack() { # all logs, and what each run says of itself, in one file, which is whole at any time
    local said=()
    mapfile -t said < <(cd "$scratch" && ls -d runs/*/{metrics.jsonl,summary.json,environment.json,preflight.json} 2> /dev/null)
    # tar says 1 where a file grew as it was read
    tar -czf "$out/.logs.$BASHPID" -C "$scratch" logs "${said[@]}" 2> /dev/null || [ $? = 1 ] &&
        mv "$out/.logs.$BASHPID" "$out/logs.tar.gz"
}
train() { # NAME PRESET MICRO_BATCH STEPS [OPTION...]: one run, and what it says of itself
    rm -rf "${runs:?}/$1" # of a call before this one, which would be taken as finished
    stage "$1" 120 "${launcher[@]}" train.py --config recipes/sample.yaml --deepspeed_config ds_configs/zero1_bf16.json \
        --run_dir "$runs/$1" --model.preset "$2" --model.block_size 1024 \
        --data.validation_tokens 65536 --data.workers 2 --data.lanes 8 \
        --ds.train_micro_batch_size_per_gpu "$3" --ds.train_batch_size $(($3 * accumulation)) \
        --train.steps "$4" --train.val_every "$4" --train.checkpoint_every 100000 --schedule.warmup 2 \
        --eval.after_training false \
        "${extra[@]}" "${@:5}"
    grep -aE "pre-flight|torch.compile|has no effect|rror" "$logs/$1.log" | cut -c 1-300 | head -n 8
    python3 scripts/gpu_check/facts.py run "$runs/$1"
}

part_install() {
    python3 scripts/gpu_check/facts.py machine
    nvidia-smi --query-gpu=name,memory.total,clocks.sm,clocks.max.sm,power.limit,driver_version --format=csv,noheader
    command -v nvcc g++ ninja | tr '\n' ' '
    echo
} 2> /dev/null
part_imports() {
    stage imports 90 python3 -X faulthandler -c "
import deepspeed, datasets, lm_eval, tiktoken, transformers
import train, eval.__main__, eval.jobs, eval.scoring.lm, eval.report, eval.scorecard, training.engine.build
from deepspeed.accelerator import get_accelerator
print('DeepSpeed', deepspeed.__version__, 'on', get_accelerator().device_name(), get_accelerator().communication_backend_name())"
    tail -n 3 "$logs/imports.log"
    # What a start imports before its first step, in seconds by package.
    stage import_times 60 python3 -X importtime -c "import training; training.load_libraries(True)"
    grep -a '^import time:' "$logs/import_times.log" | awk -F '[:|]' '
        $2 > 0 { split($4, name, "."); gsub(/ /, "", name[1]); of[name[1]] += $2; all += $2 }
        END { for (n in of) if (of[n] > all / 50) printf "%6.2f s  %s\n", of[n] / 1e6, n; printf "%6.2f s  all\n", all / 1e6 }' | sort -n
}
part_docmask() {
    train docmask gpt2_small "${small[0]}" 8 --skip_preflight --data.document_mask true
}
part_probe() {
    stage probe 200 python3 scripts/gpu_check/probe.py --json "$logs/probe.json" "${probe[@]}"
    grep -v '^compile' "$logs/probe.log" | tail -n 60
}
part_small() {
    local micro
    for micro in "${small[@]}"; do train "small_$micro" gpt2_small "$micro" "$steps"; done
}
part_eval() {
    stage eval 90 python3 -m eval "$runs/small_${small[0]}" --tasks sample_documents,sample_lastword --limit 100
    tail -n 8 "$logs/eval.log"
}
part_medium() {
    local micro
    for micro in "${medium[@]}"; do train "medium_$micro" gpt2_medium "$micro" "$steps" --skip_preflight; done
}
part_bench() {
    stage bench 240 python3 scripts/bench_engine.py --ranks 1 --rounds 1 --steps 3 --accumulation 2 --json "$logs/bench.json" \
        "${bench[@]}" --only "bare loop without DeepSpeed" "nanoGPT's loop" "DDP bf16 autocast, model compiled"
    tail -n 40 "$logs/bench.log"
}
part_launcher() {
    local launcher=(deepspeed "${one_rank[@]}")
    train launcher gpt2_small "${small[0]}" 3 --skip_preflight
}
part_profile() {
    local name=profile_${medium[0]}
    train "$name" gpt2_medium "${medium[0]}" 6 --skip_preflight --train.profile_steps "[4, 5]"
    sed -n '/ms per step/,+11p' "$logs/$name.log"
    gzip -c "$runs/$name/profile/trace_rank0.json" > "$out/trace_rank0.json.gz"
}
part_tests() {
    local pytest=(python3 -m pytest -q -o "addopts=--import-mode=importlib" -p no:cacheprovider) marked=()
    # Not all files, of which some import what this machine lacks.
    mapfile -t marked < <(grep -rl --include="test_*.py" "mark\.gpu" tests)
    stage gpu_tests 150 "${pytest[@]}" -m gpu "${marked[@]}"
    tail -n 12 "$logs/gpu_tests.log"
    stage tests 120 "${pytest[@]}" -m "not gpu" "${tests[@]}"
    tail -n 12 "$logs/tests.log"
}
part_designs() { # what is measured when its limit ends is kept, and gone on with by the next call
    stage designs 500 python3 scripts/bench_designs.py --json "$logs/designs.json" "${designs[@]}"
    grep "^|" "$logs/designs.log"
}

parts=${*:-first}
parts=${parts/first/install imports docmask probe small eval medium}
for part in $parts; do
    declare -F "part_$part" > /dev/null || {
        echo "error: '$part' is no part; there are: first $(declare -F | sed -n 's/^declare -f part_//p' | tr '\n' ' ')" >&2
        exit 2
    }
done
[ -f train.py ] && [ -d "$kit/wheels" ] || {
    echo "error: run this in the root of a checkout with the kit of scripts/gpu_check/prepare.sh in $kit" >&2
    exit 2
}
mkdir -p "$out" "$runs" "$logs"
if [ ! -f "$site/.complete" ]; then
    started=$SECONDS
    python3 -m pip install -q --disable-pip-version-check --no-index --no-deps --no-compile --no-cache-dir --upgrade \
        --target "$site" "$kit"/wheels/*.whl || exit 1
    touch "$site/.complete"
    echo "wheels installed in $((SECONDS - started)) s"
fi
site=$(cd "$site" && pwd)
export PYTHONPATH=$PWD:$site${PYTHONPATH:+:$PYTHONPATH} PATH=$site/bin:$PATH NORMLAB_SAMPLE_DIR
NORMLAB_SAMPLE_DIR=$(cd "$kit/sample" && pwd)
export PYTHONUNBUFFERED=1 WANDB_MODE=disabled HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
export PYTORCH_ALLOC_CONF=${PYTORCH_ALLOC_CONF:-expandable_segments:True}
if [ "${DEVICE:-cuda}" = cpu ]; then
    export DS_ACCELERATOR=cpu CUDA_VISIBLE_DEVICES=
    export NORMLAB_GPU_TESTS=cpu
    one_rank=(--num_accelerators 1) probe+=(--device cpu) designs+=(--device cpu)
fi

while sleep "${PACK_S:-20}"; do pack; done > /dev/null 2>&1 &
trap "kill $!" EXIT
for part in $parts; do "part_$part"; done
echo "=== all of it: $((SECONDS - began)) s; logs in $out/logs.tar.gz"
[ ${#failed[@]} = 0 ] || {
    echo "failed: ${failed[*]}"
    exit 1
}
