#!/usr/bin/env bash
# VGG11 on CIFAR-100 on one small machine, at equal samples. Goes on where it was stopped.
#
#   bench/vgg_study.sh curves [FOLDER]   IST with the convolutions shared, or dealt out too (@thin), local
#                                        SGD, data parallel and one rank; three seeds
#   bench/vgg_study.sh thin [FOLDER]     what holds the thin networks back, one seed: thin networks that are
#                                        never dealt again, shorter and longer rounds, longer runs
#
# Both need data/cifar100:
#   python -m ist_hpc.prepare cifar100 --input cifar-100-python --output data/cifar100
#
# A quarter of VGG11's channels, fully connected layers of 512 and batches of 64, so that two cores can.
# The rate is the best of 0.0025, 0.01, 0.05 and 0.2 for each method on 4 ranks: docs/results.md.
set -euo pipefail
stage=${1:?a stage: curves or thin}
folder=${2:-runs/vgg-study}
read -ra seeds <<<"${SEEDS:-0 1 2}"
narrow=("model.hidden=[128,128]")
thin=("model.channels=[4,8,16,16,32,32,32,32]" "${narrow[@]}")
short=(train.epochs=5 "optimizer.decay_epochs=[3.5]" evaluate.every_epochs=1) # 782 steps on one rank

study() {
    python -m ist_hpc.bench convergence --config configs/vgg11_cifar100.yaml \
        --set "model.channels=[16,32,64,64,128,128,128,128]" "model.hidden=[512,512]" data.batch_size=64 \
        train.epochs=20 optimizer.lr=0.01 "optimizer.decay_epochs=[14]" evaluate.every_epochs=4 \
        evaluate.calibration_rows=512 checkpoint.keep=1 --time-limit 7200 "$@"
}

case $stage in
    curves)
        study --methods sgd ist:20 ist:20@thin local_sgd:20 data_parallel --ranks 2 4 \
            --seeds "${seeds[@]}" --set-for ist:20@thin model.deal_channels=true \
            --output "$folder/curves"
        ;;
    thin) # on 4 ranks a subnet is as wide as sgd@narrow, of ist:20@wide as sgd, of ist:20@thin as sgd@thin
        study --methods sgd@short sgd@narrow sgd@thin ist:5 ist:20 ist:100 ist:20@wide \
            ist:20@long ist:20@thin ist:100@thin ist:20@thin-long --ranks 4 --seeds 0 \
            --set-for sgd@short "${short[@]}" \
            --set-for sgd@narrow "${short[@]}" "${narrow[@]}" \
            --set-for sgd@thin "${short[@]}" "${thin[@]}" \
            --set-for ist:20@wide "model.hidden=[2048,2048]" \
            --set-for ist:20@long train.epochs=80 "optimizer.decay_epochs=[56]" \
            --set-for ist:20@thin model.deal_channels=true \
            --set-for ist:100@thin model.deal_channels=true \
            --set-for ist:20@thin-long model.deal_channels=true train.epochs=80 \
            "optimizer.decay_epochs=[56]" \
            --output "$folder/thin"
        ;;
    *)
        echo "vgg_study: error: $stage is no stage; curves or thin" >&2
        exit 2
        ;;
esac
