#!/usr/bin/env bash
# All that a machine with a GPU can prove, in ten minutes: bench/gpu.sh on a bare one, and read RESULTS.
#
#   bench/gpu.sh [--pretend] [--results FOLDER] [STAGE ...]      stages 1 to 6, all of them by default;
#                                                               in two halves: 1 2 3 4, then 5 6
#   1 set-up, make check, the tests that need a GPU              4 the exchange
#   2 the oracle: 1, 2 and 4 ranks on one GPU                    5 Amazon-670k at its true size
#   3 a local step against its bare products, by precision       6 learning curves on CIFAR-100 images
#
# Each stage writes what it prints to FOLDER/STAGE.txt as it goes and its seconds to FOLDER/seconds.txt, so a
# stage that is killed or fails loses no other. --pretend is a rehearsal: the same on the CPU, with tiny sizes.
# Without a network, put what `make wheelhouse` collected into gpu-kit/ (see INSTALL.md).
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

device=cuda results=runs/gpu stages=()
while (($#)); do
    case $1 in
        --pretend) device=cpu ;;
        --results) results=${2:?--results wants a folder} && shift ;;
        [1-6]) stages+=("$1") ;;
        *) sed -n '2,14s/^# \{0,1\}//p' "$0" && exit 2 ;;
    esac
    shift
done
((${#stages[@]})) || stages=(1 2 3 4 5 6)
mkdir -p "$results" && results=$(realpath "$results")
PATH=$PWD/.venv/bin:$PATH
export PYTHONPATH=$PWD OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_mpi_yield_when_idle=1
if [[ $device == cpu ]]; then
    tiny=(--tiny) oracle_ranks=(1 2) exchange_ranks=(2) big_ranks=(2) curve_ranks=(2) limit_s=60
    wide=("model.hidden=[64,64]") rounds=3
    made=(--train-rows 400 --test-rows 40 --features 900 --labels 1200)
    big=("model.inputs=900" "model.outputs=1200" "model.hidden=[16]" "train.rounds=2" "train.epochs=null" "data.batch_size=16")
    vgg=("model.channels=[4,4,6,5,6,5,6,7]" "model.hidden=[16,16]")
    resist=("model.channels=[4,4,8,8]" "model.sections=[1,1,5,1]" "model.min_blocks=1")
    curves=("train.epochs=0.02" "evaluate.every_epochs=0" "data.batch_size=8" "evaluate.calibration_rows=16")
    export OMP_NUM_THREADS=1
else
    tiny=() oracle_ranks=(1 2 4) exchange_ranks=(4 8) big_ranks=(4 8) curve_ranks=(2 4) limit_s=100
    wide=() rounds=20
    made=(--train-rows 60000 --test-rows 4000)
    big=("train.epochs=1")
    vgg=() resist=()
    curves=("train.epochs=4" "evaluate.every_epochs=1")
fi
np() { local ranks=$1; shift; tools/mpirun.sh --quiet -np "$ranks" "$@"; }

stage_1() {
    if [[ -d gpu-kit ]]; then
        # Horovod only if it builds within a minute; it is not what this is about
        timeout 75 make setup WHEELHOUSE=gpu-kit SYSTEM_TORCH=1 ||
            make setup WHEELHOUSE=gpu-kit SYSTEM_TORCH=1 HOROVOD=no || return
    else
        make setup || return
    fi
    make check && np 2 python bench/gpu.py check --device $device "${tiny[@]}" &&
        python -m pytest -q -p no:cacheprovider tests/runtime/test_devices.py -k TestOnAGpu
}

stage_2() {
    local ranks code=0
    for ranks in "${oracle_ranks[@]}"; do
        GPU_TESTS_ON=$device REPORT=$results/oracle-$ranks np "$ranks" tools/rank_pytest.sh -q -rP tests/mpi/test_gpu.py || code=1
    done
    return $code
}

stage_3() { python bench/gpu.py steps --device $device "${tiny[@]}"; }

stage_4() {
    local ranks
    for ranks in "${exchange_ranks[@]}"; do
        np "$ranks" python -m ist_hpc.bench exchange --config configs/speech2.yaml --rounds $rounds \
            --set device=$device "${wide[@]}" || return
    done
}

stage_5() {
    local data=$results/amazon670k-like ranks runs=()
    echo "made data of Amazon-670k's shape"
    python -m ist_hpc.prepare synthetic --like amazon670k --output "$data" --if-missing "${made[@]}" || return
    for ranks in "${big_ranks[@]}"; do
        python -m ist_hpc.plan --config configs/amazon670k.yaml --ranks "$ranks" --set data.path="$data" "${big[@]}"
        timeout --signal=USR1 --kill-after=40 $limit_s tools/mpirun.sh --quiet -np "$ranks" python -m ist_hpc.train \
            --config configs/amazon670k.yaml --runs "$results/runs" --name "amazon-n$ranks" --resume \
            --set device=$device data.path="$data" checkpoint.every_minutes=0 "${big[@]}"
        runs+=("$results/runs/amazon-n$ranks")
    done
    python bench/run_costs.py "${runs[@]}"
}

stage_6() {
    local data=data/cifar100 name settings=() methods=(ist:20)
    if [[ ! -d $data ]]; then
        data=$results/images
        if [[ -n ${CIFAR:-} ]]; then
            python -m ist_hpc.prepare cifar100 --input "$CIFAR" --output "$data" --if-missing || return
        elif [[ ! -d $data ]]; then
            echo "no data/cifar100, and CIFAR names no folder with its pickles: made images"
            python bench/gpu.py images "$data" || return
        fi
    fi
    if python -c 'import horovod' 2>/dev/null; then
        methods+=(local_sgd:20 data_parallel)
    else
        echo "no Horovod here: the baselines, which are its, are left out"
    fi
    for name in vgg11 resist; do
        settings=("${vgg[@]}")
        [[ $name == vgg11 ]] || settings=("${resist[@]}")
        python -m ist_hpc.bench convergence --config "configs/${name}_cifar100.yaml" --launcher "tools/mpirun.sh -np {ranks}" \
            --methods "${methods[@]}" --ranks "${curve_ranks[@]}" --seeds 0 --output "$results/$name" \
            --time-limit $limit_s --set device=$device data.path="$data" "${settings[@]}" "${curves[@]}" || return
    done
}

failed=()
for stage in "${stages[@]}"; do
    begin=$SECONDS
    echo "==== stage $stage"
    "stage_$stage" 2>&1 | tee "$results/$stage.txt"
    code=${PIPESTATUS[0]}
    ((code == 0)) || failed+=("$stage")
    ((code == 0)) && how="to its end" || how="failed with exit code $code"
    echo "stage $stage: $((SECONDS - begin)) s, $how" | tee -a "$results/seconds.txt"
done
((${#failed[@]} == 0)) || { echo "gpu.sh: failed: stage ${failed[*]}; see $results" >&2 && exit 1; }
