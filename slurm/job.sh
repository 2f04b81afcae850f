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
PATHS=(VENV DATA_ROOT RUNS CONFIG DATA TEXT IMAGES RECORDINGS) # the settings that are paths
warned='' ended=''              # whether Slurm's warning came, or the job's end
child=''                        # the process that is waited for: a preparation, or the launcher
TASK=''                         # the job's number in its array, if it is in one
run=''                          # the run's name, if a run is trained

# printable WORDS: one line that any terminal and log can have; other characters as \x1b.
printable() {
    local text=$* shown='' character i
    { local LC_ALL=C.UTF-8; } 2>/dev/null # bash would say that there is none
    for ((i = 0; i < ${#text}; i++)); do
        if [[ ${text:i} != *[![:print:]]* ]]; then
            shown+=${text:i}
            break
        fi
        character=${text:i:1}
        [[ $character == [[:print:]] ]] || character=$(bytes_of "$character")
        shown+=$character
    done
    printf '%s\n' "$shown"
}

# bytes_of TEXT: each as \x1b.
bytes_of() {
    local LC_ALL=C i code
    for ((i = 0; i < ${#1}; i++)); do
        printf -v code %d "'${1:i:1}"
        printf '\\x%02x' "$((code & 255))"
    done
}

# say WORDS: a line on stderr, with the time as in the lines of the package.
say() {
    printable "$(date '+%F %T') ${SLURM_JOB_NAME:-slurm}: $*" >&2
}

error() {
    say "error: $*"
    exit 2
}

# check_number NAME VALUE LEAST WORDS...: an error unless the value of this name is a whole number from LEAST on,
# written so that bash takes it for no other; WORDS say what it is.
check_number() {
    if [[ ! $2 =~ ^(0|[1-9][0-9]{0,8})$ ]] || (($2 < $3)); then
        error "$1 is $2; it may be a whole number from $3 on, ${*:4}"
    fi
}

# expanded PATH: with ~ and ~name at its beginning as the shell reads them, which it does neither after an
# equals sign nor in quotes.
expanded() {
    local word=${1%%/*} home
    home=$word
    # bash leaves a home that it cannot find as it is; ~+ and ~1 are no homes
    [[ ! $word =~ ^~([A-Za-z_][A-Za-z0-9_.-]*)?$ ]] || eval "home=$word"
    [[ $home != "~"* ]] || error "$1: the home folder $word cannot be found; write the path in full, or" \
        "./$1 for a name that begins with ~"
    printf '%s\n' "$home${1#"$word"}"
}

# expand_paths: passes all settings that are paths through the above.
expand_paths() {
    local name path
    for name in "${PATHS[@]}"; do
        [[ -n ${!name:-} ]] || continue
        path=$(expanded "${!name}") || exit
        printf -v "$name" %s "$path"
    done
}

# use_environment: the one that `make setup` made on PATH.
use_environment() {
    [[ -x $VENV/bin/python ]] || error "no $VENV/bin/python, as seen from $PWD; \`make setup\` there makes" \
        ".venv, which is VENV unless slurm/env.sh or your environment sets another"
    PATH=$(realpath -- "$VENV")/bin:$PATH
    export PATH
}

# find_task: sets TASK. A job that an array's task submitted has the array's variables, too, so Slurm is asked
# whose they are; where it gives no answer they are believed.
find_task() {
    local array=${SLURM_ARRAY_JOB_ID:-} task=${SLURM_ARRAY_TASK_ID:-} job=${SLURM_JOB_ID:-} shown
    [[ -n $array && -n $task && -n $job ]] || return 0
    check_number SLURM_ARRAY_TASK_ID "$task" 0 "such as 2, the job's number in its array"
    shown=$(scontrol show job "${array}_$task" 2>&1) || true
    if [[ $shown != *"Invalid job id"* && (! $shown =~ ^JobId=([0-9]+) || ${BASH_REMATCH[1]} == "$job") ]]; then
        TASK=$task
    fi
}

# job_id: the job as scontrol names it, and no other; empty outside of Slurm. In an array one task has the
# array's own number as SLURM_JOB_ID, by which scontrol would take all of them.
job_id() {
    if [[ -n $TASK ]]; then
        echo "${SLURM_ARRAY_JOB_ID}_$TASK"
    else
        echo "${SLURM_JOB_ID:-}"
    fi
}

# count_ranks OF: sets RANKS. OF an element it is the number in the array, else RANKS; of the tasks it is
# RANKS, else what the job was given: `salloc` without --ntasks and some sites set only some of these.
count_ranks() {
    local from=RANKS each nodes=${SLURM_JOB_NUM_NODES:-${SLURM_NNODES:-}} this=slurm/NAME.sbatch
    [[ $0 != *.sbatch ]] || printf -v this %q "$0"
    local task=$TASK
    [[ -n ${SLURM_ARRAY_JOB_ID:-} ]] || task=${SLURM_ARRAY_TASK_ID:-} # set by hand, in a shell
    if [[ $1 == element ]]; then
        [[ -z $task ]] || RANKS=$task from=SLURM_ARRAY_TASK_ID
        [[ -n ${RANKS:-} ]] || error "the number of ranks is not known: it is that of the array's element," \
            "and this is in no array; write \`sbatch $this\`, or in a shell \`RANKS=4 bash $this\`"
    elif [[ -n ${RANKS:-} ]]; then
        :
    elif [[ -n ${SLURM_NTASKS:-} ]]; then
        RANKS=$SLURM_NTASKS from=SLURM_NTASKS
    elif [[ -n ${SLURM_TASKS_PER_NODE:-} ]]; then # such as 2(x3),1
        RANKS=0 from=SLURM_TASKS_PER_NODE
        while read -r each; do
            [[ $each =~ ^([1-9][0-9]{0,5})(\(x([1-9][0-9]{0,5})\))?$ ]] || error "SLURM_TASKS_PER_NODE is" \
                "$SLURM_TASKS_PER_NODE; it may be such as 2(x3),1; or set RANKS to the number of ranks"
            RANKS=$((RANKS + BASH_REMATCH[1] * ${BASH_REMATCH[3]:-1}))
        done <<<"${SLURM_TASKS_PER_NODE//,/$'\n'}"
    elif [[ -n $nodes && -n ${SLURM_NTASKS_PER_NODE:-} ]]; then
        check_number SLURM_JOB_NUM_NODES "$nodes" 1 "such as 2; or set RANKS to the number of ranks"
        check_number SLURM_NTASKS_PER_NODE "$SLURM_NTASKS_PER_NODE" 1 "such as 2; or set RANKS"
        RANKS=$((nodes * SLURM_NTASKS_PER_NODE)) from='nodes x SLURM_NTASKS_PER_NODE'
    else
        error "the number of ranks is not known: none of RANKS, SLURM_NTASKS and SLURM_TASKS_PER_NODE is" \
            "set; write \`sbatch $this\`, or \`RANKS=4 bash $this\`, in a shell of \`salloc -n 4\`, say"
    fi
    check_number "$from" "$RANKS" 1 "such as 4, the number of ranks"
}

# name_run: sets NAME, and run to the same. One that is given is kept, with the number in the array for its %a, as in sbatch's
# --output; else it is the configuration's, in an array with that number at its end: each task trains its own.
name_run() {
    if [[ -z ${NAME:-} ]]; then
        NAME=$(basename -- "$CONFIG" .yaml)${NAME_END:-}${TASK:+-$TASK}
        NAME=$(LC_ALL=C && printf %s "${NAME//[!A-Za-z0-9._-]/-}") # "my own.yaml" may have a run, too
    elif [[ -n $TASK && $NAME == *%a* ]]; then
        NAME=${NAME//%a/$TASK}
    elif [[ -n $TASK && ${SLURM_ARRAY_TASK_COUNT:-1} != 1 ]]; then
        say "warning: all tasks of this array go on with one run, $NAME, which only one at a time can; for a" \
            "run of each write $(printf %q "--name=$NAME")-%a"
    fi
    run=$NAME
}

# begin OF: Slurm's warning, the environment, threads, file locking; sets TASK and, of OF, RANKS; prints versions.
begin() {
    # From now on, as the warning would end this shell while data are prepared. SIGTERM ends it: it comes
    # with the end of the job (scancel, time over), after which nothing is to be requeued.
    trap on_warning USR1
    use_environment
    launcher_words 1 >/dev/null # an error now, not after the data were prepared
    command -v "$LAUNCHER" >/dev/null || error "no $LAUNCHER on PATH; load its module in slurm/env.sh, or set" \
        "LAUNCHER there to the other of srun and mpirun"
    check_number MAX_REQUEUES "$MAX_REQUEUES" 0 "such as 20"
    check_number LEAD_TIME_S "$LEAD_TIME_S" 0 "the seconds of sbatch's --signal, such as 120"
    find_task
    count_ranks "$1"
    export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
    check_number SLURM_CPUS_PER_TASK "$OMP_NUM_THREADS" 1 "such as 8"
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
    local job version restarts=${SLURM_RESTART_COUNT:-0}
    job=$(job_id)
    check_number SLURM_RESTART_COUNT "$restarts" 0 "how often Slurm has started the job again"
    printable "$(date '+%F %T') job ${job:-none}, start $((restarts + 1)), $RANKS ranks on" \
        "${SLURM_JOB_NODELIST:-$(hostname)}, $OMP_NUM_THREADS thread(s) each"
    [[ -z ${SLURM_HET_SIZE:-} ]] || say "warning: of a heterogeneous job the ranks start in the first part only"
    python -m ist_hpc.train --version
    version=$("$LAUNCHER" --version 2>&1) || error "$LAUNCHER does not start here: ${version%%$'\n'*}; submit with" \
        "sbatch, or set LAUNCHER in slurm/env.sh to the other of srun and mpirun"
    printable "${version%%$'\n'*}"
}

# on_warning: takes note and tells the ranks, if there are any yet, or the preparation: one that converts goes
# on, one that waits for another job's ends.
on_warning() {
    warned=1
    [[ -n $child ]] || return 0
    kill -USR1 "$child" 2>/dev/null || true # it may have ended just now
    compare_lead_time
}

# on_end PASSING: the job was cancelled, or Ctrl-C pressed in a shell, which does not come to a process that bash
# has started in the background.
on_end() {
    ended=1
    [[ -z $1 ]] || kill -TERM "$child" 2>/dev/null || true
}

# await [IS_OVER...]: waits for child and sets code to its exit code, or to GO_ON if this command says before
# it has ended that it is over. A `wait` that a signal interrupts may lose the code: it is asked for when there
# is one.
await() {
    [[ -z $warned ]] || kill -USR1 "$child" 2>/dev/null || true # it came when there was no child yet
    while kill -0 "$child" 2>/dev/null && ! { (($#)) && "$@"; }; do
        sleep 1 || true
    done
    code=$GO_ON
    if ! kill -0 "$child" 2>/dev/null; then
        code=0
        wait "$child" || code=$?
    fi
    child=''
    trap - INT TERM
}

# show_job: what scontrol says of this job, if it is one.
show_job() {
    local job
    job=$(job_id)
    [[ -n $job ]] && SLURM_TIME_FORMAT=standard scontrol show job "$job" 2>/dev/null
}

# compare_lead_time: says so if the warning came later than LEAD_TIME_S promised. What --signal a job has
# Slurm shows nowhere, but what is left when it comes.
compare_lead_time() {
    local shown left
    ! preempted || return 0 # its end is another one
    shown=$(show_job) || return 0
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
    expand_paths
}

READ_CONFIGURATION='
import sys
from pathlib import Path
from ist_hpc.common.errors import InputError
from ist_hpc.config import loading
from ist_hpc.config.keys import is_folder_name
path, run, *settings = sys.argv[1:]
try:
    data = loading.load(Path(path), settings).data.path
    if run and not is_folder_name(run):
        raise InputError(f"a run is a folder in RUNS, named by letters, digits, dots, dashes and underscores, "
                         f"a letter or digit first, got {run!r}; give another name by --name or NAME")
    print(data)
except InputError as error:
    print(error)
    sys.exit(2)'

# find_data ARGS...: sets DATA to the folder of the shards, and data_setting to the words of --set for it. It is
# what the arguments of the training command set, else DATA, else the data.path of CONFIG, whose data/ stands
# for DATA_ROOT. DATA_FROM says which, for messages: a site may define DATA for something else. What is wrong
# with the configuration, or with the name that name_run has set, is said here: not after data were prepared.
find_data() {
    local path setting settings is_set='' quoted
    mapfile -t settings < <(settings_of "$@")
    for setting in "${settings[@]}"; do
        [[ $setting != data.path=* ]] || is_set=1
    done
    path=$(python -c "$READ_CONFIGURATION" "$CONFIG" "$run" "${settings[@]}") || error "$path"
    if [[ $is_set ]]; then
        DATA_FROM="which --set data.path says"
    elif [[ -n ${DATA:-} ]]; then
        path=$DATA DATA_FROM="the value of DATA, a variable of your environment or of slurm/env.sh"
    else
        DATA_FROM="the data of $CONFIG"
        [[ $path != data/* ]] || path=$DATA_ROOT/${path#data/}
    fi
    DATA=$(expanded "$path") || exit
    quoted=$DATA # what YAML could take for something else than text
    if [[ ! $DATA =~ ^(\.\.?/)*[A-Za-z/][A-Za-z0-9_./-]*$ || ${DATA,,} =~ ^(null|true|false|yes|no|on|off|y|n)$ ]]; then
        quoted="'${DATA//\'/\'\'}'"
    fi
    # shellcheck disable=SC2034  # the templates read it, and submit.sh
    data_setting=data.path=$quoted
}

# to_prepare NAMES: whether there are no shards in DATA. A template makes only those of configurations of
# these names (a pattern): it knows no source of other data.
to_prepare() {
    [[ ! -e $DATA/meta.json ]] || return 1
    # shellcheck disable=SC2053  # a pattern
    [[ $(basename -- "$CONFIG" .yaml) == $1 ]] || error "no shards in $DATA, $DATA_FROM, and this template" \
        "makes only those of configurations named $1.yaml, not of $CONFIG; make them by \`python -m" \
        "ist_hpc.prepare\`, or set DATA, or DATA_ROOT in slurm/env.sh, to where they are"
}

# prepare ARGS...: makes the shards of DATA in one process, here on the first node; the folder appears when it is
# complete, or not at all. While another job makes them this one waits, until the warning, and is requeued.
prepare() {
    local code
    [[ $warned ]] || {
        trap 'on_end passing' INT TERM
        python -m ist_hpc.prepare "$@" --output "$DATA" --if-missing &
        child=$!
        await
        [[ -z $ended ]] || exit 143 # of SIGTERM
        ((code)) || return 0
    }
    case ${code:=$GO_ON} in
        "$GO_ON" | "$BY_USR1")
            queue_again "$RUNS/$NAME" "the time is over before training began"
            exit "$GO_ON"
            ;;
        *) exit "$code" ;; # it has said why
    esac
}

# plan ARGS...: prints what the run will need; ARGS are those of the training command.
plan() {
    local settings
    mapfile -t settings < <(settings_of "$@")
    printable "$CONFIG, run $RUNS/$NAME, data in $DATA, $DATA_FROM"
    python -m ist_hpc.plan --config "$CONFIG" --ranks "$RANKS" --set "${settings[@]}"
}

# train ARGS...: all ranks. The warning before the time is over reaches them; a run that is saved then
# is requeued. A rank that fails ends the others.
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
        trap 'on_end ""' INT TERM # Ctrl-C comes to mpirun itself
    else
        trap 'on_end passing' INT
    fi
    # the user's own settings come later and win
    "${launch[@]}" python -m ist_hpc.train --set "runtime.lead_time_s=$LEAD_TIME_S" "$@" &
    child=$!
    # mpirun stays twice MPIRUN_WAITS_S after ranks that ended with any code but 0, which may be too long for
    # a job whose time is over.
    if [[ $LAUNCHER == mpirun ]]; then
        await is_saved "$folder"
    else
        await
    fi
    ((code == 2)) || ! is_saved "$folder" || code=$GO_ON # even if MPI came to no end of its own
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
    local folder=$1 why=$2 id job='' times=0
    id=$(job_id)
    if preempted; then
        why="the job was preempted"
    elif [[ -z $warned ]]; then
        return # somebody asked the ranks to stop
    elif [[ -z $id ]]; then
        say "$why; this is no job of Slurm, so nothing is requeued: the same command resumes it"
        return
    else
        # another job's count is over: the same sbatch line begins anew
        [[ ! -e $folder/requeues ]] || read -r job times <"$folder/requeues" || true
        [[ $job == "$id" && $times =~ ^[1-9][0-9]{0,8}$ ]] || times=0
        if ((times >= MAX_REQUEUES)); then
            say "requeued $times times already (MAX_REQUEUES); the same sbatch command resumes it"
            return
        fi
        # braces: bash itself says what cannot be opened
        if ! { mkdir -p "$folder" && echo "$id $((times + 1))" >"$folder/requeues.new" &&
            mv "$folder/requeues.new" "$folder/requeues"; } 2>/dev/null; then
            say "error: $why, but how often it was cannot be written to $folder/requeues, so the job is not" \
                "requeued; see to space, quota and rights there, then the same sbatch command resumes it"
            return
        fi
    fi
    echo "$(date '+%F %T') $why; requeued"
    # Incomplete: Slurm would start even a job again that was cancelled in the meantime
    scontrol requeue Incomplete "$id" ||
        say "error: scontrol could not queue the job again; the same sbatch command resumes it"
}

# preempted: whether the job is to make room for another. Its ranks then get SIGTERM, as they do from
# scancel, but it still runs. A time before this start would be that of an earlier one.
preempted() {
    local shown times='[[:space:]]StartTime=([0-9T:-]+).*[[:space:]]PreemptTime=([0-9T:-]+)'
    shown=$(show_job) || return 1
    [[ $shown =~ JobState=RUNNING.*$times && ! ${BASH_REMATCH[2]} < ${BASH_REMATCH[1]} ]]
}
