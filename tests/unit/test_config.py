"""Configuration files: what is accepted, and what each mistake is told, with file, line and key."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kingtask.config import BrokerConfig, WorkerConfig, load_broker, load_worker
from kingtask.errors import ConfigurationError
from kingtask.policy import Policy
from kingtask.store.redis.address import RedisAddress, RedisTLS

Write = Callable[[str | bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a configuration; `BIN` in it is a directory of executables."""
    directory = tmp_path / "bin"
    directory.mkdir(mode=0o755)

    def write(text: str | bytes) -> Path:
        path = tmp_path / "kingtask.yaml"
        content = text if isinstance(text, bytes) else text.encode()
        path.write_bytes(content.replace(b"BIN", bytes(directory)))
        return path

    return write


def complaint(load: Callable[[str | Path], object], path: str | Path) -> str:
    """What is wrong with the file, behind its name."""
    with pytest.raises(ConfigurationError) as caught:
        load(path)
    text = str(caught.value)
    assert text.startswith(f"{path}:")
    return text.removeprefix(f"{path}:").replace(str(Path(path).parent), "…")


# ── what is accepted ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_originals_broker_file_gets_told_the_ways_on(write: Write, tmp_path: Path):
    original = f"addr: 0.0.0.0:9595\nredis: 127.0.0.1:6379\nlog_path: {tmp_path}\nlog_level: debug\n"
    assert complaint(load_broker, write(original)) == (
        "1: addr: 0.0.0.0:9595 can be reached from other machines, and every peer that reaches it may run every"
        " executable: give clients keys (`curve`), listen on 127.0.0.1 or on ipc:///path, or set `insecure: true` if"
        " every host in that network may do so"
    )
    config = load_broker(write(original + "insecure: true\n"))
    assert config.endpoints == ["tcp://0.0.0.0:9595"]
    assert (config.log_level, config.log_path) == ("debug", str(tmp_path))
    config = load_broker(write(original.replace("0.0.0.0", "127.0.0.1")))
    assert config.endpoints == ["tcp://127.0.0.1:9595"]


def test_the_originals_worker_file_loads_with_its_paths_changed(write: Write, tmp_path: Path):
    config = load_worker(
        write(
            "broker: 127.0.0.1:9595\nredis: 127.0.0.1:6379\nbin_path: BIN\n"
            f"log_path: {tmp_path}\nlog_level: debug\nperiod: 1\nresult_keep_time: 1000\ntask_run_time: 30\n"
        )
    )
    assert config.endpoints == ["tcp://127.0.0.1:9595"]
    assert config.load_redis_address() == RedisAddress(host="127.0.0.1", port=6379)
    assert config.bin_path == (str(tmp_path / "bin"),)
    assert (config.period, config.result_keep_time, config.task_run_time) == (1.0, 1000.0, 30.0)


def test_the_originals_misspelt_period_is_named(write: Write):
    assert complaint(load_worker, write("bin_path: BIN\nperoid: 1\n")) == "2: peroid: unknown key; did you mean period?"


def test_durations_reach_redis_in_milliseconds(write: Write):
    text = "result_keep_time: 1.5\nfailed_keep_time: 60\nlease: 0.5\nmax_lost: 7\nmax_queues: 8\nmax_queue_length: 9\n"
    policy = load_broker(write(f"{text}max_tasks: 10\nmax_result_bytes: 2097153\n")).policy
    assert (policy.keep_ms, policy.failed_keep_ms, policy.lease_ms) == (1500, 60_000, 500)
    assert (policy.max_lost, policy.max_queues, policy.max_queue_length) == (7, 8, 9)
    assert (policy.max_tasks, policy.max_result_bytes) == (10, 2_097_153)


def test_a_broker_that_says_nothing_has_the_bounds_that_its_file_shows(write: Write):
    assert load_broker(write("addr: 127.0.0.1:9595\n")).policy == Policy()


@pytest.mark.parametrize(
    ("text", "endpoints", "wakeups"),
    [
        ("addr: 127.0.0.1:9000", ["tcp://127.0.0.1:9000"], ["tcp://127.0.0.1:9001"]),
        ("addr: tcp://127.0.0.1:9000", ["tcp://127.0.0.1:9000"], ["tcp://127.0.0.1:9001"]),
        ("addr: localhost:9000", ["tcp://127.0.0.1:9000"], ["tcp://127.0.0.1:9001"]),
        ("addr: '[::1]:9000'", ["tcp://[::1]:9000"], ["tcp://[::1]:9001"]),
        ("addr: 127.8.8.8:65534", ["tcp://127.8.8.8:65534"], ["tcp://127.8.8.8:65535"]),
        ("addr: ipc:///run/k", ["ipc:///run/k"], ["ipc:///run/k.wakeup"]),
        ("addr: ipc:///run/k\nwakeup: ipc:///run/w", ["ipc:///run/k"], ["ipc:///run/w"]),
        ("addr: 127.0.0.1:65535\nwakeup: 127.0.0.1:5", ["tcp://127.0.0.1:65535"], ["tcp://127.0.0.1:5"]),
        (
            "addr: [127.0.0.1:9000, ipc:///run/k]",
            ["tcp://127.0.0.1:9000", "ipc:///run/k"],
            ["tcp://127.0.0.1:9001", "ipc:///run/k.wakeup"],
        ),
        ("addr: '*:9000'\ninsecure: true", ["tcp://*:9000"], ["tcp://*:9001"]),
    ],
)
def test_an_address_and_the_wakeup_address_beside_it(write: Write, text: str, endpoints: list[str], wakeups: list[str]):
    config = load_broker(write(text))
    assert (config.endpoints, config.wakeup_endpoints) == (endpoints, wakeups)


def test_one_value_stands_for_a_list_of_it(write: Write):
    one = load_worker(write("bin_path: BIN\nbroker: 127.0.0.1:1\nwakeup: 127.0.0.1:2\nqueues: mail\n"))
    many = load_worker(write("bin_path: [BIN]\nbroker: [127.0.0.1:1]\nwakeup: [127.0.0.1:2]\nqueues: [mail]\n"))
    assert one == many


@pytest.mark.parametrize("text", ["# nothing but a comment\n", "---\n", "lease:\nack: ~\n", "{}"])
def test_what_is_left_out_has_its_default(write: Write, text: str):
    assert load_broker(write(text)) == BrokerConfig()


@pytest.mark.parametrize(
    "text", [b"\xef\xbb\xbflease: 9\r\nmax_lost: 2\r\n", b"lease: 9\nmax_lost: 2", b"{lease: 9, max_lost: 2}"]
)
def test_files_of_other_editors(write: Write, text: bytes):
    config = load_broker(write(text))
    assert (config.lease, config.max_lost) == (9.0, 2)


def test_redis_with_everything(write: Write, tmp_path: Path):
    for name in ("ca", "cert", "key"):
        (tmp_path / f"{name}.pem").write_text("pem")
    secret = tmp_path / "secret"
    secret.write_text(" hush\r\n")
    secret.chmod(0o640)
    config = load_broker(
        write(
            f"redis: rediss://kingtask@db.example:6380/2\nredis_password_file: {secret}\n"
            f"redis_tls: {{ca: {tmp_path}/ca.pem, cert: {tmp_path}/cert.pem, key: {tmp_path}/key.pem}}\n"
        )
    )
    tls = RedisTLS(ca=f"{tmp_path}/ca.pem", cert=f"{tmp_path}/cert.pem", key=f"{tmp_path}/key.pem")
    assert config.load_redis_address() == RedisAddress(
        host="db.example", port=6380, db=2, user="kingtask", password="hush", tls=tls
    )
    assert "hush" not in repr(config)
    assert "hush" not in repr(config.load_redis_address())


# ── mistakes ─────────────────────────────────────────────────────────────────────────────────────────────────────────

PUBLIC = "can be reached from other machines"
FORMS = "expected one of host:port, tcp://host:port, ipc:///path/of/socket, got "


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bin_path: /x", "1: bin_path: unknown key; it belongs in the configuration of the worker"),
        ("\n\nlog_levl: info", "3: log_levl: unknown key; did you mean log_level?"),
        ("flavour: blue", "1: flavour: unknown key; expected one of ack, ack_replicas, ack_timeout, addr, "),
        ("addr: 127.0.0.1", f"1: addr: {FORMS}'127.0.0.1'"),
        ("addr: 9595", "1: addr: expected a string, got 9595"),
        ("addr: ':9595'", f"1: addr: {FORMS}':9595'"),
        ("addr: http://127.0.0.1:9595", f"1: addr: {FORMS}'http://127.0.0.1:9595'"),
        ("addr: tcp://*:*", f"1: addr: {FORMS}'tcp://*:*'"),
        ("addr: ::1:9595", f"1: addr: {FORMS}'::1:9595'"),
        ("addr: '[::g]:9595'", "1: addr: [::g] in '[::g]:9595' is not an IPv6 address"),
        ("addr: '[1:2]:9595'", "1: addr: [1:2] in '[1:2]:9595' is not an IPv6 address"),
        ("addr: 127.0.0.1:0", "1: addr: expected a port from 1 to 65,535, got 0 in '127.0.0.1:0'"),
        ("addr: 127.0.0.1:65536", "1: addr: expected a port from 1 to 65,535, got 65536 in '127.0.0.1:65536'"),
        ("addr: 127.0.0.1:-1", f"1: addr: {FORMS}'127.0.0.1:-1'"),
        ("addr: 127.0.0.1:65535", "1: addr: expected a port from 1 to 65,535, got 65536"),
        ("addr: ipc://k", "1: addr: expected an absolute path behind ipc://, got 'ipc://k'"),
        ("addr: ipc:///" + "k" * 107, "1: addr: the path of a socket has at most 107 bytes: /kkk"),
        ("addr: ipc:///" + "k" * 100, "1: addr: the path of a socket has at most 107 bytes: /kkk"),
        ("addr: []", "1: addr: expected an array of 1 to 64 entries, got an array of 0 entries"),
        ("addr:\n  - 127.0.0.1:1\n  - 5", "3: addr[1]: expected a string, got 5"),
        ("addr:\n- 127.0.0.1:1\n- 10.0.0.1:1", f"3: addr[1]: 10.0.0.1:1 {PUBLIC}"),
        ("addr: '*:9595'", f"1: addr: *:9595 {PUBLIC}"),
        ("addr: '[::]:9595'", f"1: addr: [::]:9595 {PUBLIC}"),
        ("addr: myhost:9595", f"1: addr: myhost:9595 {PUBLIC}"),
        ("wakeup: 0.0.0.0:9596", f"1: wakeup: 0.0.0.0:9596 {PUBLIC}"),
        ("addr: *:9595", "1: while scanning an alias expected alphabetic or numeric character, but found ':'; a value"),
        ("addr: [127.0.0.1:1, 127.0.0.1:2]", "1: addr[0]: 127.0.0.1:2 is taken twice (wakeups use the next port"),
        ("addr: 127.0.0.1:1\nwakeup: 127.0.0.1:1", "2: wakeup: 127.0.0.1:1 is taken twice"),
        ("insecure: 'true'", "1: insecure: expected true or false, got 'true'"),
        ("redis: http://x", "1: redis: "),
        ("redis: redis://me:hush@h:99999/", "1: redis: "),
        (
            "redis: 127.0.0.1:6379/x",
            "1: redis: the database is not a number; expected one of: host:port, host:port/db, ",
        ),
        ("redis_password_file: secret", "1: redis_password_file: expected an absolute path, got 'secret'"),
        ("redis_password_file: /nowhere", "1: redis_password_file: cannot read /nowhere: No such file or directory"),
        ("redis_tls: true", "1: redis_tls: expected a map, got true"),
        ("redis_tls:\n  cet: /x", "2: redis_tls.cet: unknown field; did you mean cert?"),
        ("redis_tls: {ca: /nowhere}", "1: redis_tls.ca: expected the path of a readable PEM file, got '/nowhere'"),
        ("redis_tls: {cert: /etc/hostname}", "1: redis_tls: cert and key go together; give both or neither"),
        ("namespace: a{b}", "1: namespace: expected 1 to 32 letters, digits, dots, dashes and underscores, got 'a{b}'"),
        ("log_level: trace", "1: log_level: expected one of debug, error, info, warning, got 'trace'"),
        ("log_level: off", "1: log_level: expected one of debug, error, info, warning, got false"),
        ("ack: disk", "1: ack: expected one of fsync, replicas, stored, got 'disk'"),
        ("ack_replicas: 2", "1: ack_replicas: goes only with `ack: replicas`"),
        ("ack_timeout: 0", "1: ack_timeout: expected a number from 0.01 to 60, got 0"),
        ("max_pending: 0", "1: max_pending: expected an integer from 1 to 1,000,000, got 0"),
        ("max_pending: 5.5", "1: max_pending: expected an integer from 1 to 1,000,000, got 5.5"),
        ("max_pending: 1e3", "1: max_pending: expected an integer from 1 to 1,000,000, got '1e3'"),
        (
            "max_pending_bytes: 1024",
            "1: max_pending_bytes: expected an integer from 4,194,304 to 68,719,476,736, got 1024",
        ),
        ("result_keep_time: -1", "1: result_keep_time: expected a number from 1 to 31,536,000, got -1"),
        ("result_keep_time: 1e999", "1: result_keep_time: expected a number from 1 to 31,536,000, got '1e999'"),
        ("result_keep_time: .inf", "1: result_keep_time: expected a number from 1 to 31,536,000, got inf"),
        ("result_keep_time: .nan", "1: result_keep_time: expected a number from 1 to 31,536,000, got nan"),
        ("lease: yes", "1: lease: expected a number from 0.5 to 3,600, got true"),
        ("lease: 2026-03-01", "1: lease: expected a number from 0.5 to 3,600, got datetime.date(2026, 3, 1)"),
        ("lease: [15]", "1: lease: expected a number from 0.5 to 3,600, got an array of 1 entry"),
    ],
)
def test_a_mistake_in_the_brokers_file(write: Write, text: str, message: str):
    told = complaint(load_broker, write(text))
    assert told.startswith(message)
    assert "hush" not in told


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("period: 1", " bin_path: this field is required"),
        ("addr: 127.0.0.1:1\nbin_path: BIN", "1: addr: unknown key; it belongs in the configuration of the broker"),
        ("bin_path: bin", "1: bin_path: expected an absolute path, got 'bin'"),
        ("bin_path: /nowhere", "1: bin_path: cannot use /nowhere: No such file or directory"),
        ("bin_path: [BIN, /nowhere]", "1: bin_path[1]: cannot use /nowhere: No such file or directory"),
        ("bin_path: [BIN, BIN]", "1: bin_path[1]: '…/bin' is listed twice"),
        (
            "bin_path: /etc/hostname",
            "1: bin_path: expected the directory of the executables, but /etc/hostname is not a directory",
        ),
        ("bin_path: BIN\nperiod: 0", "2: period: expected a number from 0.01 to 3,600, got 0"),
        ("bin_path: BIN\nbroker: 127.0.0.1:x", f"2: broker: {FORMS}'127.0.0.1:x'"),
        ("bin_path: BIN\nbroker: [127.0.0.1:1, 127.0.0.1:1]", "2: broker[1]: '127.0.0.1:1' is listed twice"),
        ("bin_path: BIN\nwakeup: [127.0.0.1:1, 127.0.0.1:2]", "2: wakeup: expected one for each broker (1), got 2"),
        ("bin_path: BIN\nconcurrency: 0", "2: concurrency: expected an integer from 1 to 1,024, got 0"),
        ("bin_path: BIN\nqueues: []", "2: queues: expected an array of 1 to 256 entries, got an array of 0 entries"),
        ("bin_path: BIN\nqueues: [a, b, a]", "2: queues[2]: 'a' is listed twice"),
        ("bin_path: BIN\nqueues: a b", "2: queues: expected the name of a queue (letters, digits, . _ -; at most 64"),
        ("bin_path: BIN\nstderr: no", "2: stderr: expected one of fail, keep, got false"),
        (
            "bin_path: BIN\nlease: 10\nrenew: 6",
            "3: renew: expected at most half of lease (5), so that one lost renewal is",
        ),
        (
            "bin_path: BIN\nlease: 5",
            ": renew: expected at most half of lease (2.5), so that one lost renewal is harmless",
        ),
        ("bin_path: BIN\ntask_run_time: 0", "2: task_run_time: expected a number from 0.001 to 2,592,000, got 0"),
        ("bin_path: BIN\nmax_output_bytes: -1", "2: max_output_bytes: expected an integer from 0 to 1,048,576, got -1"),
        ("bin_path: BIN\nkill_grace: -1", "2: kill_grace: expected a number from 0 to 3,600, got -1"),
        (
            "bin_path: BIN\nname: a b",
            "2: name: expected 1 to 100 letters, digits, dots, dashes and underscores, got 'a b'",
        ),
    ],
)
def test_a_mistake_in_the_workers_file(write: Write, text: str, message: str):
    assert complaint(load_worker, write(text)).lstrip(": ").startswith(message.lstrip(": "))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", " is empty"),
        (b" \n\n", " is empty"),
        (b"lease: 5\naddr: \xff", "2: is not UTF-8 text (byte 0xff)"),
        ("lease: 5".encode("utf-16"), "1: is not UTF-8 text (byte 0xff)"),
        (b"\x7fELF\x02\0\0", " is not YAML: unacceptable character"),
        (b"lease: 5\0", " is not YAML: unacceptable character #x0000"),
        (b"# " + b"x" * 1_048_576, " is longer than 1,048,576 bytes; is it the right file?"),
        (b"lease: 5\nmax_lost: 2\nlease: 6", "3: lease: stands here twice (first on line 1)"),
        (b"redis_tls:\n  ca: /a\n  ca: /b", "3: redis_tls.ca: stands here twice (first on line 2)"),
        (b"lease: a: b", "1: mapping values are not allowed here"),
        (b"\tlease: 5", "1: while scanning for the next token found character '\\t' that cannot start any token"),
        (b"redis_tls:\n  ca: /a\n key: /b", "3: "),
        (b"lease 5", "1: expected lines of the form `key: value`"),
        (b"- lease", "1: expected lines of the form `key: value`"),
        (b"5: lease", "1: expected a word as key, got '5'"),
        (b"[a]: lease", "1: expected a word as key, got a list or map"),
        (b"yes: lease", "1: expected a word as key, got 'yes'"),
        (b"<<: {lease: 5}", "1: expected a word as key, got '<<'"),
        (b"lease: &a 5\nrenew: *a", "2: aliases (*name) are not accepted"),
        (b"addr: !!python/object/apply:os.system [reboot]", "1: could not determine a constructor for the tag"),
        (b"addr: !x y", "1: could not determine a constructor for the tag '!x'"),
        (b"lease: 5\n---\nlease: 6", "2: expected a single document in the stream but found another document"),
        (b"lease: 2026-02-30", " is not YAML: day is out of range for month"),
        (b"lease: " + b"[" * 50_000, " is nested too deep"),
        (b"lease: " + b"{a: " * 50_000, " is nested too deep"),
    ],
)
def test_a_file_that_is_no_configuration(write: Write, content: bytes, message: str):
    assert complaint(load_broker, write(content)).startswith(message)


def test_aliases_cannot_grow(write: Write):
    lines = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40)]
    assert complaint(load_broker, write("\n".join(lines))).startswith("2: aliases")


@given(st.text(max_size=100) | st.text("ab:{}[]-*&!|>'\"#\n \t5", max_size=40))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_is_a_configuration_or_a_complaint(tmp_path: Path, text: str):
    path = tmp_path / "any.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        load_broker(path)
    except ConfigurationError as error:
        assert str(error).startswith(f"{path}:")


def test_a_path_that_is_no_file(tmp_path: Path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    assert complaint(load_broker, tmp_path / "missing.yaml") == " cannot be read: No such file or directory"
    assert complaint(load_broker, tmp_path) == " is a directory; name the YAML file"
    assert complaint(load_broker, fifo) == " is not a regular file; name the YAML file"
    assert complaint(load_broker, "/dev/zero") == " is not a regular file; name the YAML file"
    with pytest.raises(ConfigurationError, match=r"'a\\x00b': is not the name of a file"):
        load_broker("a\0b")


@pytest.mark.parametrize(
    ("content", "mode", "message"),
    [
        (b"hush", 0o644, "every user may read or change "),
        (b"hush", 0o602, "every user may read or change "),
        (b"", 0o600, "expected one line, the password, in "),
        (b" \r\n", 0o600, "expected one line, the password, in "),
        (b"hush\nhush", 0o600, "expected one line, the password, in "),
        (b"x" * 5000, 0o600, "expected one line, the password, in "),
        (b"\xff\xfe", 0o600, "…/secret is not UTF-8 text"),
    ],
)
def test_a_password_file_that_must_not_be_used(write: Write, tmp_path: Path, content: bytes, mode: int, message: str):
    secret = tmp_path / "secret"
    secret.write_bytes(content)
    secret.chmod(mode)
    text = complaint(load_broker, write(f"redis_password_file: {secret}"))
    assert text.startswith(f"1: redis_password_file: {message}")
    assert "hush" not in text


def test_a_directory_into_which_every_user_may_put_programs(write: Write, tmp_path: Path):
    path = write("bin_path: BIN")
    load_worker(path)
    (tmp_path / "bin").chmod(0o777)
    assert complaint(load_worker, path).startswith("1: bin_path: every user may put programs into …/bin")
    (tmp_path / "bin").chmod(0o1777)
    assert "chmod o-w" in complaint(load_worker, path)


def test_a_link_to_the_current_release_is_a_directory(write: Write, tmp_path: Path):
    (tmp_path / "current").symlink_to("bin")
    assert load_worker(write(f"bin_path: {tmp_path}/current")).bin_path == (f"{tmp_path}/current",)


@pytest.mark.parametrize("config", [BrokerConfig(), WorkerConfig(bin_path=("/x",))], ids=["broker", "worker"])
def test_a_configuration_cannot_be_changed(config: Any):
    with pytest.raises(AttributeError):
        config.lease = 5.0


# ── isolation ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("run_as: kingtask", "run_as: expected a map, got 'kingtask'"),
        ("run_as: {}", "run_as.user: this field is required"),
        ("run_as: {user: nobody, grup: x}", "run_as.grup: unknown field; did you mean group?"),
        ("run_as: {user: []}", "run_as.user: expected "),
        ("run_as: {user: root}", "run_as: root would keep every right; expected a user of its own for tasks"),
        ("run_as: {user: '0'}", "run_as: root would keep every right"),
        ("run_as: {user: no-such-user}", "run_as: there is no user 'no-such-user' on this host; useradd --system"),
        ("run_as: {user: nobody, group: no-such}", "run_as: there is no group 'no-such' on this host; groupadd"),
        ("run_as: {user: '61999'}", "run_as: 61999 has no entry, so its group must be given: `group:`"),
        ("run_as: {user: '4294967295', group: '1'}", "run_as: 4294967295 is not the number of a user or group"),
        (
            "run_as: {user: '99999999999999999999', group: '1'}",
            "run_as: 99999999999999999999 is not the number of a user or group",
        ),
        ("run_as: {user: [nobody, nobody]}", "run_as: nobody is the same user as nobody"),
        (
            "concurrency: 3\nrun_as: {user: [nobody, daemon]}",
            "run_as: expected one user, or one for each of the 3 attempts at once (concurrency), got 2",
        ),
        ("limits: {memory: 1}", "limits.memory: expected an integer from 16,777,216 to "),
        ("limits: {cpu: 1}", "limits.cpu: unknown field"),
        ("limits: {open_files: 64K}", "limits.open_files: expected an integer from 16 to 1,048,576, got '64K'"),
        ("nice: -1", "nice: expected an integer from 0 to 19, got -1"),
        ("umask: 022", "umask: expected three octal digits in quotes"),
        ('umask: "999"', "umask: expected three octal digits in quotes"),
        ("environment: [A=B]", "environment[0]: expected the name of a variable"),
        ("environment: [KINGTASK_ID]", "environment[0]: expected the name of a variable"),
        ("task_env: [TASK_A, A=B]", "task_env[1]: expected the name of a variable, in which * stands for any"),
        ("private_dir: dirs", "private_dir: expected an absolute path, got 'dirs'"),
        ("private_dir: /nowhere", "private_dir: expected a directory that this user may write to, got /nowhere"),
        ("launcher: []", "launcher: expected an array of at least 1 entries"),
        ("launcher: /usr/bin/env", "launcher: expected an array"),
        ("launcher: [env]", "launcher[0]: expected an absolute path, got 'env'"),
        ("launcher: [/]", "launcher[0]: expected the path of a program, got '/'"),
    ],
)
def test_isolation_that_cannot_be(write: Write, text: str, said: str):
    lines = text.count("\n") + 2
    assert complaint(load_worker, write(f"bin_path: BIN\n{text}\n")).startswith(f"{lines}: {said}")


@pytest.fixture
def open_place() -> Iterator[Path]:
    """Directories that everybody may pass; those of pytest are for their owner only."""
    directory = Path(tempfile.mkdtemp(prefix="kingtask-open-"))
    directory.chmod(0o755)
    for name in ("bin", "bin/sub", "dirs"):
        (directory / name).mkdir(mode=0o755)
    (directory / "bin" / "task").touch(mode=0o755)
    (directory / "secret").write_text("x")
    (directory / "secret").chmod(0o640)
    yield directory
    shutil.rmtree(directory)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files to others")
def test_what_the_tasks_user_could_change_or_read_is_refused(open_place: Path):
    path = open_place / "worker.yaml"
    path.write_text(
        f"bin_path: {open_place}/bin\nprivate_dir: {open_place}/dirs\nredis_password_file: {open_place}/secret\n"
        "run_as: {user: '61999', group: '61999'}\n"
    )
    assert load_worker(path).load_identities()[0].uid == 61_999
    (open_place / "dirs" / "left").mkdir()
    os.chown(open_place / "dirs" / "left", 61_999, 61_999)
    load_worker(path)
    for key, place in (
        ("bin_path", "bin/task"),
        ("bin_path", "bin/sub"),
        ("bin_path", "bin"),
        ("bin_path", ""),
        ("private_dir", "dirs"),
    ):
        there = open_place / place
        before = there.stat()
        for uid, gid, mode in ((61_999, 0, 0), (0, 61_999, 0o020), (0, 0, 0o002)):
            os.chown(there, uid, gid)
            there.chmod(before.st_mode | mode)
            said = complaint(load_worker, path)
            assert f"{key}: " in said
            assert "may write to" in said or "every user may" in said
            os.chown(there, before.st_uid, before.st_gid)
            there.chmod(before.st_mode)
    (open_place / "bin" / "away").symlink_to("/tmp")  # what leads out is not run
    load_worker(path)
    os.chown(open_place / "secret", 0, 61_999)
    assert "redis_password_file: 61999 (run_as) may read …/secret; chmod 600" in complaint(load_worker, path)


def test_the_configuration_is_checked_without_socket_tls_or_redis():
    code = (
        "import sys, kingtask.config;"
        "loaded = {name.partition('.')[0] for name in sys.modules};"
        "print({'socket', 'ssl', 'asyncio', 'zmq', 'redis', 'hiredis'} & loaded)"
    )
    unmeasured = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    done = subprocess.run([sys.executable, "-c", code], env=unmeasured, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
