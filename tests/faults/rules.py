"""What a case holds its history to: which invariants of CATALOGUE.md, and what its faults excuse."""

from __future__ import annotations

from dataclasses import dataclass

INVARIANTS = {
    "I1": "no acknowledged task is lost",
    "I2": "nothing is executed or stored that no client asked for",
    "I3": "one outcome per task, and it never changes",
    "I4": "what is recorded comes from the attempt that held the fence",
    "I5": "with on_lost: fail an attempt that may have run is not run again",
    "I6": "a submit sent again makes no second task and no second run of an attempt",
    "I7": "what was refused is neither stored nor executed",
    "I8": "nothing starts early, or past its expires_at",
    "I9": "failures, losses and intervals are those of the retry list and max_lost",
    "I10": "an attempt is given away, or two overlap, only when a fault kept a lease from being renewed",
    "I11": "every id is in exactly one place, no key is an orphan, every key has its TTL or its bound",
    "I12": "after the last fault everything ends in time",
    "I13": "no process, directory or descriptor is left behind",
    "I14": "pings are answered, nobody exits, memory is bounded",
    "I15": "arguments, outputs and exit statuses are byte for byte what they were",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    invariants: frozenset[str] = frozenset(INVARIANTS)
    """Of the others, breaches are counted as waived."""
    acks: frozenset[str] = frozenset({"stored", "fsync", "replicas"})
    """Levels that an OK may name; another breaks I1."""
    promised: frozenset[str] = frozenset({"stored", "fsync", "replicas"})
    """Levels whose acknowledged tasks must survive this case's faults; losses at others are counted as unpromised."""
    forgets: bool = False
    """Claims and ends of attempts may be undone by the faults (a failover; the end of an append-only file cut off).
    Then an attempt may run under a number that was used before, and an outcome that was read may be replaced: counted,
    never lost, and never with on_lost: fail."""
    drops_outputs: bool = False
    """The oldest outputs may go (`max_result_bytes`), outcomes never."""
    kept_bytes: int = 2**20
    """Of an output: a longer one may have been cut (`max_output_bytes`)."""
    steps_clock: bool = False
    """Redis's clock is set during the run: of times, only instants asked for and claims are compared."""
    needs_faults: bool = True
    """False: a case that is valid without a fault."""
    loses_anytime: bool = False
    """Attempts may be lost without a fault in faults.jsonl (a task that kills its own worker)."""
    silent: frozenset[str] = frozenset()
    """Names of executables that write no ledger."""
    ping_ms: int = 1_000
    ping_gap_ms: int = 5_000
    """A broker that was not even asked for so long was not observed: unknown."""
    rss_growth_bytes: int = 128 * 2**20
    """Over the first sample of a process."""
    fd_growth: int = 64
    """Likewise, of the median of its last samples."""
    drain_extra_ms: int = 30_000
    """Beyond one lease, the longest retry list and the longest run."""
