#!/usr/bin/env bash
# Checks a configuration before it is queued, then queues it: what would end a job after hours of
# waiting (a misspelt key, too little memory, shards that fewer ranks must read) ends this at once.
#
#   slurm/submit.sh [--template FILE] CONFIG [OPTIONS OF SBATCH] [-- ARGUMENTS OF TRAINING]
#
#   slurm/submit.sh configs/amazon670k.yaml
#   slurm/submit.sh configs/speech3.yaml --nodes=8 --time=01:00:00 -- --name j60 --set train.local_steps=60
#   slurm/submit.sh --template slurm/speech.sbatch my.yaml
#
# The template is the one of the configuration's name, or else slurm/speech.sbatch, which takes any.
# Account and partition come from slurm/env.sh.
set -euo pipefail

from=$PWD # which files are named relative to
cd -P "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
source slurm/job.sh
error() {
    printable "submit: error: $*" >&2
    exit 2
}

# file NAME: the file that the user means, as seen from the repository's folder.
file() {
    local name
    name=$(expanded "$1") || exit
    (cd "$from" && realpath -sm --relative-base="$root" -- "$name")
}

template=
[[ ${1:-} != --template ]] || set -- "--template=${2:-}" "${@:3}"
if [[ ${1:-} == --template=* ]]; then
    [[ $1 != --template= ]] || error "--template wants a file, such as slurm/speech.sbatch"
    template=$(file "${1#*=}")
    shift
fi
config=${1:-}
case $config in
    "" | -h | --help) sed -n '2,13s/^# \{0,1\}//p' slurm/submit.sh; exit 2 ;;
    -*) error "the configuration comes before options, as in configs/speech2.yaml --nodes=4, got $config" ;;
esac
config=$(file "$config")
shift
[[ -r $config ]] || error "no configuration $config"
options=()
while (($#)) && [[ $1 != -- ]]; do
    options+=("$1") && shift
done
[[ ${1:-} != -- ]] || shift

name=$(basename -- "$config" .yaml)
if [[ -z $template ]]; then
    case $name in
        amazon670k) template=slurm/amazon670k.sbatch ;;
        resist*) template=slurm/resist.sbatch ;;
        vgg11*) template=slurm/vgg11.sbatch ;;
        *) template=slurm/speech.sbatch ;;
    esac
fi
[[ -r $template ]] || error "no template $template"

NEEDED=(--nodes --ntasks --ntasks-per-node --cpus-per-task --mem --mem-per-cpu)
declare -A asked=() # the value of each that is given

# take WORDS...: what these options of sbatch ask for; later ones win.
take() {
    local word option value
    while (($#)); do
        word=$1 && shift
        case $word in
            -N*) option=--nodes value=${word#-N} ;;
            -n*) option=--ntasks value=${word#-n} ;;
            -c*) option=--cpus-per-task value=${word#-c} ;;
            --*=*) option=${word%%=*} value=${word#*=} ;;
            *) option=$word value= ;;
        esac
        is_needed "$option" "$word" || continue
        if [[ $word == "$option" || $word == -? ]]; then
            (($#)) || error "$word wants a value, as in $option=4"
            value=$1 && shift
        fi
        case $option in # one replaces the other
            --mem) unset "asked[--mem-per-cpu]" ;;
            --mem-per-cpu) unset "asked[--mem]" ;;
        esac
        asked[$option]=$value
    done
}

# is_needed OPTION WORD: whether the check needs it. What it would need and cannot read is an error.
is_needed() {
    local name
    case $1 in
        --mem-per-gpu) error "$2 is not understood by the check; write --mem=SIZE, of a node" ;;
        --ntasks-per-gpu) error "$2 is not understood by the check; write --ntasks-per-node=RANKS" ;;
    esac
    for name in "${NEEDED[@]}"; do
        [[ $1 != "$name" ]] || return 0
    done
    for name in "${NEEDED[@]}"; do # sbatch takes the beginning of a name, too
        [[ $1 != --?* || $name != "$1"* ]] || error "$2 is not understood by the check; write an option" \
            "in full, such as $name=..."
    done
    return 1
}

# number OPTION: its value, a whole number; empty if it is not given.
number() {
    local value=${asked[$1]-}
    case $value in
        [0-9]*-*) error "$1=$value is a range, and the check needs one number of ranks; write" \
            "$1=${value%%-*} or $1=${value##*-}" ;;
    esac
    [[ ! -v asked[$1] || $value =~ ^[1-9][0-9]{0,6}$ ]] || error "$1 wants a number from 1 on, as in" \
        "$1=4, got '$value'"
    echo "$value"
}

# bytes OPTION: its value, a size as sbatch takes it; empty if it is not given.
bytes() {
    local value=${asked[$1]-} power
    [[ -v asked[$1] ]] || return 0
    [[ ${value^^} =~ ^([0-9]{1,12})([KMGT]?)B?$ ]] || error "$1 wants a size, as in $1=16G or $1=16000M" \
        "(K, M, G or T; without a unit it is M), got '$value'"
    case ${BASH_REMATCH[2]} in K) power=10 ;; G) power=30 ;; T) power=40 ;; *) power=20 ;; esac
    echo $((10#${BASH_REMATCH[1]} << power)) # 08 would be octal
}

# Slurm takes the template's lines, then the environment, then the command line.
while read -ra words; do
    take "${words[@]:1}"
done < <(grep '^#SBATCH ' "$template")
[[ -z ${SBATCH_MEM_PER_GPU:-} ]] || error "SBATCH_MEM_PER_GPU=$SBATCH_MEM_PER_GPU is not understood by the" \
    "check; set SBATCH_MEM_PER_NODE=SIZE in its place"
take ${SBATCH_MEM_PER_NODE:+--mem="$SBATCH_MEM_PER_NODE"} \
    ${SBATCH_MEM_PER_CPU:+--mem-per-cpu="$SBATCH_MEM_PER_CPU"} "${options[@]}"

nodes=$(number --nodes)
each=$(number --ntasks-per-node)
ranks=$(number --ntasks)
cpus=$(number --cpus-per-task)
of_node=$(bytes --mem)
of_cpu=$(bytes --mem-per-cpu)
if [[ -z $ranks ]]; then
    [[ -n $nodes && -n $each ]] || error "the number of ranks is not given; write --nodes=4" \
        "--ntasks-per-node=2, or --ntasks=8"
    ranks=$((nodes * each))
fi
if [[ -n ${RANKS:-} ]]; then # the job takes it, too
    check_number RANKS "$RANKS" 1 "such as 4, the number of ranks"
    ranks=$RANKS
fi
# the most ranks of a node: Slurm gives up --ntasks-per-node where more are asked for than that makes
nodes=${nodes:-1} spread=$(((ranks + ${nodes:-1} - 1) / ${nodes:-1}))
((${each:=$spread} >= spread)) || each=$spread
((each <= ranks)) || each=$ranks

if [[ -n $of_cpu ]]; then
    limit=$((of_cpu * ${cpus:-1}))
else
    limit=$((${of_node:-0} / each)) # --mem=0: all that a node has
fi
check=()
if ((limit)); then
    check=(--memory-gb "$(LC_ALL=C awk "BEGIN {print $limit / 1e9}")")
else
    echo "submit: memory is not checked: no --mem=SIZE or --mem-per-cpu=SIZE says what a rank may have"
fi

CONFIG=
take_arguments --config --name --runs -- "$@"
[[ -z $CONFIG ]] || error "--config $CONFIG after -- and $config before it; a job trains one configuration"
use_environment
CONFIG=$config
# shellcheck disable=SC2034  # find_data reads it
run=${NAME:-} run=${run//%a/0} # as in the task 0 of an array
find_data "$@"
mapfile -t settings < <(settings_of "$@")
printable "$config on $ranks ranks, by $template, data in $DATA, $DATA_FROM:"
python -m ist_hpc.plan --config "$config" --ranks "$ranks" --check "${check[@]}" \
    --set "${settings[@]}" "$data_setting" || exit $?
# an argument, as a variable would not come through `sbatch --export=NONE`
job=("${options[@]}" "$template" --config "$config" "$@")
sbatch --test-only "${job[@]}" || error "the cluster would not take this job"
exec sbatch "${job[@]}"
