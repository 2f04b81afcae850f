# shellcheck shell=bash
# What the templates have in common; they source it, and so does submit.sh. Settings come from
# slurm/env.sh, made from env.sh.example, or from the environment, or are these:
if [[ -e slurm/env.sh ]]; then
    set +u # `module load` and conda read variables that are not set
    # shellcheck disable=SC1091  # every site has its own
    source slurm/env.sh
    set -u
fi
VENV=${VENV:-.venv} DATA_ROOT=${DATA_ROOT:-data} RUNS=${RUNS:-runs}
LAUNCHER=${LAUNCHER:-srun} MAX_REQUEUES=${MAX_REQUEUES:-20}
LEAD_TIME_S=${LEAD_TIME_S:-120} # of #SBATCH --signal in the templates
GO_ON=75                        # the exit code of a run that was asked to stop and is saved
BY_USR1=138                     # that of one which USR1 ended before it listened for it
MPIRUN_WAITS_S=25               # before it passes a SIGTERM on, and again before it kills the ranks
warned='' ended=''              # whether Slurm's warning came, or the job's end
training=''                     # the process of the launcher

# say WORDS: a line on stderr, with the time as in the lines of the package.
say() {
    echo "$(date '+%F %T') ${SLURM_JOB_NAME:-slurm}: $*" >&2
}

error() {
    say "error: $*"
    exit 2
}

# use_environment: the one that `make setup` made on PATH.
use_environment() {
    [[ -x $VENV/bin/python ]] || error "no $VENV/bin/python in $PWD; run \`make setup\` there, or set" \
        "VENV in slurm/env.sh"
    PATH=$(realpath "$VENV")/bin:$PATH
    export PATH
}

# begin: Slurm's warning, the environment, threads, file locking; prints versions.
begin() {
    # From now on, as the warning would end this shell while data are prepared. SIGTERM ends it: it comes
    # with the end of the job (scancel, time over), after which nothing is to be queued again.
    trap on_warning USR1
    use_environment
    launcher_words 1 >/dev/null # an error now, not after the data were prepared
    [[ $MAX_REQUEUES =~ ^[0-9]+$ ]] || error "MAX_REQUEUES is $MAX_REQUEUES; it may be a whole number" \
        "from 0 on, such as 20"
    [[ $LEAD_TIME_S =~ ^[0-9]+$ ]] || error "LEAD_TIME_S is $LEAD_TIME_S; it may be a whole number of" \
        "seconds, that of sbatch's --signal, such as 120"
    export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
    # srun does not take it from sbatch since Slurm 22.05. mpirun calls srun, too, for the one process that
    # starts a node's ranks: with this it would have the processors of one rank for all of them.
    [[ $LAUNCHER != srun ]] || export SRUN_CPUS_PER_TASK=$OMP_NUM_THREADS
    export HDF5_USE_FILE_LOCKING=BEST_EFFORT # some parallel file systems have no locks
    export SLURM_EXPORT_ENV=ALL              # or `sbatch --export=NONE` would hold for the ranks, too
    if [[ $LAUNCHER == srun ]]; then
        # Open MPI 4 has two fences in MPI_Init. Under Slurm 22.05 some ranks leave the second before others
        # come to it, and their first message crashes these: up to 30 % of starts (docs/reliability.md). With
        # these there is no first fence; addresses are asked for as they are needed.
        export OMPI_MCA_pmix_base_async_modex=${OMPI_MCA_pmix_base_async_modex:-1}
        export OMPI_MCA_pmix_base_collect_data=${OMPI_MCA_pmix_base_collect_data:-0}
    fi
    echo "$(date '+%F %T') job ${SLURM_JOB_ID:-none}, start $((${SLURM_RESTART_COUNT:-0} + 1))," \
        "$SLURM_NTASKS ranks on ${SLURM_JOB_NODELIST:-$(hostname)}, $OMP_NUM_THREADS thread(s) each"
    python -m ist_hpc.train --version
    "$LAUNCHER" --version | head -n 1
}

# on_warning: takes note and tells the ranks, if there are any yet. bash comes here when the command in
# the foreground has ended, so a preparation is not cut short.
on_warning() {
    warned=1
    [[ -n $training ]] || return 0
    kill -USR1 "$training" 2>/dev/null || true # it may have ended just now
    compare_lead_time
}

# compare_lead_time: says so if the warning came later than LEAD_TIME_S promised. What --signal a job has
# Slurm shows nowhere, but what is left when it comes.
compare_lead_time() {
    local shown left
    ! preempted || return 0 # its end is another one
    shown=$(SLURM_TIME_FORMAT=standard scontrol show job "$SLURM_JOB_ID" 2>/dev/null) || return 0
    [[ $shown =~ [[:space:]]EndTime=([0-9T:-]+) ]] || return 0
    left=$(($(date -d "${BASH_REMATCH[1]}" +%s) - $(date +%s)))
    if ((0 < left && left < LEAD_TIME_S - 15)); then # a busy slurmctld takes some seconds to answer
        say "warning: Slurm's warning came $left s before the end, and LEAD_TIME_S is $LEAD_TIME_S: they" \
            "must agree; write \`sbatch --signal=B:USR1@$LEAD_TIME_S\`, or SBATCH_SIGNAL in slurm/env.sh," \
            "which sbatch takes only after \`source slurm/env.sh\`"
    fi
}

# launcher_words RANKS [NODES]: what starts that many ranks, on so many nodes of the job. mpirun takes
# as many nodes as it needs.
launcher_words() {
    case $LAUNCHER in
        srun) echo srun --mpi=pmix --kill-on-bad-exit=1 ${2:+--nodes="$2"} --ntasks="$1" ;;
        mpirun)
            echo mpirun -np "$1" --bind-to none \
                -x PATH -x OMP_NUM_THREADS -x HDF5_USE_FILE_LOCKING
            ;;
        *) error "LAUNCHER is $LAUNCHER; it may be srun or mpirun" ;;
    esac
}

# settings_of ARGS...: what stands after --set in arguments of the training command, a line each.
settings_of() {
    local word taking=
    for word; do
        case $word in
            --set) taking=1 ;;
            --set=*)
                printf '%s\n' "${word#--set=}"
                taking=
                ;;
            -*) taking= ;;
            *) [[ -z $taking ]] || printf '%s\n' "$word" ;;
        esac
    done
}

# take_arguments OPTIONS... -- ARGS...: takes these options out of the arguments of the training command:
# --config into CONFIG and so on, in place of what is there. The other arguments are left in `arguments`.
# So data, plan and the run's name are those of what is trained.
take_arguments() {
    local option value
    local -a taken=()
    while [[ $1 != -- ]]; do
        taken+=("$1") && shift
    done
    shift
    arguments=()
    while (($#)); do
        for option in "${taken[@]}" --set; do
            # argparse takes the beginning of a name, too, which would pass unseen here
            [[ ${1%%=*} != --?* || $option != "${1%%=*}"?* ]] || error "${1%%=*} is not understood by the" \
                "templates; write $option in full"
        done
        option=${1%%=*}
        if [[ $option != --?* || " ${taken[*]} " != *" $option "* ]]; then
            arguments+=("$1") && shift
            continue
        fi
        if [[ $1 == *=* ]]; then
            value=${1#*=} && shift
        else
            value=${2:-} && shift "$(($# > 1 ? 2 : 1))"
        fi
        [[ -n $value && $value != -* ]] || error "$option wants a value, as in $option=VALUE, got '$value'"
        option=${option#--}
        printf -v "${option^^}" %s "$value"
    done
}

READ_DATA_PATH='
import sys
from pathlib import Path
from ist_hpc import config
from ist_hpc.errors import InputError
try:
    print(config.load(Path(sys.argv[1]), sys.argv[2:]).data.path)
except InputError as error:
    print(error)
    sys.exit(2)'

# find_data ARGS...: sets DATA to the folder of the shards. It is what the arguments of the training
# command set, else DATA, else the data.path of CONFIG, whose data/ stands for DATA_ROOT. DATA_FROM says
# which, for messages: a site may define DATA for something else.
find_data() {
    local path=${DATA:-} setting settings
    DATA_FROM="the value of DATA, a variable of your environment or of slurm/env.sh"
    mapfile -t settings < <(settings_of "$@")
    for setting in "${settings[@]}"; do
        [[ $setting != data.path=* ]] || { path=${setting#*=} && DATA_FROM="which --set data.path says"; }
    done
    if [[ -z $path ]]; then
        DATA_FROM="the data of $CONFIG"
        path=$(python -c "$READ_DATA_PATH" "$CONFIG" "${settings[@]}") || error "$path"
        [[ $path != data/* ]] || path=$DATA_ROOT/${path#data/}
    fi
    DATA=$path
}

# to_prepare NAMES: whether there are no shards in DATA. A template makes only those of configurations of
# these names (a pattern): it knows no source of other data.
to_prepare() {
    [[ ! -e $DATA/meta.json ]] || return 1
    # shellcheck disable=SC2053  # a pattern
    [[ $(basename "$CONFIG" .yaml) == $1 ]] || error "no shards in $DATA, $DATA_FROM, and this template" \
        "makes only those of configurations named $1.yaml, not of $CONFIG; make them by \`python -m" \
        "ist_hpc.prepare\`, or set DATA, or DATA_ROOT in slurm/env.sh, to where they are"
}

# plan ARGS...: prints what the run will need; ARGS are those of the training command.
plan() {
    local settings
    mapfile -t settings < <(settings_of "$@")
    echo "$CONFIG, run $RUNS/$NAME, data in $DATA, $DATA_FROM"
    python -m ist_hpc.plan --config "$CONFIG" --ranks "$RANKS" --set "${settings[@]}"
}

# train ARGS...: all ranks. The warning before the time is over reaches them; a run that is saved then
# is queued again. A rank that fails ends the others.
train() {
    local words launch code folder=$RUNS/$NAME
    if [[ $warned ]]; then # too little time is left to train
        queue_again "$folder" "the time is over before training began"
        return "$GO_ON"
    fi
    words=$(launcher_words "$RANKS")
    read -ra launch <<<"$words"
    if [[ $LAUNCHER == mpirun ]]; then
        # By default ranks have one second from a SIGTERM to mpirun, which loses what they are saving. It
        # waits the whole time also where a rank failed, twice: that must stay below a minute.
        launch+=(--mca odls_base_sigkill_timeout "$MPIRUN_WAITS_S")
        # The first node's ranks are in the batch step, and Slurm kills what is left of it when this shell
        # ends: scancel, which sends SIGTERM to all of them, must not end it before the ranks have saved.
        trap 'ended=1' TERM
    fi
    # the user's own settings come later and win
    "${launch[@]}" python -m ist_hpc.train --set "runtime.lead_time_s=$LEAD_TIME_S" "$@" &
    training=$!
    [[ -z $warned ]] || kill -USR1 "$training" 2>/dev/null || true # it came in between
    # A `wait` that a signal interrupts may lose the exit code: it is asked for when there is one.
    # mpirun stays twice MPIRUN_WAITS_S after ranks that ended with any code but 0, which may be too long for
    # a job whose time is over.
    while kill -0 "$training" 2>/dev/null && ! { [[ $LAUNCHER == mpirun ]] && is_saved "$folder"; }; do
        sleep 1 || true
    done
    code=$GO_ON
    if ! kill -0 "$training" 2>/dev/null; then
        code=0
        wait "$training" || code=$?
        ((code == 2)) || ! is_saved "$folder" || code=$GO_ON # even if MPI came to no end of its own
    fi
    training=''
    trap - TERM
    [[ -z $ended ]] || return "$code"
    case $code in
        0) rm -f "$folder/requeues" 2>/dev/null || true ;; # of no use any more; the run is finished
        "$GO_ON") queue_again "$folder" "the time is over and the run saved" ;;
        "$BY_USR1") queue_again "$folder" "the time is over before training began" ;;
    esac
    return "$code"
}

# is_saved FOLDER: whether the run in it was warned and says that it stopped, which it does when it is saved. A
# start that has not said that it starts has nothing to save.
is_saved() {
    [[ $warned && -r $1/STATUS && $(<"$1/STATUS") == stopped:* ]]
}

# queue_again FOLDER WHY: requeues a job that Slurm warned or preempted. The run in this folder counts
# how often its time was over, which has a limit; preemptions and lost nodes are not counted.
queue_again() {
    local folder=$1 why=$2 job='' times=0
    if preempted; then
        why="the job was preempted"
    elif [[ -z $warned ]]; then
        return # somebody asked the ranks to stop
    else
        # another job's count is over: the same sbatch line begins anew
        [[ ! -e $folder/requeues ]] || read -r job times <"$folder/requeues" || true
        [[ $job == "$SLURM_JOB_ID" && $times =~ ^[0-9]+$ ]] || times=0
        if ((times >= MAX_REQUEUES)); then
            say "queued again $times times already (MAX_REQUEUES); the same sbatch line goes on"
            return
        fi
        # braces: bash itself says what cannot be opened
        if ! { mkdir -p "$folder" && echo "$SLURM_JOB_ID $((times + 1))" >"$folder/requeues.new" &&
            mv "$folder/requeues.new" "$folder/requeues"; } 2>/dev/null; then
            say "error: $why, but how often it was cannot be written to $folder/requeues, so the job is not" \
                "queued again; see to space, quota and rights there, then the same sbatch line goes on"
            return
        fi
    fi
    echo "$(date '+%F %T') $why; queued again"
    # Incomplete: Slurm would start even a job again that was cancelled in the meantime
    scontrol requeue Incomplete "$SLURM_JOB_ID" ||
        say "error: scontrol could not queue the job again; the same sbatch line goes on"
}

# preempted: whether the job is to make room for another. Its ranks then get SIGTERM, as they do from
# scancel, but it still runs. A time before this start would be that of an earlier one.
preempted() {
    local shown times='[[:space:]]StartTime=([0-9T:-]+).*[[:space:]]PreemptTime=([0-9T:-]+)'
    shown=$(SLURM_TIME_FORMAT=standard scontrol show job "$SLURM_JOB_ID" 2>/dev/null) || return 1
    [[ $shown =~ JobState=RUNNING.*$times && ! ${BASH_REMATCH[2]} < ${BASH_REMATCH[1]} ]]
}
