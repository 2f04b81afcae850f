#!/usr/bin/env bash
# The paper's studies on Google Speech Commands: IST, local SGD, data parallel by Horovod and PyTorch's
# DDP, on hosts with links of 1 Gbit/s. Each stage goes on where it was stopped.
#
#   bench/speech_study.sh curves  [FOLDER]    learning curves, three speaker folds, without limits of links
#   bench/speech_study.sh timing  [FOLDER]    seconds a step of speech2 on 2, 4 and 8 hosts (root only)
#   bench/speech_study.sh timing3 [FOLDER]    the same of speech3
#   bench/speech_study.sh confirm [FOLDER]    whole runs on 4 hosts, which confirm the product of the two
#
# needs data/speech, data/speech-fold1 and -fold2, and a link data/speech-fold0 to the first:
#   for k in 0 1 2; do python -m ist_hpc.prepare speech --input DIR --fold $k --output data/speech-fold$k; done
#   ln -s speech-fold0 data/speech
set -euo pipefail
stage=${1:?a stage: curves, timing, timing3 or confirm}
folder=${2:-runs/speech-study}
methods=(ist:20 local_sgd:20 data_parallel ddp)
# Of 0.01, 0.04, 0.16, 0.64 and 2.56, tried on 4 ranks and fold 0 for 320 steps: docs/results.md has what
# they gave. Where two rates were close both are run.
rates=(--set-for ist:20 optimizer.lr=0.04 --set-for local_sgd:20 optimizer.lr=0.64)
length=(train.rounds=20 evaluate.every_epochs=0 evaluate.every_rounds=2 checkpoint.keep=1)
study() { python -m ist_hpc.bench "$@"; }

case $stage in
    curves) # ddp has the curve of data_parallel: tests/mpi/test_replicas.py compares their weights
        study convergence --config configs/speech2.yaml --methods sgd ist:20 local_sgd:20 \
            data_parallel ist:20@0.64 data_parallel@0.64 sgd@0.16 --ranks 2 4 --seeds 0 1 2 \
            --set "data.path=data/speech-fold{seed}" "${length[@]}" "${rates[@]}" \
            --set-for sgd optimizer.lr=0.04 --set-for sgd@0.16 optimizer.lr=0.16 \
            --set-for data_parallel optimizer.lr=0.04 \
            --set-for data_parallel@0.64 optimizer.lr=0.64 \
            --set-for ist:20@0.64 optimizer.lr=0.64 --output "$folder/curves" --time-limit 7200
        ;;
    timing)
        # Open MPI would average by recursive doubling, which moves more over slow links than a ring
        export OMPI_MCA_coll_tuned_use_dynamic_rules=1 OMPI_MCA_coll_tuned_allreduce_algorithm=4
        study scaling --config configs/speech2.yaml --methods sgd "${methods[@]}" ist:60 local_sgd:60 \
            data_parallel:fp16 --ranks 2 4 8 --repeats 2 --steps 40 --hosts 1gbit --output "$folder/timing"
        ;;
    timing3)
        export OMPI_MCA_coll_tuned_use_dynamic_rules=1 OMPI_MCA_coll_tuned_allreduce_algorithm=4
        study scaling --config configs/speech3.yaml --methods sgd "${methods[@]}" --ranks 2 4 8 --repeats 1 \
            --steps 30 --hosts 1gbit --output "$folder/timing3" --time-limit 3600
        ;;
    confirm)
        export OMPI_MCA_coll_tuned_use_dynamic_rules=1 OMPI_MCA_coll_tuned_allreduce_algorithm=4
        study convergence --config configs/speech2.yaml --ranks 4 --seeds 0 \
            --methods ist:20 local_sgd:20 data_parallel@0.64 ddp@0.64 \
            --set "data.path=data/speech-fold{seed}" "${length[@]}" "${rates[@]}" \
            --set-for data_parallel@0.64 optimizer.lr=0.64 --set-for ddp@0.64 optimizer.lr=0.64 \
            --hosts 1gbit \
            --seconds-from "$folder/timing/scaling.csv" --output "$folder/confirm" --time-limit 7200
        ;;
    *) sed -n '2,14s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
