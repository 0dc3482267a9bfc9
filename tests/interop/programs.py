"""What the sessions in all languages run and send."""

from __future__ import annotations

STRANGE = ["", " ", "-n", "--", "a b", "ü ☃ \U0001f600", "line\nend\n", "\"'\\$(x)`*", "\x01\x7f", "\ufeff"]
RAW = bytes(range(256)) * 4_096
PROGRAMS = {
    "example": "#!/bin/sh\necho $(($1 + $2))\n",
    "arguments": "#!/bin/sh\n[ $# = 0 ] || printf '%s\\0' \"$@\"\n",
    "copy": "#!/bin/sh\nexec cat\n",
    "environment": "#!/bin/sh\nprintf '%s' \"$TASK_WORD\"\n",
    "third": "#!/bin/sh\n[ $KINGTASK_ATTEMPT = 3 ] || exit 7\n",
    "gate": '#!/bin/sh\nread line < "$1"\necho through\n',
    "long": "#!/bin/sh\nexec sleep 3600\n",
}
