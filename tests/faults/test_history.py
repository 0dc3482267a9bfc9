"""The files of a run are read as they were written, whatever a killed process left at their end."""

from __future__ import annotations

import zlib

import msgspec
import pytest

from kingtask.errors import Busy, NoAnswer
from kingtask.result import Attempt, Result
from kingtask.states import State
from kingtask.task import TaskSpec
from tests.faults.history import (
    LEDGER,
    Asked,
    Execution,
    Fault,
    HistoryRecorder,
    Journal,
    Op,
    Reading,
    args_digest,
    digest,
    ledger_line,
    read,
    read_ledger,
)

ID = "6f1c2b8e-4c1d-4d1e-9a52-0c6d5b0a7f11"


def test_a_client_writes_its_calls_as_they_are_read(tmp_path):
    spec = TaskSpec(id=ID, name="echo", args=("a", "ü"), stdin=b"in", retry=(1, 2.5), start_at=1_800_000_000.0)
    tried = Attempt(number=1, worker="w", started_at=2.001, ended_at=2.5, exit_code=0)
    result = Result(
        id=ID,
        name="echo",
        queue="default",
        priority=5,
        state=State.SUCCEEDED,
        created_at=1.0,
        due_at=2.0,
        args=spec.args,
        stdout=b"out",
        attempts=(tried,),
    )
    recorder = HistoryRecorder(tmp_path, "a")
    submit, other, read_back = (
        recorder.invoke("submit", ID, spec=spec),
        recorder.invoke("submit", ID, spec=spec),
        recorder.invoke("result", ID),
    )
    recorder.error(other, NoAnswer("nobody"))
    recorder.error(submit, Busy("later"))
    recorder.ok(read_back, result=result)
    recorder.close()

    ops = list(read(tmp_path / "client-a.jsonl", Op))
    ends = {op.op: (op.type, op.code, op.stored, op.id) for op in ops[3:]}
    assert [op.type for op in ops[:3]] == ["invoke"] * 3
    assert ends == {1: ("fail", "busy", "no", ID), 2: ("info", "NoAnswer", "unknown", ID), 3: ("ok", "", "", ID)}
    assert ops[0].asked == Asked.of(spec)
    assert ops[0].asked.retry_ms == (1000, 2500)
    assert ops[0].mono_ns <= ops[5].mono_ns
    reading = ops[5].reading
    assert reading == Reading.of(result)
    assert (reading.args, reading.stdout) == (args_digest(["a", "ü"]), digest(b"out"))
    assert reading.attempts[0].started_ms == 2001


def test_half_a_line_at_the_end_is_not_read(tmp_path):
    path = tmp_path / "faults.jsonl"
    journal = Journal(path)
    journal.write(Fault(fault="kill", event="start", mono_ns=1))
    journal.close()
    with path.open("a") as file:
        file.write('{"fault":"kill","ev')
    assert [fault.mono_ns for fault in read(path, Fault)] == [1]
    assert list(read(tmp_path / "missing", Fault)) == []


def test_what_no_process_wrote_is_not_read_over(tmp_path):
    path = tmp_path / "faults.jsonl"
    path.write_text('{"fault":"kill"}\n')
    with pytest.raises(msgspec.DecodeError):
        list(read(path, Fault))


def test_the_ledger_is_read_as_it_is_written(tmp_path):
    start = Execution(id=ID, attempt=2, event="start", mono_ns=5, pid=6, worker="w", args=args_digest(["x=y"]))
    end = Execution(id=ID, attempt=2, event="end", mono_ns=7, pid=6, exit=3, out=digest(b"o"))
    path = tmp_path / LEDGER
    path.write_text(ledger_line(start) + ledger_line(end) + f"{ID} 2 st")
    assert list(read_ledger(path)) == [start, end]
    with path.open("a") as file:
        file.write("\n")
    with pytest.raises(msgspec.ValidationError):
        list(read_ledger(path))


def test_a_digest_is_crc32_and_length():
    assert digest(b"hello") == f"{zlib.crc32(b'hello'):08x}:5" == "3610a686:5"
    assert args_digest(["a", "b"]) == digest(b"a\0b\0") != args_digest(["ab"])
