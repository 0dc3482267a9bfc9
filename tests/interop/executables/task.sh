#!/bin/sh
# Prints its arguments, the bytes on its standard input and what stands in TASK_WORD; fails if it is asked to.
for argument; do printf '<%s>\n' "$argument"; done
printf '%s\n' "$(wc -c | tr -d ' ')" "$TASK_WORD"
exit "${TASK_STATUS:-0}"
