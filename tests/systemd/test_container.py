"""An installation on a host with systemd, by the blocks of deploy/README.md: what the units promise."""

from __future__ import annotations

import re
import time

import pytest
import yaml

from tests.systemd import source
from tests.systemd.container import Container
from tests.systemd.source import NEXT, page_blocks
from tests.worker.test_launchers import LAUNCHERS

pytestmark = [pytest.mark.systemd, pytest.mark.timeout(600)]

BIN = "/usr/local/lib/kingtask"
UNITS = ("kingtask-broker", "kingtask-worker")
LANGUAGES = {
    "sh": ("sh", 'echo "sum $(($1 + $2))"'),
    "python": ("python3", "import sys, json, ctypes, threading\nprint('sum', int(sys.argv[1]) + int(sys.argv[2]))"),
    "node": (
        "node",
        # Enough rounds that the just-in-time compiler sets in, which writes the code that it runs.
        """let n = 0; for (let i = 0; i < 3e6; i++) n += i % 2; require('os').networkInterfaces();
        console.log('sum', Number(process.argv[2]) + Number(process.argv[3]) + n * 0)""",
    ),
}


def restarts(host: Container, unit: str) -> int:
    return int(host.show(unit, "NRestarts"))


def this_start_of(unit: str) -> str:
    """A command that prints what it has logged since it was started last."""
    return f"journalctl --no-pager _SYSTEMD_INVOCATION_ID=$(systemctl show --value -p InvocationID {unit})"


def drop_in(host: Container, unit: str, text: str) -> None:
    host.write(f"/run/systemd/system/{unit}.service.d/test.conf", text)
    host.run(f"systemctl daemon-reload; systemctl restart {unit}")


def put_back(host: Container, unit: str) -> None:
    host.run(f"rm /run/systemd/system/{unit}.service.d/test.conf; systemctl daemon-reload; systemctl restart {unit}")


@pytest.mark.parametrize("unit", UNITS)
def test_after_the_installation_it_runs(host: Container, unit: str):
    assert (host.show(unit, "ActiveState"), host.show(unit, "NRestarts")) == ("active", "0")
    assert host.show(unit, "StatusText") != ""
    assert host.show(unit, "User") == "kingtask"
    journal = host.journal(unit)
    assert f"{unit.removeprefix('kingtask-')}=started" in journal
    assert "level=error" not in journal


@pytest.mark.parametrize(("unit", "most"), [("kingtask-broker", 2.0), ("kingtask-worker", 4.0)])
def test_it_is_hardened(host: Container, unit: str, most: float):
    told = host.run(f"systemd-analyze security --no-pager {unit}.service", status=None)
    match = re.search(r"Overall exposure level for \S+: ([0-9.]+)", told)
    assert match is not None
    assert float(match[1]) <= most
    page = re.search(r"reports ([0-9.]+) and ([0-9.]+) \(systemd (\d+)\)", source.PAGE.read_text("utf-8"))
    assert page is not None
    if page[3] in host.run("systemctl --version").split():
        assert match[1] == dict(zip(UNITS, page.groups(), strict=False))[unit], "the page says so"


def test_the_units_bound_memory_processes_and_core_dumps(host: Container):
    for unit in UNITS:
        assert host.show(unit, "LimitCORE") == "0"
        assert int(host.show(unit, "MemoryMax")) < int(host.run("awk '/^MemTotal/{print $2}' /proc/meminfo")) * 1024
        assert int(host.show(unit, "TasksMax")) <= 4096
    host.write(f"{BIN}/core", "#!/bin/sh\nulimit -Hc\n", 0o755)
    assert host.run("kingtask submit --wait core 2> /dev/null").strip() == "0"


def test_doctor_has_no_findings_about_the_paths_and_users(host: Container):
    told = host.run(
        "kingtask doctor -c /etc/kingtask/broker.yaml --worker-config /etc/kingtask/worker.yaml", status=None
    )
    assert not [line for line in told.splitlines() if re.match(r"(warn|fail) +(config|run_as|bin_path)", line)]


def test_the_units_are_accepted(host: Container):
    units = "kingtask.target kingtask-broker.service kingtask-worker.service kingtask-worker@x.service"
    assert host.run(f"systemd-analyze verify --man=no {units}").strip() == ""


def test_the_sockets_are_the_groups(host: Container):
    told = host.run("stat -c '%a %U %G %F' /run/kingtask/broker.sock /run/kingtask/broker.sock.wakeup")
    assert told == "660 kingtask kingtask socket\n" * 2
    host.run("useradd --system --groups kingtask member; useradd --system stranger")
    assert "hello, member" in host.run("kingtask submit --wait hello member", user="member")
    told = host.run("kingtask --version; kingtask submit --timeout 2 hello stranger", user="stranger", status=4)
    assert "group of the socket" in told


def test_tasks_are_another_user_without_rights(host: Container):
    text = "#!/bin/sh\nid -un\nid -Gn\npwd\ngrep -E 'Cap(Eff|Prm|Amb)|NoNewPrivs' /proc/self/status\n"
    host.write(f"{BIN}/who", text, 0o755)
    told = host.run("kingtask submit --wait who").split()
    assert told[0] in {f"kingtask-task{n}" for n in range(1, 5)}
    assert told[1:3] == [told[0], "/var/lib/kingtask/tasks"]
    assert dict(zip(told[3:11:2], told[4:11:2], strict=True)) == {
        "CapPrm:": "0" * 16,
        "CapEff:": "0" * 16,
        "CapAmb:": "0" * 16,
        "NoNewPrivs:": "1",
    }
    text = (
        "#!/bin/sh\ncd; pwd; echo x > file; stat -c %a-%U file .; ls ../?/file 2> /dev/null || true\nsleep 2; id -un\n"
    )
    host.write(f"{BIN}/home", text, 0o755)
    ids = host.run("for n in 1 2 3 4; do kingtask submit home; done").split()
    printed = host.run(f"kingtask wait {' '.join(ids)}")
    for n in range(1, 5):  # at the same time each has its own user, and its own home that the others cannot enter
        home, user = f"/var/lib/kingtask/tasks/{n}", f"kingtask-task{n}"
        assert f"{home}\n600-{user}\n700-{user}\n../{n}/file\n{user}\n" in printed
    host.write(f"{BIN}/another", "#!/bin/sh\nexec kingtask submit --timeout 1 hello again 2>&1\n", 0o755)
    assert "no answer" in host.run("kingtask submit --wait another", status=1)


@pytest.mark.parametrize("language", [*LANGUAGES, "go", "java"])
def test_executables_run_under_the_unit_in(host: Container, language: str):
    if language in LANGUAGES:
        interpreter, text = LANGUAGES[language]
        host.write(f"{BIN}/{language}", f"#!/usr/bin/env {interpreter}\n{text}\n", 0o755)
    else:
        compiled = {"go": "sum", "java": "Sum.class"}[language]
        if compiled not in host.run("ls programs"):
            pytest.skip(f"there is no compiler for {language} here")
        if language == "go":
            host.run(f"install -m 755 programs/sum {BIN}/go")
        else:
            host.run(f"install -D -m 644 programs/Sum.class {BIN}/classes/Sum.class")
            host.write(f"{BIN}/java", f'#!/bin/sh\nexec java -cp {BIN}/classes Sum "$@"\n', 0o755)
    assert "sum 57" in host.run(f"kingtask submit --wait {language} 12 45")


def test_a_reload_is_heeded_and_a_bad_one_refused(host: Container):
    host.write(f"{BIN}/slow", "#!/bin/sh\nsleep 3\necho slept\n", 0o755)
    task = host.run("kingtask submit slow").strip()
    pids = [host.show(unit, "MainPID") for unit in UNITS]
    host.run(
        "cp -p /etc/kingtask/worker.yaml /root/; sed -i 's/^concurrency: 4/concurrency: 3/' /etc/kingtask/worker.yaml"
    )
    host.run("systemctl reload kingtask-broker kingtask-worker")
    host.until("systemctl show --value -p StatusText kingtask-worker | grep 'of 3 slots'", "a status of 3 slots")
    assert "slept" in host.run(f"kingtask wait --timeout 30 {task}")
    host.run(
        "sed -i 's/^concurrency: 3/concurrency: many/' /etc/kingtask/worker.yaml; systemctl reload kingtask-worker"
    )
    told = host.until(
        "systemctl show --value -p StatusText kingtask-worker | grep 'reload was refused'", "a status of what is wrong"
    )
    assert "of 3 slots" in told
    assert "/etc/kingtask/worker.yaml:" in told
    assert host.show("kingtask-worker", "ActiveState") == "active"
    host.run("mv /root/worker.yaml /etc/kingtask/; systemctl reload kingtask-worker")
    host.until("! systemctl show -p StatusText kingtask-worker | grep refused", "a status without a complaint")
    assert [host.show(unit, "MainPID") for unit in UNITS] == pids
    assert "reload=done" in host.journal("kingtask-broker")


def test_killed_daemons_are_back_and_no_task_is_lost(host: Container):
    before = [restarts(host, unit) for unit in UNITS]
    host.write(f"{BIN}/brief", "#!/bin/sh\nsleep 0.2\necho $KINGTASK_ID\n", 0o755)
    script = 'for i in $(seq 40); do echo \'{"name": "brief"}\'; done | kingtask submit --from - > /tmp/accepted'
    host.run(script)
    host.run("systemctl kill --kill-whom=main -s KILL kingtask-broker kingtask-worker")
    host.until("kingtask ping", "the broker to be back")
    host.run("grep -c created /tmp/accepted")
    host.until(
        'kingtask wait --timeout 60 $(sed \'s/.*"id":"\\([^"]*\\)".*/\\1/\' /tmp/accepted) > /tmp/done;'
        " [ $(sort -u /tmp/done | wc -l) = 40 ]",
        "all forty to be done",
    )
    for unit, n in zip(UNITS, before, strict=True):
        assert restarts(host, unit) == n + 1
        assert host.show(unit, "ActiveState") == "active"


def test_a_broker_that_hangs_is_started_again(host: Container):
    drop_in(host, "kingtask-broker", "[Service]\nWatchdogSec=2\n")
    before, pid = restarts(host, "kingtask-broker"), host.show("kingtask-broker", "MainPID")
    host.run("systemctl kill --kill-whom=main -s STOP kingtask-broker")
    host.until(f'[ "$(systemctl show --value -p NRestarts kingtask-broker)" -gt {before} ]', "a restart")
    host.until("kingtask ping", "the broker to be back")
    assert host.show("kingtask-broker", "MainPID") != pid
    journal = host.journal("kingtask-broker")
    assert "Watchdog timeout" in journal
    assert "Current thread" in journal, "where it hung is told"
    put_back(host, "kingtask-broker")


def test_a_redis_that_is_away_starts_nothing_again(host: Container):
    drop_in(host, "kingtask-broker", "[Service]\nWatchdogSec=2\n")
    before = restarts(host, "kingtask-broker")
    host.run("systemctl stop redis-server")
    host.until("systemctl show -p StatusText kingtask-broker | grep 'Redis is unreachable'", "a status that says so")
    time.sleep(5)  # two periods of the watchdog: what is shown is that nothing happens
    assert restarts(host, "kingtask-broker") == before
    host.run("systemctl start redis-server")
    host.until("kingtask submit --wait hello again", "a task to be taken")
    put_back(host, "kingtask-broker")


def test_a_stop_waits_for_what_runs_also_beyond_the_units_own_time(host: Container):
    """drain_timeout is 30 s; the worker asks for the time that it needs."""
    drop_in(host, "kingtask-worker", "[Service]\nTimeoutStopSec=1\n")
    host.write(f"{BIN}/slow", "#!/bin/sh\nsleep 8\necho slept\n", 0o755)
    task = host.run("kingtask submit slow").strip()
    host.until(f"kingtask get {task} | grep running", "it to run")
    host.run("systemctl stop kingtask-worker")
    assert host.show("kingtask-worker", "Result") == "success"
    told = host.run(f"kingtask get --json {task}")
    assert '"state":"succeeded"' in told
    assert '"attempt":1' in told
    put_back(host, "kingtask-worker")


def test_what_was_backed_up_is_back(host: Container):
    task = host.run("kingtask submit --delay 1h hello later").strip()
    backup, restore = page_blocks("Backup and restore")
    host.run(backup)
    host.run(f"kingtask cancel {task}")
    forgotten = host.run("kingtask submit hello forgotten").strip()
    host.run(f"kingtask wait {forgotten}")
    host.run(restore)
    host.until("kingtask ping", "the broker to be back")
    assert "scheduled" in host.run(f"kingtask get {task}; kingtask cancel {task}")
    host.run(f"kingtask get {forgotten}", status=7)


def test_only_the_daemons_and_root_reach_redis(host: Container):
    assert host.run("stat -c '%a %U %G' /run/redis/redis-server.sock") == "770 redis kingtask-redis\n"
    tries = "redis-cli -s /run/redis/redis-server.sock flushall 2>&1 || redis-cli -h 127.0.0.1 flushall 2>&1 || true"
    host.write(f"{BIN}/intruder", f"#!/bin/sh\n{tries}\n", 0o755)
    for told in (
        host.run("kingtask submit --wait intruder"),
        *(host.run(tries, user=user) for user in ("member", "stranger", "kingtask-task1")),
    ):
        assert "Permission denied" in told
        assert "Connection refused" in told
    assert "NOAUTH" in host.run("redis-cli -s /run/redis/redis-server.sock flushall", status=None)
    (administrator,) = page_blocks("Users of Redis")
    assert "user default off" in host.run(administrator)
    told = host.run("kingtask doctor -c /etc/kingtask/broker.yaml --worker-config /etc/kingtask/worker.yaml")
    assert "fail" not in told
    assert "password" not in told


def test_a_password_is_a_credential(host: Container):
    password = host.run("cat /etc/kingtask/secrets/worker/redis.password")
    host.write(f"{BIN}/spy", "#!/bin/sh\ncat /run/credentials/*/* /etc/kingtask/secrets/*/* 2>&1\ntrue\n", 0o755)
    told = host.run("kingtask submit --wait spy")
    assert "denied" in told
    assert password not in told


def test_one_configuration_per_instance(host: Container):
    for block in page_blocks("Workers"):
        host.run(block)
    host.run("kingtask submit --wait --queue mail hello mail; systemctl disable --now kingtask-worker@mail")


def test_a_launcher_bounds_an_attempt_by_a_cgroup_of_systemds(host: Container):
    worker = yaml.safe_load(host.run("cat /etc/kingtask/worker.yaml"))
    del worker["run_as"]
    worker |= {"launcher": LAUNCHERS["systemd-run"], "queues": "scope", "work_dir": "/"}
    text = yaml.safe_dump(worker).replace("kingtask-worker.service", "kingtask-worker@scope.service")
    host.write("/etc/kingtask/worker-scope.yaml", text)
    host.write(
        "/run/systemd/system/kingtask-worker@scope.service.d/root.conf", "[Service]\nUser=root\nStateDirectory=\n"
    )
    host.run("systemctl daemon-reload; systemctl start kingtask-worker@scope")
    host.write(f"{BIN}/stay", "#!/bin/sh\nid -un\nsed -n s/^0:://p /proc/self/cgroup\nexec sleep 4\n", 0o755)
    task = host.run("kingtask submit --queue scope stay").strip()
    scopes = "systemctl list-units --no-legend --plain --type=scope 'run-*' | cut -d ' ' -f 1"
    told = host.until(f"scope=$({scopes} | grep .) && systemctl show -p MemoryMax -p TasksMax $scope", "a scope")
    assert told.split() == [f"MemoryMax={512 * 1024**2}", "TasksMax=64"]
    user, cgroup = host.run(f"kingtask wait {task}").split()
    assert (user, cgroup.endswith(".scope")) == ("nobody", True)
    if "memory" in host.run("cat /sys/fs/cgroup/cgroup.controllers"):  # else this machine has it in version 1
        host.write(f"{BIN}/eat", "#!/usr/bin/env python3\nb'x' * (700 * 1024**2)\n", 0o755)
        told = host.run("kingtask submit --wait --queue scope eat", status=1)
        assert "KILL" in told or "out_of_memory" in told
    assert "hello, again" in host.run("kingtask submit --wait --queue scope hello again")
    assert restarts(host, "kingtask-worker@scope") == 0
    host.run("systemctl stop kingtask-worker@scope")
    host.until(f"! {scopes} | grep .", "an end of all scopes")


def test_keys_keep_strangers_out_and_permissions_hold_clients_back(host: Container):
    brokers, client, template, permissions = page_blocks("Keys and permissions")
    host.run("cp -p /etc/kingtask/broker.yaml /etc/kingtask/worker.yaml /root/")
    host.run(brokers)
    told = host.run("kingtask submit --timeout 2 hello stranger", status=5)
    assert "--curve-key" in told
    host.run("cd /root; kingtask keygen alice")
    host.run(f"cd /root\n{client}")
    host.until("journalctl -u kingtask-broker --grep key=added.*alice", "the key to be known")
    host.run("cat /etc/kingtask/keys/broker.key_secret", user="member", status=1)
    alice = "export KINGTASK_CURVE_KEY=/root/alice.key_secret KINGTASK_SERVER_KEY=/etc/kingtask/keys/broker.key;"
    assert "hello, alice" in host.run(f"{alice} kingtask submit --wait hello alice")
    host.until(f"{this_start_of('kingtask-worker')} | grep wakeup=connected", "the worker to be let in")
    host.run(template)
    host.run(permissions)
    host.until(
        f"{this_start_of('kingtask-broker')} | grep -c reload=done | grep -x 2",
        "both reloads to be done",
    )
    assert "default.ops" in host.run(f"{alice} kingtask submit hello alice", status=5)
    assert "audit=denied client=alice op=submit" in host.run("journalctl -u kingtask-broker --grep audit=")
    host.run("mv /root/broker.yaml /root/worker.yaml /etc/kingtask/; systemctl restart kingtask-broker kingtask-worker")


def test_an_upgrade_loses_nothing_and_there_is_a_way_back(host: Container):
    text = "until [ $(readlink /opt/kingtask/venv) = /opt/kingtask/1.1.0 ]; do sleep 0.1; done; sleep 3; echo slept"
    host.write(f"{BIN}/slow", f"#!/bin/sh\n{text}\n", 0o755)
    later = host.run("kingtask submit --delay 40 hello later").strip()
    running = host.run("kingtask submit slow").strip()
    host.until(f"kingtask get {running} | grep running", "it to run")
    (upgrade,) = page_blocks("Upgrade")
    host.run(upgrade)
    assert "scheduled" in host.run(f"kingtask get {later}")
    assert NEXT in host.run("kingtask --version")
    assert f'"version":"{NEXT}"' in host.run("kingtask ping --json")
    host.until(f"journalctl -u kingtask-worker --grep 'worker=started.*version={NEXT}'", "a worker of that release")
    assert '"attempt":1' in host.run(f"kingtask wait --json {running}")
    assert "hello, later" in host.run(f"kingtask wait {later}")
    host.run("journalctl -u kingtask-worker --grep library=missing", status=1)
    host.run("ln -sfn /opt/kingtask/1.0.0 /opt/kingtask/venv; systemctl restart kingtask-broker kingtask-worker")
    assert "hello, again" in host.run("kingtask submit --wait hello again")


def test_a_worker_that_is_upgraded_before_the_broker_waits_for_it(host: Container):
    (administrator,) = page_blocks("Users of Redis")
    host.run(administrator.replace("acl list", "function flush"))  # of both releases; the broker loads its own again
    assert "hello, again" in host.run("kingtask submit --wait hello again")
    host.run("ln -sfn /opt/kingtask/1.1.0 /opt/kingtask/venv; systemctl restart kingtask-worker")
    host.until(f"{this_start_of('kingtask-worker')} | grep 'library=missing.*functions of kingtask {NEXT}'", "its log")
    host.until("kingtask stats | grep unfit", "stats to say so")
    waiting = host.run("kingtask submit hello waited").strip()
    assert "ready" in host.run(f"kingtask get {waiting}")
    host.run("systemctl restart kingtask-broker")
    assert "hello, waited" in host.run(f"kingtask wait {waiting}")
    host.run("ln -sfn /opt/kingtask/1.0.0 /opt/kingtask/venv; systemctl restart kingtask-broker kingtask-worker")


def test_the_target_stops_and_starts_all_of_it(host: Container):
    # It does not wait for what it stops and starts.
    for verb, state in (("stop", "inactive"), ("start", "active")):
        host.run(f"systemctl {verb} kingtask.target")
        for unit in UNITS:
            host.until(f'[ "$(systemctl show --value -p ActiveState {unit})" = {state} ]', f"{unit} to be {state}")
    host.run("kingtask submit --wait hello again")


def test_the_uninstallation_of_the_page_leaves_nothing(host: Container):
    programs, rest = page_blocks("Uninstall")
    host.run(programs)
    left = "find / -xdev -name '*kingtask*' -not -path '/srv/*' -not -path '/tmp/*' -not -path '/proc/*'"
    assert host.run(f"{left} -not -path '/var/log/journal/*' | sort").split() == [
        "/etc/kingtask",
        "/etc/redis/kingtask.acl",
        "/usr/local/lib/kingtask",
        "/var/backups/kingtask",
    ]
    host.run("test -d /var/lib/redis/appendonlydir")
    host.run("getent passwd | grep kingtask", status=1)
    host.run(rest)
    assert host.run("ls -d /etc/kingtask* /usr/local/lib/kingtask* /var/lib/redis* 2>/dev/null", status=2) == ""
