#!/usr/bin/env python3
"""As task.sh."""

import os
import sys

for argument in sys.argv[1:]:
    sys.stdout.buffer.write(b"<" + os.fsencode(argument) + b">\n")
size = len(sys.stdin.buffer.read())
sys.stdout.buffer.write(b"%d\n%s\n" % (size, os.environb[b"WORD"]))
sys.stdout.flush()
sys.exit(int(os.environ.get("STATUS", "0")))
