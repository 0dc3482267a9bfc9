"""Coverage-guided fuzzing: `python -m tests.fuzz decoder|router --seconds 300`. Needs `pip install '.[fuzz]'`.

`decoder` gives each input to what reads messages, in this process; `router` sends it to a live broker as well, which
has to answer or drop it, to answer the pings between them, and to keep its memory. It begins with the vectors. What is
found wrong is written to tests/fuzz/findings/, which the ordinary tests replay; the exit status is then 1.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.fuzz.seeds import FINDINGS, seeds
from tests.integration.rig import StackHarness

MAX_INPUT_BYTES = 8_192


def fuzz(what: str, seconds: int, environment: dict[str, str]) -> int:
    with tempfile.TemporaryDirectory(prefix="kingtask-fuzz-") as corpus:
        for name, seed in seeds(b"\0" if what == "router" else b"").items():
            Path(corpus, name).write_bytes(seed)
        FINDINGS.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "tests.fuzz.target", what, corpus, f"-max_total_time={seconds}"]
        options = [f"-artifact_prefix={FINDINGS}/{what}-", f"-max_len={MAX_INPUT_BYTES}", "-print_final_stats=1"]
        return subprocess.run([*command, *options], env={**os.environ, **environment}, check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["decoder", "router"])
    parser.add_argument("--seconds", type=int, default=300)
    options = parser.parse_args()
    if importlib.util.find_spec("atheris") is None:
        print("atheris is not installed: pip install '.[fuzz]' (Linux, Python 3.11 or later)", file=sys.stderr)
        return 2
    if options.what == "decoder":
        return int(fuzz("decoder", options.seconds, {}) != 0)
    with StackHarness() as rig, tempfile.TemporaryDirectory(prefix="kingtask-fuzz-") as directory:
        broker = rig.start_broker()
        pid, told = broker.pid, Path(directory) / "told"
        environment = {"FUZZED_BROKER": broker.endpoint, "FUZZED_PID": str(pid), "FUZZED_TOLD": str(told)}
        bad = fuzz("router", options.seconds, environment) != 0
        print(told.read_text() if told.exists() else "nothing was sent", end="")
        alive = broker.pid == pid and broker.process is not None and broker.process.poll() is None
        print("the broker is alive" if alive else f"the broker has ended: {broker.text()[-2000:]}")
        return int(bad or not alive)


if __name__ == "__main__":
    sys.exit(main())
