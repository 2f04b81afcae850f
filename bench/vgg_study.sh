#!/usr/bin/env bash
# Learning curves of VGG11 on CIFAR-100 on one small machine: IST with the convolutions shared and dealt
# out (@thin), local SGD, data parallel and one rank, at equal samples. Goes on where it was stopped.
#
#   bench/vgg_study.sh [FOLDER]     needs data/cifar100:
#   python -m ist_hpc.prepare cifar100 --input cifar-100-python --output data/cifar100
#
# A quarter of VGG11's channels, fully connected layers of 512 and batches of 64, so that two cores can.
# The rate is the best of 0.0025, 0.01, 0.05 and 0.2 for each method on 4 ranks: docs/results.md.
set -euo pipefail
folder=${1:-runs/vgg-study}
read -ra seeds <<<"${SEEDS:-0 1 2}"
python -m ist_hpc.bench convergence --config configs/vgg11_cifar100.yaml \
    --methods sgd ist:20 ist:5 ist:20@thin local_sgd:20 data_parallel --ranks 2 4 --seeds "${seeds[@]}" \
    --set "model.channels=[16,32,64,64,128,128,128,128]" "model.hidden=[512,512]" data.batch_size=64 \
    train.epochs=20 optimizer.lr=0.01 "optimizer.decay_epochs=[14]" evaluate.every_epochs=4 \
    evaluate.calibration_rows=512 checkpoint.keep=1 --set-for ist:20@thin model.deal_channels=true --output "$folder" --time-limit 7200
