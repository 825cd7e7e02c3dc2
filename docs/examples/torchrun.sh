#!/bin/bash
# Two nodes of four GPUs: on each, MASTER=HOST_OF_THE_FIRST NODE=0_OR_1 bash docs/examples/torchrun.sh
set -euo pipefail

.venv/bin/torchrun --nnodes=2 --nproc-per-node=4 --node-rank="$NODE" --master-addr="$MASTER" --master-port=29400 \
  train.py experiment=ho2020_cifar10 trainer=ddp trainer.devices=4 trainer.num_nodes=2 resume=auto
