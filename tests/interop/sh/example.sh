#!/bin/sh
# Runs the executable "example" with two numbers in two seconds, retried twice if it fails, and prints its output.
. "$(dirname "$0")/kingtask.sh"

id=$(kt_id)
kt_submit "$id" --delay 2 --retry 5,8 example 12 45 >/dev/null && kt_wait "$id" 30
[ -z "$KT_ERROR" ] || echo "$KT_ERROR" >&2
