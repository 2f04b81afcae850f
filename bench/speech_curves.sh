#!/usr/bin/env bash
# Learning curves of speech2 by independent subnets on 1, 2, 4 and 8 ranks, over three speaker folds,
# each with a seed of its own. Goes on where it was stopped. Rows: runs/speech-f*-n*/metrics.jsonl.
#
#   bench/speech_curves.sh [FOLDER OF RUNS]      needs data/speech, data/speech-fold1, -fold2:
#   for k in 0 1 2; do python -m ist_hpc.prepare speech --input DIR --output ... --fold $k; done
set -euo pipefail
runs=${1:-runs}
declare -A data=([0]=data/speech [1]=data/speech-fold1 [2]=data/speech-fold2)
declare -A rounds=([1]=64 [2]=64 [4]=64 [8]=32)
for fold in 0 1 2; do
    for ranks in 1 2 4 8; do
        name=speech-f$fold-n$ranks
        if [[ $(cat "$runs/$name/STATUS" 2>/dev/null) == finished ]]; then continue; fi
        mpirun --oversubscribe --bind-to none -np "$ranks" python -m ist_hpc.train \
            --config configs/speech2.yaml --runs "$runs" --name "$name" --resume \
            --set "data.path=${data[$fold]}" "seed=$fold" "train.rounds=${rounds[$ranks]}" \
            evaluate.every_epochs=0 evaluate.every_rounds=2 checkpoint.keep=1
    done
done
