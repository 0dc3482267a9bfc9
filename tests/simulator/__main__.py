"""python -m tests.simulator [--seeds N] [--first SEED]: many seeds, or one with everything that happened."""

from __future__ import annotations

import argparse
import sys
import time

from tests.simulator.run import many


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulator", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--all", action="store_true", help="go on after a failure")
    given = parser.parse_args()
    began, failed = time.monotonic(), 0
    for found in many(range(given.first, given.first + given.seeds)):
        failed += 1
        print(found if failed == 1 else found.splitlines()[0], flush=True)
        if not given.all:
            break
    print(f"{given.seeds} seeds from {given.first}, {failed} failed, {time.monotonic() - began:.1f} s")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
