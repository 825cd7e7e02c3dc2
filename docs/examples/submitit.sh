#!/bin/bash
# A sweep as an array of SLURM jobs, of one node of four GPUs each, from a login node: bash docs/examples/submitit.sh
set -euo pipefail

export SUBMITIT_PREEMPT_SIGNAL=USR1 # which a run answers by saving and being queued again
.venv/bin/python train.py -m experiment=ho2020_cifar10 schedule=linear,cosine seed=0,1,2 name=schedules resume=auto \
  trainer=ddp trainer.devices=4 \
  hydra/launcher=submitit_slurm hydra.launcher.timeout_min=1440 hydra.launcher.signal_delay_s=180 \
  hydra.launcher.nodes=1 hydra.launcher.tasks_per_node=4 hydra.launcher.gpus_per_node=4 \
  hydra.launcher.cpus_per_task=8 hydra.launcher.array_parallelism=3
