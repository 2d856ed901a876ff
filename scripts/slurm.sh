#!/usr/bin/env bash
# Trains one run on several nodes of a Slurm cluster. From the checkout, after scripts/setup.sh:
#   sbatch --nodes 4 scripts/slurm.sh RUN_DIR --config RECIPE.yaml --deepspeed_config DS.json [train.py's options]
# Two minutes before the time limit the run saves and its job is queued again, until it is finished and evaluated.
# Slurm starts each rank itself: nothing stands between its signals and the ranks, and the first rank to fail
# ends those on the other nodes; then all are started again. See docs/multi_node.md and docs/endings.md.
#SBATCH --job-name=normlab
#SBATCH --output=slurm-%j.out
#SBATCH --open-mode=append
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
set -euo pipefail

if [ $# -lt 1 ] || [ -z "${SLURM_JOB_ID:-}" ]; then
    echo "error: sbatch [options] $0 RUN_DIR --config RECIPE.yaml --deepspeed_config DS.json [options of train.py]" >&2
    exit 2
fi
cd "$SLURM_SUBMIT_DIR"  # Slurm runs a copy of this file from elsewhere
export PATH="$PWD/.venv/bin:$PATH"
run_dir=$1
shift

mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
export MASTER_ADDR=${hosts[0]} MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
export LOCAL_SIZE=$SLURM_NTASKS_PER_NODE

# USR1 goes to every process of the job. Here it becomes the rank's SIGTERM; W&B's process, which SIGTERM would
# end, and the data workers ignore it. A rank that ends on its own gives its exit status.
rank='
    export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
    trap "" USR1
    python train.py "$@" &
    trap "kill -TERM $!" USR1
    trap : TERM
    while status=0; wait $! || status=$?; [ $status -gt 128 ] && kill -0 $! 2>/dev/null; do :; done
    exit $status'
status=0
python scripts/supervise.py -- srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
    bash -c "$rank" rank --run_dir "$run_dir" "$@" || status=$?

# the run's status, or its evaluation's
if [ $status -eq 75 ] || { [ $status -eq 0 ] && grep -q '"status": "interrupted"' "$run_dir/summary.json"; }; then
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
exit $status
