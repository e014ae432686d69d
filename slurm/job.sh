# What the scripts here share. Source it, then `run_step COMMAND…` as the last line of a job that can be interrupted.
cd "${SLURM_SUBMIT_DIR:?submit these scripts with sbatch, from the folder of the project}"
set -uo pipefail
. slurm/site.env
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}" PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

# Run a command on all tasks of the job. Asked to stop (USR1 of --signal, TERM of scancel), let it save; where it asks to
# be started again (exit code 75), or was asked before it could listen (138), put the job back in the queue, unless
# restarts stopped bringing progress.
run_step() {
    local name="${SLURM_JOB_NAME:-job}-${SLURM_JOB_ID}" signalled asked=0 code step
    export HARPS_DIST_PROGRESS="$PWD/.$name.progress"
    echo "$(date '+%F %T') $name on ${SLURM_JOB_NODELIST:-?}, restart ${SLURM_RESTART_COUNT:-0}: $*"
    srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" "$@" &
    step=$!
    trap 'signalled=1; asked=1; kill -USR1 "$step" 2>/dev/null' USR1 TERM # srun hands it on to all tasks
    while :; do
        signalled=0
        wait "$step"
        code=$?
        [ "$signalled" = 1 ] || break
    done
    trap - USR1 TERM
    if [ "$code" = 75 ] || [ "$asked$code" = 1138 ]; then
        [ -e "$HARPS_DIST_PROGRESS" ] || echo "its start" >"$HARPS_DIST_PROGRESS"
        requeue
    else
        rm -f "$HARPS_DIST_PROGRESS" "$HARPS_DIST_PROGRESS.last"
    fi
    exit "$code"
}

requeue() {
    local last="$HARPS_DIST_PROGRESS.last" same=0
    [ -s "$last" ] && [ "$(tail -n +2 "$last")" = "$(cat "$HARPS_DIST_PROGRESS")" ] && same=$(($(head -n 1 "$last") + 1))
    if [ "$same" -ge "$MAX_RESTARTS" ]; then
        echo "stopped $((same + 1)) times at '$(cat "$HARPS_DIST_PROGRESS")': give the job more time, or look at what it waits for." >&2
        rm -f "$HARPS_DIST_PROGRESS" "$last"
        exit 1
    fi
    printf '%s\n%s\n' "$same" "$(cat "$HARPS_DIST_PROGRESS")" >"$last"
    echo "$(date '+%F %T') stopped at '$(cat "$HARPS_DIST_PROGRESS")'; back into the queue"
    scontrol requeue "$SLURM_JOB_ID" && sleep 60 # until SLURM ends this script
}
