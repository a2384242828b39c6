#!/usr/bin/env bash
# A training run on a SLURM cluster of GPU nodes. Not run by this project yet.
#
#   sbatch --nodes 4 launch/slurm.sh configs/dit_xl_imagenet256.py --run.dir /shared/runs/dit_xl \
#       --data.path /shared/imagenet256_latents --parallel.fsdp 8
#
# It is sent from the repository's root, whose .venv the nodes see (`pip install -e ".[cuda]"`). Run
# folder and data lie where all nodes see them. JAX finds the other tasks by SLURM's variables.
#SBATCH --job-name=dit_jax
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
# Two minutes before its time is over, every task gets SIGTERM, and saves. A job that is preempted,
# or loses a node, is queued again by itself; one whose time is over is sent again by hand (or chained
# with --dependency=singleton). Either way the same command resumes.
#SBATCH --signal=TERM@120
#SBATCH --requeue
set -euo pipefail

if [ $# -eq 0 ]; then
  echo "usage: sbatch [--nodes N] launch/slurm.sh CONFIG [--option value ...]" >&2
  exit 2
fi
# One task a GPU. `exec`, so that signals reach the tasks by srun itself.
exec srun --kill-on-bad-exit=1 .venv/bin/python train.py "$@"
