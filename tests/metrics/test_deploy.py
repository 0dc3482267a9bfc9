"""What is shipped to watch an installation with: rules that fire when they should, a dashboard of what there is."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.metrics.conftest import Metered
from tests.metrics.expressions import ALERTS, TOP, alerts, dashboard, family_of, queries
from tests.metrics.expressions import names as names_in
from tests.metrics.tools import program
from tests.processes import PATIENCE_S, until
from tests.servers import die_with_parent, free_port

pytestmark = pytest.mark.long

BROKER, WORKER = 'job="kingtask", instance="b"', 'job="kingtask", instance="w"'
QUEUE = f'{BROKER}, queue="mail"'
MINUTES = 380


def flat(value: float) -> str:
    return f"{value}+0x{MINUTES}"


def rising(a_minute: float) -> str:
    return f"0+{a_minute}x{MINUTES}"


def slow(metric: str, labels: str) -> dict[str, str]:
    """A histogram of which all is slow."""
    return {f'{metric}_bucket{{{labels}, le="0.1"}}': flat(0), f'{metric}_bucket{{{labels}, le="3600"}}': rising(60)}


HEALTHY = {
    f"up{{{BROKER}}}": flat(1),
    f"up{{{WORKER}}}": flat(1),
    f'kingtask_build_info{{{BROKER}, program="broker", version="1"}}': flat(1),
    f'kingtask_build_info{{{WORKER}, program="worker", version="1"}}': flat(1),
    f"kingtask_workers{{{BROKER}}}": flat(1),
    f"kingtask_broker_ticks_total{{{BROKER}}}": rising(60),
    f'kingtask_redis_up{{{BROKER}, purpose="submit"}}': flat(1),
    f'kingtask_redis_connects_total{{{BROKER}, purpose="submit"}}': flat(1),
    f'kingtask_redis_call_seconds_bucket{{{BROKER}, function="tick", le="0.1"}}': rising(60),
    f'kingtask_redis_call_seconds_bucket{{{BROKER}, function="tick", le="+Inf"}}': rising(60),
    **{
        f'kingtask_broker_refusals_total{{{BROKER}, code="{code}"}}': flat(0)
        for code in ("store_full", "not_confirmed", "busy", "cut_off", "connection_refused", "internal")
    },
    f'kingtask_broker_refusals_total{{{BROKER}, code="not_found"}}': rising(9),
    f"kingtask_redis_clock_offset_seconds{{{BROKER}}}": flat(-0.002),
    f"kingtask_queue_ready{{{QUEUE}}}": flat(3),
    f"kingtask_queue_oldest_ready_seconds{{{QUEUE}}}": flat(2),
    f"kingtask_queue_paused{{{QUEUE}}}": flat(0),
    f"kingtask_queue_started_total{{{QUEUE}}}": rising(60),
    f'kingtask_queue_finished_total{{{QUEUE}, outcome="failed"}}': rising(1),
    f'kingtask_queue_finished_total{{{QUEUE}, outcome="succeeded"}}': rising(60),
    f"kingtask_queue_lost_total{{{QUEUE}}}": flat(4),
    f'kingtask_worker_lateness_seconds_bucket{{{WORKER}, queue="mail", le="0.1"}}': rising(60),
    f'kingtask_worker_lateness_seconds_bucket{{{WORKER}, queue="mail", le="+Inf"}}': rising(60),
    f"kingtask_tasks{{{BROKER}}}": flat(10),
    f"kingtask_tasks_limit{{{BROKER}}}": flat(100),
    f"kingtask_queues{{{BROKER}}}": flat(10),
    f"kingtask_queues_limit{{{BROKER}}}": flat(100),
    f'kingtask_log_lines_total{{{BROKER}, level="error"}}': flat(7),
    f'kingtask_log_lines_total{{{BROKER}, level="info"}}': rising(7),
    f"kingtask_worker_unfit{{{WORKER}}}": flat(0),
    f'kingtask_worker_broker_up{{{WORKER}, endpoint="e"}}': flat(1),
    f"kingtask_worker_ends_unconfirmed{{{WORKER}}}": "0 3 0 1 " * 95,
    f"kingtask_worker_slots{{{WORKER}}}": flat(4),
    f"kingtask_worker_slots_used{{{WORKER}}}": flat(4),
    f"process_open_fds{{{BROKER}}}": flat(90),
    f"process_max_fds{{{BROKER}}}": flat(65536),
}
"""An installation that is busy and well."""

FIRES: dict[str, dict[str, str]] = {
    "KingtaskDown": {f"up{{{WORKER}}}": flat(0)},
    "KingtaskNoBroker": {f'kingtask_build_info{{{BROKER}, program="broker", version="1"}}': "1 stale"},
    "KingtaskNoWorker": {f"kingtask_workers{{{BROKER}}}": flat(0)},
    "KingtaskNotTicking": {f"kingtask_broker_ticks_total{{{BROKER}}}": flat(60)},
    "KingtaskRedisAway": {f'kingtask_redis_up{{{BROKER}, purpose="submit"}}': flat(0)},
    "KingtaskRedisUnsteady": {f'kingtask_redis_connects_total{{{BROKER}, purpose="submit"}}': rising(0.5)},
    "KingtaskRedisSlow": slow("kingtask_redis_call_seconds", f'{BROKER}, function="tick"')
    | {f'kingtask_redis_call_seconds_bucket{{{BROKER}, function="tick", le="+Inf"}}': rising(60)},
    "KingtaskStoreFull": {f'kingtask_broker_refusals_total{{{BROKER}, code="store_full"}}': rising(1)},
    "KingtaskNotConfirmed": {f'kingtask_broker_refusals_total{{{BROKER}, code="not_confirmed"}}': rising(1)},
    "KingtaskClockOff": {f"kingtask_redis_clock_offset_seconds{{{BROKER}}}": flat(-2)},
    "KingtaskBacklog": {f"kingtask_queue_oldest_ready_seconds{{{QUEUE}}}": rising(60)},
    "KingtaskQueueStalled": {f"kingtask_queue_started_total{{{QUEUE}}}": flat(60)},
    "KingtaskQueuePaused": {f"kingtask_queue_paused{{{QUEUE}}}": flat(1)},
    "KingtaskTasksFail": {f'kingtask_queue_finished_total{{{QUEUE}, outcome="failed"}}': rising(30)},
    "KingtaskAttemptsLost": {f"kingtask_queue_lost_total{{{QUEUE}}}": rising(0.2)},
    "KingtaskLate": slow("kingtask_worker_lateness_seconds", f'{WORKER}, queue="mail"')
    | {f'kingtask_worker_lateness_seconds_bucket{{{WORKER}, queue="mail", le="+Inf"}}': rising(60)},
    "KingtaskNearlyFull": {f"kingtask_tasks{{{BROKER}}}": flat(90)},
    "KingtaskBusy": {f'kingtask_broker_refusals_total{{{BROKER}, code="busy"}}': rising(1)},
    "KingtaskCutOff": {f'kingtask_broker_refusals_total{{{BROKER}, code="cut_off"}}': rising(1)},
    "KingtaskConnectionsRefused": {f'kingtask_broker_refusals_total{{{BROKER}, code="connection_refused"}}': rising(1)},
    "KingtaskFaults": {f'kingtask_log_lines_total{{{BROKER}, level="error"}}': rising(1)},
    "KingtaskWorkerUnfit": {f"kingtask_worker_unfit{{{WORKER}}}": flat(1)},
    "KingtaskWorkerMissesWakeups": {f'kingtask_worker_broker_up{{{WORKER}, endpoint="e"}}': flat(0)},
    "KingtaskResultsUnconfirmed": {f"kingtask_worker_ends_unconfirmed{{{WORKER}}}": flat(2)},
    "KingtaskSlotsTaken": {f"kingtask_queue_oldest_ready_seconds{{{QUEUE}}}": flat(90)},
    "KingtaskDescriptors": {f"process_open_fds{{{BROKER}}}": flat(60000)},
    "KingtaskVersionsDiffer": {f'kingtask_build_info{{{WORKER}, program="worker", version="2"}}': flat(1)},
}
"""What is different when an alert fires; each alone, so that no other one does, but for ALSO."""

ALSO = {"KingtaskBacklog": {"KingtaskSlotsTaken"}}
MINUTES_OF = {"KingtaskQueuePaused": 250, "KingtaskVersionsDiffer": 370}


def case(series: dict[str, str], firing: set[str], minutes: int = 50) -> dict[str, Any]:
    """For `promtool test rules`: exactly these fire after so long."""
    samples = [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in sorted(firing)]
    expression = 'group by (alertname) (ALERTS{alertstate="firing"})'
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [{"expr": expression, "eval_time": f"{minutes}m", "exp_samples": samples}],
    }


def test_rules_and_configuration_are_valid() -> None:
    tool = program("promtool")
    for check, path in (("rules", ALERTS), ("config", ALERTS.with_name("prometheus.yml"))):
        checked = subprocess.run([tool, "check", check, path], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.timeout(240)  # 35 s of computing on a busy machine
@pytest.mark.parametrize(("names", "every"), [(set(FIRES) - set(MINUTES_OF), "1m"), (set(MINUTES_OF), "5m")])
def test_each_alert_fires_when_it_should_and_none_when_all_is_well(names: set[str], every: str, tmp_path: Path) -> None:
    tool = program("promtool")
    cases = [case(HEALTHY, set())]
    for name in sorted(names):
        series = {**HEALTHY, **FIRES[name]}
        cases.append(case(series, {name} | ALSO.get(name, set()), MINUTES_OF.get(name, 50)))
    path = tmp_path / "tests.yml"
    path.write_text(yaml.safe_dump({"rule_files": [str(ALERTS)], "evaluation_interval": every, "tests": cases}))
    tested = subprocess.run([tool, "test", "rules", path], capture_output=True, text=True, check=False)
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_every_alert_is_tried_and_says_what_to_do() -> None:
    defined = [rule["alert"] for rule in alerts()]
    assert len(defined) == len(set(defined))
    assert set(FIRES) == set(defined)
    page = (TOP / "deploy" / "README.md").read_text()
    rows = re.findall(r"^\| `(Kingtask\w+)` \| [^|]+ \|$", page, re.MULTILINE)
    assert sorted(rows) == sorted(defined)
    for rule in alerts():
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"]["summary"]


def test_every_name_in_rules_and_dashboard_is_told_by_a_daemon(metered: Metered) -> None:
    known = {*metered.of_broker().heads, *metered.of_worker().heads, "up"}
    for where, expression in [(rule["alert"], rule["expr"]) for rule in alerts()] + list(queries()):
        used = names_in(expression)
        assert used, where
        unknown = {name for name in used if family_of(name, known) not in known}
        assert not unknown, where
    shown = {family_of(name, known) for _, expression in queries() for name in names_in(expression)}
    assert {"kingtask_queue_ready", "kingtask_worker_lateness_seconds", "kingtask_redis_up"} <= shown


def test_the_dashboard_can_be_laid_out() -> None:
    content = dashboard()
    panels = content["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    variables = {variable["name"] for variable in content["templating"]["list"]}
    assert set(re.findall(r"\$\{?(\w+)\}?", json.dumps(panels))) <= variables | {"__rate_interval"}


class Prometheus:
    """A real server that scrapes both daemons every second, with the shipped rules."""

    def __init__(self, directory: Path, metered: Metered) -> None:
        self._url = f"http://127.0.0.1:{(port := free_port())}"
        config = yaml.safe_load(ALERTS.with_name("prometheus.yml").read_text())
        config["global"]["scrape_interval"] = "1s"
        config["rule_files"] = [str(ALERTS)]
        config["scrape_configs"][0]["static_configs"] = [
            {"targets": [daemon.config["metrics_addr"] for daemon in metered.both.values()]}
        ]
        path = directory / "prometheus.yml"
        path.write_text(yaml.safe_dump(config))
        self.log = directory / "log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    program("prometheus"),
                    f"--config.file={path}",
                    f"--storage.tsdb.path={directory / 'data'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                ],
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,  # noqa: PLW1509  (prctl is all it does)
            )

    def get(self, path: str, **query: str) -> Any:
        url = f"{self._url}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
            return json.load(answer)["data"]

    def targets(self) -> list[dict[str, Any]]:
        assert self._process.poll() is None, self.log.read_text()
        try:
            found: list[dict[str, Any]] = self.get("targets")["activeTargets"]
        except OSError:  # not yet
            return []
        return found

    def value(self, expression: str) -> float | None:
        result = self.get("query", query=expression)["result"]
        return float(result[0]["value"][1]) if result else None

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(PATIENCE_S)


def test_a_real_prometheus_reads_it_all(metered: Metered, tmp_path: Path) -> None:
    program("prometheus")
    client = metered.client()
    server = Prometheus(tmp_path, metered)
    try:
        until(lambda: [t["health"] for t in server.targets()] == ["up", "up"], lambda: f"{server.targets()}")
        client.submit("ledger", env=metered.env).wait(PATIENCE_S)
        counted = 'kingtask_queue_finished_total{queue="default", outcome="succeeded"}'
        until(lambda: server.value(counted) == 1, "a task that succeeded")
        until(lambda: server.value("sum(kingtask_worker_lateness_seconds_count)") == 1, "how late it was")
        for rule in alerts():
            server.get("query", query=rule["expr"])  # an error is an HTTPError

        def empty() -> list[str]:
            return [title for title, expression in queries() if not server.get("query", query=expression)["result"]]

        until(lambda: empty() == ["Refusals by code"], lambda: f"a sample in every panel, but for {empty()}")
        groups = server.get("rules")["groups"]
        assert {rule["health"] for group in groups for rule in group["rules"]} <= {"ok", "unknown"}
    finally:
        server.stop()
    for daemon in metered.both.values():
        assert "level=error" not in daemon.text()


def test_logrotate_takes_the_file_and_nothing_is_lost(tmp_path: Path) -> None:
    tool = program("logrotate")
    directory = tmp_path / "log"
    directory.mkdir(mode=0o755)
    text = (TOP / "deploy" / "logrotate" / "kingtask").read_text()
    path = tmp_path / "kingtask"
    path.write_text(re.sub(r"^ *su .*$", "", text.replace("/var/log/kingtask", str(directory)), flags=re.MULTILINE))
    path.chmod(0o644)
    with Metered() as rig:
        rig.start_broker(log_path=str(directory), log_level="debug")
        with rig.client() as client:
            client.submit("ledger", delay=3600)
            until(lambda: "submit=scheduled" in (directory / "broker.log").read_text(), "a line")
            subprocess.run([tool, "--force", "--state", tmp_path / "state", path], check=True)
            rotated = directory / "broker.log.1"
            assert "submit=scheduled" in rotated.read_text()
            client.submit("ledger", delay=3600)
            fresh = directory / "broker.log"
            until(lambda: fresh.exists() and "submit=scheduled" in fresh.read_text(), "a line in a new file")
            assert rotated.read_text().count("submit=scheduled") == 1
