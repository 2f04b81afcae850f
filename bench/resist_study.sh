#!/usr/bin/env bash
# ResIST on CIFAR-100 on one small machine, at equal samples. Goes on where it was stopped.
#
#   bench/resist_study.sh rates [FOLDER]     each method on 4 ranks and one rank by learning rate, one seed,
#                                            short; one member of each ensemble, in full
#   bench/resist_study.sh curves [FOLDER]    ResIST, local SGD, data parallel on 2 and 4 ranks, and one rank;
#                                            three seeds
#   bench/resist_study.sh ensemble [FOLDER]  ensembles of 2 and 4 networks as shallow as a rank's, trained
#                                            apart for as many steps; three seeds
#
# All need data/cifar100:
#   python -m ist_hpc.prepare cifar100 --input cifar-100-python --output data/cifar100
#
# A narrow network that two cores can train, in the third section of which 12 blocks are dealt out. Momentum is
# begun anew each round by ResIST, as the authors do, and carried on by the others and by ist:20@carry.
set -euo pipefail
stage=${1:?a stage: rates, curves or ensemble}
folder=${2:-runs/resist-study}
read -ra seeds <<<"${SEEDS:-0 1 2}"
epochs=${EPOCHS:-8}
local_steps=20
rows=10000 # of the training split
LR=${LR:-0.1}

study() {
    python -m ist_hpc.bench convergence --config configs/resist_cifar100.yaml \
        --set "model.channels=[8,8,16,32]" "model.sections=[1,1,13,1]" data.batch_size=32 \
        optimizer.lr="$LR" optimizer.state=carry "optimizer.decay_epochs=[$(share 0.5),$(share 0.75)]" \
        train.epochs="$epochs" evaluate.every_epochs="$(share 0.25)" evaluate.calibration_rows=512 \
        checkpoint.keep=1 --time-limit 7200 "$@"
}

# share X [N]: X of the epochs, of the N-th part of them.
share() { python -c "print($1 * $epochs / ${2:-1})"; }

# networks N RATE SEED...: as shallow as a rank's of N, on one rank with 1/N of the epochs. Section 3 has its first
# block and those that a rank trains: 12 / 2, and min_blocks on 4 ranks.
networks() {
    local number=$1 LR=$2 every
    local -A sections=([2]="[1,1,7,1]" [4]="[1,1,5,1]")
    every=$((epochs * rows / 4 / 32 / local_steps / number)) # rounds, about as often as the others
    study --methods "sgd@member$number" --ranks 1 --seeds "${@:3}" --set "model.sections=${sections[$number]}" \
        model.min_blocks=1 train.local_steps=$local_steps train.epochs="$(share 1 "$number")" \
        "optimizer.decay_epochs=[$(share 0.5 "$number"),$(share 0.75 "$number")]" \
        evaluate.every_epochs=0 evaluate.every_rounds=$every checkpoint.every_rounds=$every \
        checkpoint.keep=100 --output "$folder/members$number-$LR"
}

# ensembles N RATE: one for each seed, of N networks.
ensembles() {
    local number=$1 rate=$2 seed at all=()
    for seed in "${seeds[@]}"; do
        for ((at = 0; at < number; at++)); do all+=($((number * seed + at))); done
    done
    networks "$number" "$rate" "${all[@]}"
    for seed in "${seeds[@]}"; do
        all=()
        for ((at = 0; at < number; at++)); do
            all+=("$folder/members$number-$rate/runs/sgd-member$number-n1-$((number * seed + at))")
        done
        python bench/ensemble.py "$folder/ensemble/ensemble-n$number-$rate-$seed" "${all[@]}"
    done
}

case $stage in
    rates)
        for LR in 0.03 0.1 0.3; do
            for number in 2 4; do networks $number $LR 0; done
        done
        epochs=3
        for LR in 0.03 0.1 0.3; do
            study --methods ist:$local_steps ist:$local_steps@reset local_sgd:$local_steps data_parallel sgd \
                --ranks 4 --seeds 0 --set-for ist:$local_steps@reset optimizer.state=reset \
                --set evaluate.every_epochs=0 --output "$folder/rates-$LR"
        done
        ;;
    curves)
        study --methods sgd ist:$local_steps local_sgd:$local_steps data_parallel ist:$local_steps@carry \
            --ranks 2 4 --seeds "${seeds[@]}" --set-for ist:$local_steps optimizer.state=reset \
            --output "$folder/curves"
        ;;
    ensemble) # of 4 at every rate, since the one member of `rates` did worst at that of the curves
        ensembles 2 0.1
        for LR in 0.1 0.03 0.3; do ensembles 4 $LR; done
        ;;
    *)
        echo "resist_study: error: $stage is no stage; rates, curves or ensemble" >&2
        exit 2
        ;;
esac
