"""What clients ask for: the workloads of the cases, as sequences of tasks that a seed decides.

now      short tasks, at once                    long    tasks that outlast a lease
later    scheduled up to a few seconds ahead     once    `on_lost: fail`
failing  fail once or more, with retries         shared  the same ids from all clients
big      big arguments, stdin and output         cancel  cancelled soon after they were accepted
bulk     a hundred in one request                half    half a second each
parked   a hundred in one request, due some seconds later, all within a second
"""

from __future__ import annotations

import time
from random import Random
from typing import Literal, NamedTuple
from uuid import NAMESPACE_OID, UUID, uuid5

from kingtask import TaskSpec

BULK = 100
"""Tasks in one request of `bulk` and `parked`."""
IN_BULK = ("bulk", "parked")
PARKED_S = 6.0

After = Literal["", "get", "wait", "cancel"]


class Item(NamedTuple):
    spec: TaskSpec
    after: After = ""
    """What the client does once the task was accepted."""


def fresh(random: Random) -> str:
    return str(UUID(int=random.getrandbits(128), version=4))


def make(kind: str, random: Random, number: int, shared_seed: str, lease_s: float) -> Item:
    """The next task of a workload; for `shared` what only number and seed decide."""
    after: After = random.choices(("", "get", "wait"), (6, 2, 2))[0]
    match kind:
        case "now" | "bulk":
            return Item(_work(fresh(random), text=f"n{number}"), after if kind == "now" else "")
        case "later":
            at = round(time.time() + random.uniform(0.0, 2.5 * lease_s), 3)
            return Item(_work(fresh(random), start_at=at), after)
        case "failing":
            fails = random.randint(1, 4)
            retry = tuple(round(random.uniform(0.1, 1.0), 3) for _ in range(3))
            return Item(_work(fresh(random), fails=fails, retry=retry), after)
        case "half":
            return Item(_work(fresh(random), ms=500), "wait")
        case "parked":
            at = round(time.time() + PARKED_S + random.random(), 3)
            return Item(_work(fresh(random), start_at=at))
        case "long":
            return Item(_work(fresh(random), ms=round(lease_s * random.uniform(700, 2500))), after)
        case "once":
            ms = random.choice((0, 0, 50, 800))
            return Item(_work(fresh(random), ms=ms, on_lost="fail"), after)
        case "shared":
            own = Random(f"{shared_seed}-{number}")
            task_id = str(uuid5(NAMESPACE_OID, f"{shared_seed}-{number}"))
            return Item(_work(task_id, ms=own.choice((0, 100)), delay_s=own.choice((0.0, 0.5)), text="shared"), after)
        case "big":
            args = tuple("ä€x"[number % 3] * random.randint(1, 20_000) for _ in range(random.randint(1, 6)))
            stdin = random.randbytes(random.randint(0, 100_000))
            return Item(_work(fresh(random), size=random.randint(0, 400_000), more=args, stdin=stdin), after)
        case "cancel":
            delayed = random.random() < 0.5
            delay_s = round(random.uniform(0, 1), 3) if delayed else 0.0
            return Item(_work(fresh(random), ms=random.choice((0, 1500)), delay_s=delay_s), "cancel")
    raise ValueError(f"there is no workload {kind!r}")


def _work(
    task_id: str,
    *,
    ms: int = 0,
    fails: int = 0,
    size: int = 0,
    text: str = "",
    more: tuple[str, ...] = (),
    start_at: float = 0.0,
    delay_s: float = 0.0,
    retry: tuple[float, ...] = (),
    stdin: bytes = b"",
    on_lost: Literal["retry", "fail"] = "retry",
) -> TaskSpec:
    args = (str(ms), str(fails), str(size), *((text,) if text else ()), *more)
    return TaskSpec(
        id=task_id,
        name="work",
        args=args,
        start_at=start_at,
        delay_s=delay_s,
        retry=retry,
        stdin=stdin,
        on_lost=on_lost,
    )
