"""The process of one contestant's client: `python -m tests.bench.adapters.serve MODULE`.

A line of JSON in, a line of JSON out: {"section": …, "args": {…}} is answered by what the section returns, or by
{"error": …}. The first line out, unasked, says what there is to start and what can be timed; `open` connects.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.metadata
import json
import os
import sys
import traceback
from typing import Any

from tests.bench.adapters.base import ContestantAdapter
from tests.bench.adapters.sections import sections_of


async def main(module: str) -> None:
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints is no answer
    adapter: ContestantAdapter = importlib.import_module(f"tests.bench.adapters.{module}").adapter()
    sections = sections_of(adapter)

    def say(answer: dict[str, Any]) -> None:
        out.write(json.dumps(answer) + "\n")

    say(
        {
            "config": adapter.config,
            "versions": {package: importlib.metadata.version(package) for package in adapter.packages},
            "servers": adapter.servers(),
            "workers": adapter.workers(),
            "sections": [*sections],
            "bulk": adapter.submit_many is not None,
        }
    )
    while line := await asyncio.to_thread(sys.stdin.readline):
        asked = json.loads(line)
        try:
            if asked["section"] == "open":
                opened = adapter.open()
                say({} if opened is None else await opened or {})
            else:
                say(await sections[asked["section"]](adapter, **asked["args"]))
        except Exception:  # noqa: BLE001  (whatever a library raises is this contestant's failure, and is told)
            say({"error": traceback.format_exc()[-2000:]})


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
    os._exit(0)  # some clients leave threads behind
