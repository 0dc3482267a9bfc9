# A client for POSIX sh: functions around the command `kingtask`, which does the talking. Source this file.
#
# KINGTASK_BROKER names the brokers, with commas; the command goes from one to the next by itself. If they ask for keys,
# KINGTASK_CURVE_KEY and KINGTASK_SERVER_KEY name the files of your own and of theirs. Each function gives the command's
# exit status and puts its name into KT_ERROR, which is empty after a success:
#
#   task_failed    the task ended, but not in `succeeded`
#   usage          the call is wrong, nothing was sent
#   no_answer      no broker answered in time, or all refuse for now: later, with the same id
#   denied         ask the operator
#   refused        for good: mend the request, or choose another id
#   not_found      there is no such task, or no longer
#   not_confirmed  it may have been stored: send the same id again
#   pending        the task has not ended within the time given; it goes on

kt() {
    kingtask "$@"
    kt_status=$?
    case $kt_status in
    0) KT_ERROR='' ;;
    1) KT_ERROR=task_failed ;;
    2 | 3) KT_ERROR=usage ;;
    4) KT_ERROR=no_answer ;;
    5) KT_ERROR=denied ;;
    6) KT_ERROR=refused ;;
    7) KT_ERROR=not_found ;;
    8) KT_ERROR=not_confirmed ;;
    9) KT_ERROR=pending ;;
    *) KT_ERROR=broken ;;
    esac
    return "$kt_status"
}

# kt_id: a new id. Whoever wants one that is the same for the same purpose gives `--key TEXT` to `kingtask submit`.
kt_id() {
    cat /proc/sys/kernel/random/uuid
}

# kt_submit ID [OPTION]... NAME [ARGUMENT]...: submit, KT_TRIES times if nobody can say whether it is stored. The id makes
# that safe; what the executable reads must be a file then (--stdin FILE), for a pipe can be read only once.
kt_submit() {
    kt_task=$1
    shift
    kt_left=${KT_TRIES:-3}
    while ! kt submit --id "$kt_task" "$@"; do
        kt_left=$((kt_left - 1))
        case $KT_ERROR:$kt_left in
        no_answer:0 | not_confirmed:0) return "$kt_status" ;;
        no_answer:* | not_confirmed:*) ;;
        *) return "$kt_status" ;;
        esac
    done
}

# kt_submit_lines: a task for each line of JSON on standard input, a line of JSON with the outcome of each.
kt_submit_lines() {
    kt submit --from - --json
}

# kt_wait ID SECONDS: its output becomes this function's.
kt_wait() {
    kt wait --timeout "$2" "$1"
}

# kt_get ID: its record as a line of JSON, whatever its state.
kt_get() {
    kt get --json "$1"
}

kt_cancel() {
    kt cancel "$1"
}

kt_ping() {
    kt ping
}
