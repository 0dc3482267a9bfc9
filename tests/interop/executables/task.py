#!/usr/bin/env python3
"""As task.sh."""

import os
import sys

for argument in sys.argv[1:]:
    sys.stdout.buffer.write(b"<" + os.fsencode(argument) + b">\n")
size = len(sys.stdin.buffer.read())
sys.stdout.buffer.write(b"%d\n%s\n" % (size, os.environb[b"TASK_WORD"]))
sys.stdout.flush()
sys.exit(int(os.environ.get("TASK_STATUS", "0")))
