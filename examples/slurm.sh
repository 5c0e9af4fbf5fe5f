#!/usr/bin/env bash
# Stages 4 and 5 on several nodes of a Slurm cluster:
#
#   sbatch --nodes=2 examples/slurm.sh --model Qwen/Qwen3.5-2B
#
# What stands after the script's name goes to train_cppo.py. The repository and runs/ must be on a
# file system that all nodes see. Weights are sharded within a node and copied between nodes
# (grpo.mesh_of_ranks), so one node must hold the model: `python -m lib.memory` says whether it does.
# SIGTERM comes ten minutes before the end of the time: the run saves a checkpoint, and the same
# command goes on from there.
#SBATCH --job-name=cppo
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=112
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@600
#SBATCH --requeue
set -euo pipefail
cd "$SLURM_SUBMIT_DIR"

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
srun torchrun --nnodes="$SLURM_NNODES" --nproc_per_node="${GPUS:-8}" --shutdown-timeout 600 \
  --rdzv_id="$SLURM_JOB_ID" --rdzv_backend=c10d --rdzv_endpoint="${nodes[0]}:${PORT:-29500}" \
  train_cppo.py "$@"
