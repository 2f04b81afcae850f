#!/usr/bin/env bash
# What bf16 gains on this CPU, and what it costs in accuracy. Goes on where it was stopped.
#
#   bench/precision.sh steps             a local step of each network, as a ratio to float32 in one run
#   bench/precision.sh accuracy [RUNS]   the digits and Delicious on 2 ranks, three seeds each; needs data/delicious
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

np() { tools/mpirun.sh --quiet -np "$@"; }
case ${1:?a stage: steps or accuracy} in
    steps)
        for config in speech2 speech3 vgg11_cifar100 resist_cifar100; do
            echo "---- $config"
            np 2 python -m ist_hpc.bench precision --config configs/$config.yaml --steps 1 --rounds 5
        done
        echo "---- amazon670k"
        np 2 python -m ist_hpc.bench precision --config configs/amazon670k.yaml --steps 1 --rounds 5
        ;;
    accuracy)
        runs=${2:-runs/precision}
        for seed in 0 1 2; do
            for precision in float32 bf16; do
                for data in digits delicious; do
                    name=$data-$precision-s$seed config=()
                    [[ $data == digits ]] || config=(--config configs/delicious.yaml)
                    [[ $(cat "$runs/$name/STATUS" 2>/dev/null) != finished ]] || continue
                    np 2 python -m ist_hpc.train "${config[@]}" --runs "$runs" --name "$name" --resume \
                        --set "seed=$seed" "train.precision=$precision" >/dev/null
                done
            done
        done
        for data in digits delicious; do
            for precision in float32 bf16; do
                echo "---- $data, $precision"
                python -m ist_hpc.plot "$runs/$data-$precision"-s? --table
            done
        done
        ;;
    *) echo "precision.sh: error: $1 is no stage; steps or accuracy" >&2 && exit 2 ;;
esac
