"""The cases: what is started, what is asked, what happens meanwhile. CATALOGUE.md defines each name."""

from __future__ import annotations

from dataclasses import replace

from tests.faults import edge_stories as e
from tests.faults import fleet as f
from tests.faults import host_stories as h
from tests.faults import isolation_stories as i
from tests.faults import limit_stories as m
from tests.faults import reload_stories as r
from tests.faults import siege_stories as g
from tests.faults import stories as s
from tests.faults import worker_stories as w
from tests.faults.layout import LINKS, Fleet, Layout
from tests.faults.play import Again, Case, FaultStory
from tests.faults.rules import INVARIANTS, Rules

ALL = {"now": 30.0, "later": 10.0, "failing": 4.0, "long": 0.5, "once": 4.0, "shared": 8.0}
NOW = {"now": 80.0, "shared": 20.0}
LIGHT = {"now": 5.0, "later": 2.0}
LINKED = Layout(proxied=LINKS)
PLACES = ("after_claim", "after_spawn", "after_exit", "before_complete", "after_complete")
ALWAYS = 1_000_000


def for_ever(story: FaultStory) -> tuple[Again, ...]:
    """One story that goes on until the case is over."""
    return (Again(story=story, every=(1, 1), times=1),)


BROKER = [
    Case(
        name="F01",
        what="kill -9 of a broker every few seconds, back after up to a second",
        loads=ALL,
        faults=(Again(story=s.kill(s.a_broker, (0, 1)), every=(1.5, 3)),),
    ),
    Case(
        name="F02",
        what="the broker dies when Redis has answered and nothing is confirmed",
        loads=NOW,
        layout=Layout(brokers=1),
        faults=for_ever(s.failpoint(s.first_broker, ("after_submit_script",), (1, 20), ALWAYS)),
    ),
    Case(
        name="F03",
        what="the broker dies when submits are confirmed and not answered",
        loads=NOW,
        layout=Layout(brokers=1),
        faults=for_ever(s.failpoint(s.first_broker, ("before_ack",), (1, 20), ALWAYS)),
    ),
    Case(
        name="F04",
        what="a broker is stopped for some seconds and goes on",
        loads=ALL,
        faults=(Again(story=s.stop(s.a_broker, (2, 4)), every=(5, 6)),),
    ),
    Case(
        name="F09",
        what="SIGTERM of a broker under some hundred tasks a second: what it accepted is answered",
        loads={"now": 150.0, "bulk": 200.0},
        faults=(Again(story=s.end_in_order(s.a_broker, 10.0), every=(2, 3)),),
        check=s.no_client_saw_an_error,
        alone=True,
    ),
    Case(
        name="F10",
        what="SIGHUP with good and bad configurations: brokers and workers change, and nobody notices",
        loads=ALL,
        rules=Rules(needs_faults=False),
        story=r.reloads,
        check=s.no_client_saw_an_error,
        long_seconds=20.0,
    ),
    Case(
        name="F11",
        what="both brokers are away when thousands of tasks fall due, and start again",
        loads={"parked": 400.0, "now": 5.0},
        story=s.all_brokers_away,
        long_seconds=20.0,  # it happens once, and two workers may not end more in time
    ),
    Case(
        name="F12",
        what="a second broker on the same address ends with a clear error",
        loads=NOW,
        story=s.broker_twice,
        seconds=4.0,
    ),
]

WORKER = [
    Case(
        name="F13",
        what="40 tasks, the worker's whole tree killed with four in flight",
        loads={"later": 1.0},
        layout=Layout(workers=1),
        story=w.kill_the_tree,
    ),
    Case(
        name="F14",
        what="kill -9 of the worker's own process only: what it ran is gone within a second",
        loads={"long": 1.5, "now": 10.0},  # half of the workers is away for much of the time
        faults=(Again(story=w.kill_main_only, every=(3, 3)),),
    ),
    Case(
        name="F15",
        what="a worker is stopped for two leases and goes on: what it held is fenced",
        loads={"long": 2.0, "now": 10.0, "once": 1.0},
        faults=(Again(story=s.stop(s.first_worker, (5, 6)), every=(8, 9)),),
        seconds=16.0,
        check=w.some_fenced,
    ),
    Case(
        name="F16",
        what="a program that is stopped is ended by its time limit",
        loads=LIGHT,
        rules=Rules(needs_faults=False),
        story=w.self_stopping,
        short=False,
    ),
    Case(
        name="F17",
        what="a worker dies before and after it claims, spawns, sees an end, reports it",
        loads={**ALL, "once": 20.0},
        faults=for_ever(s.failpoint(s.first_worker, PLACES, (1, 12), ALWAYS)),
    ),
    Case(
        name="F18",
        what="SIGTERM of a worker amid long tasks: handed back, not lost",
        loads={"long": 2.0, "now": 10.0},
        layout=Layout(worker={"drain_timeout": 0.2}),
        faults=(Again(story=w.drain, every=(4, 5)),),
        check=w.nothing_lost_something_released,
    ),
    Case(
        name="F19",
        what="a task that kills its worker fails as lost; the others go on",
        loads=LIGHT,
        layout=Layout(max_lost=3),
        rules=Rules(loses_anytime=True),
        story=w.poison,
    ),
    Case(
        name="F20",
        what="fork bombs within a process limit, as users of their own: other tasks are not affected",
        loads=LIGHT,
        layout=Layout(workers=1, prepare=i.users),
        story=i.fork_bomb,
    ),
    Case(
        name="F21",
        what="memory hogs under a limit: told as such, and the worker's memory stays flat",
        loads=LIGHT,
        layout=Layout(workers=1, prepare=i.users),
        rules=Rules(needs_faults=False),
        story=i.memory_hog,
    ),
    Case(
        name="F22",
        what="200 MB of output: the worker's memory stays flat",
        loads=LIGHT,
        rules=Rules(needs_faults=False),
        story=w.flood,
    ),
    Case(
        name="F23",
        what="a process leaves its session and keeps the pipes",
        loads=LIGHT,
        rules=Rules(needs_faults=False),
        story=w.daemonize,
    ),
    Case(
        name="F24",
        what="a program ignores TERM",
        loads=LIGHT,
        rules=Rules(needs_faults=False),
        story=w.deaf,
        alone=True,
        seconds=5.0,
        long_seconds=10.0,
    ),
    Case(
        name="F26",
        what="thousands of short tasks: no zombie, no descriptor more",
        loads={"bulk": 300.0},
        rules=Rules(needs_faults=False),
        check=w.no_descriptor_more,
        long_seconds=240.0,
    ),
    Case(
        name="F31",
        what="as another user, a program tries the worker, its files, its executables and Redis: all is denied",
        loads=LIGHT,
        layout=Layout(prepare=i.users_and_a_password),
        rules=Rules(needs_faults=False, silent=frozenset({"intruder"})),
        story=i.intrusion,
    ),
    Case(
        name="F29",
        what="the host refuses a worker every tenth process",
        loads=ALL,
        faults=for_ever(
            h.injected(
                "every tenth spawn of worker 1 is refused",
                lambda stage: stage.workers[0].pid,
                "vfork,clone,clone3",
                "error=EAGAIN:when=5+10",
                (6, 6),
            )
        ),
        check=w.no_exec_failure,
    ),
]

STORE = [
    Case(
        name="F32",
        what="kill -9 of Redis every few seconds, its fdatasync slowed by 0.2 s",
        loads={"now": 20.0, "later": 5.0, "failing": 2.0, "once": 2.0, "shared": 4.0},
        faults=(
            Again(story=s.redis_kill((0, 1)), every=(3, 4), after=3),
            Again(
                story=h.injected(
                    "fdatasync of redis takes 0.2 s",
                    lambda stage: stage.redis.pid if stage.redis.running else None,
                    "fdatasync",
                    "delay_enter=200000",
                    (2, 4),
                ),
                every=(4, 5),
            ),
        ),
        seconds=12.0,
        long_seconds=400.0,  # a hundred kills
    ),
    Case(
        name="F37",
        what="Redis answers nobody for up to three seconds, again and again",
        loads=ALL,
        faults=(Again(story=s.redis_sleep((0.2, 3)), every=(3, 5)),),
    ),
    Case(
        name="F38",
        what="Redis pauses writes, and drops all its clients each second",
        loads=ALL,
        faults=(
            Again(story=s.redis_pause(2), every=(5, 6)),
            Again(story=s.redis_tell("CLIENT KILL", "CLIENT", "KILL", "TYPE", "normal"), every=(1, 1)),
        ),
    ),
    Case(
        name="F42",
        what="Redis forgets its functions every two seconds",
        loads=ALL,
        faults=(Again(story=s.redis_tell("FUNCTION FLUSH", "FUNCTION", "FLUSH"), every=(2, 2)),),
    ),
    Case(
        name="F43",
        what="a script keeps Redis busy for three seconds",
        loads=ALL,
        faults=(Again(story=s.redis_busy(3), every=(5, 6)),),
    ),
]

STORE += [
    Case(
        name="F39",
        what="Redis is full while thousands of tasks wait: submits are refused, the queue drains",
        loads={"big": 6.0, "bulk": 200.0, "later": 5.0},
        layout=Layout(client_timeout_s=2.0),
        rules=Rules(kept_bytes=2_000),  # a full Redis takes an outcome with its outputs cut
        faults=(Again(story=s.redis_full(4), every=(6, 7), after=2),),
        check=s.some_refused("store_full"),
    ),
    Case(
        name="F40",
        what="the disk of Redis is full for some seconds; it exits, and is started when there is room",
        loads={**LIGHT, "shared": 4.0},
        layout=Layout(
            prepare=lambda stage: h.small_disk(stage.redis, 16), cleanup=lambda stage: h.remove_disk(stage.redis)
        ),
        faults=(Again(story=h.disk_full(3), every=(6, 7), after=2),),
    ),
    Case(
        name="F41",
        what="everything is started, in any order, while Redis loads for seconds",
        loads=ALL,
        story=s.everything_starts_while_redis_loads,
    ),
    Case(
        name="F46",
        what="a broker refuses a Redis that would evict",
        loads=LIGHT,
        story=s.redis_would_evict,
        seconds=3.0,
    ),
    Case(
        name="F79",
        what="Redis's clock steps forward by a minute: what was due then starts, leases end at once",
        loads=ALL,
        layout=Layout(prepare=lambda stage: h.own_clock(stage.redis, stage.directory)),
        faults=(Again(story=h.step(60, (2, 3)), every=(3, 4)),),
    ),
    Case(
        name="F79B",
        what="Redis's clock steps back by some seconds: everything is that much later",
        loads=ALL,
        layout=Layout(prepare=lambda stage: h.own_clock(stage.redis, stage.directory)),
        # What was claimed just before a step begins, by the clock of just after it, before its instant.
        rules=Rules(invariants=frozenset(INVARIANTS) - {"I8"}, steps_clock=True, drain_extra_ms=60_000),
        faults=(Again(story=h.step(-5, (1, 2)), every=(3, 4)),),
    ),
]

NETWORK = [
    Case(
        name="F58",
        what="one connection after another is cut for a while, both ways or one",
        loads=ALL,
        layout=LINKED,
        faults=(Again(story=s.cut(("",), (0.5, 4), ("both", "up", "down")), every=(1, 2)),),
    ),
    Case(
        name="F62",
        what="connections to Redis are reset every 10 kB",
        loads=ALL,
        layout=LINKED,
        faults=(Again(story=s.spoil(("broker", "worker 1", "worker 2"), (2, 3), reset_after=10_000), every=(4, 5)),),
    ),
]

NETWORK += [
    Case(
        name="F60",
        what="each connection in turn is half open for longer than any patience",
        loads=ALL,
        layout=LINKED,
        faults=(Again(story=s.cut(("",), (6, 7)), every=(3, 3)),),
        seconds=12.0,
    ),
]

NETWORK += [
    Case(
        name="F61",
        what="connections to Redis are slow: 0.1 s and more on the way, then byte by byte",
        loads={"now": 10.0, "later": 4.0, "long": 0.5, "once": 2.0},
        layout=LINKED,
        faults=(
            Again(story=s.spoil(("broker", "worker 1"), (4, 4), delay_s=0.1, jitter_s=0.05), every=(9, 9)),
            Again(story=s.spoil(("broker", "worker 1"), (3, 3), slice=1), every=(9, 9), after=6),
        ),
        seconds=12.0,
        short=False,
    ),
    Case(
        name="F85",
        what="everything at once: kills, stops, cuts, a Redis that sleeps, pauses, forgets and dies",
        loads={**ALL, "bulk": 100.0, "cancel": 3.0, "big": 1.0},
        layout=LINKED,
        faults=(
            Again(story=s.kill(s.a_broker), every=(9, 20)),
            Again(story=s.kill(s.a_worker), every=(9, 20)),
            Again(story=s.stop(s.a_broker, (1, 5)), every=(15, 30)),
            Again(story=s.stop(s.a_worker, (1, 6)), every=(15, 30)),
            Again(story=s.redis_kill(), every=(15, 30), after=6),
            Again(story=s.redis_sleep((0.2, 3)), every=(15, 30), after=4),
            Again(story=s.redis_tell("FUNCTION FLUSH", "FUNCTION", "FLUSH"), every=(10, 20)),
            Again(story=s.cut(("",), (0.5, 6), ("both", "up", "down")), every=(5, 15)),
        ),
        seconds=20.0,
        long_seconds=420.0,
        short=False,
    ),
]

EDGE_LAYOUT = Layout(brokers=1, workers=1, clients=1)
EDGE = [
    Case(
        name=name,
        what=what,
        loads={"now": 20.0, "later": 5.0},
        layout=EDGE_LAYOUT,
        faults=(Again(story=e.attack(kind, 6.0, wakeups=wakeups, peers=peers), every=(8, 8), after=2, times=1),),
        check=e.memory_is_flat,
        alone=True,
        seconds=7.0,
        long_seconds=15.0,
    )
    for name, kind, peers, wakeups, what in (
        ("F64", "garbage", 1, False, "other protocols, noise, greetings cut at every byte"),
        ("F65", "lengths", 1, False, "frames that announce up to 2^64-1 bytes"),
        ("F67", "frames", 1, False, "messages of 200,000 frames, of none, of delimiters only"),
        ("F69", "churn", 1, False, "connections that come and go"),
        ("F70", "deaf", 1, False, "requests without end from one that reads no reply"),
        ("F72", "topics", 1, True, "subscriptions without end"),
        ("F73", "stopped", 1, True, "fifty subscribers that read nothing"),
        ("B1", "messages", 1, False, "whole messages that are wrong in any way"),
    )
]

SIEGE = Case(
    name="F86",
    what="every kind of hostile peer without a key at once: good clients go on",
    loads=LIGHT,
    layout=Layout(brokers=1, workers=1, clients=1, prepare=g.one_broker_for_all),
    rules=Rules(rss_growth_bytes=g.GROWTH_BYTES, fd_growth=g.OPEN_FILES, ping_ms=3_000),
    faults=for_ever(g.siege),
    check=s.no_client_saw_an_error,
    alone=True,
    seconds=140.0,
    long_seconds=140.0,
)

SIEGE_WITH_KEYS = replace(
    SIEGE,
    name="F86B",
    what="every kind of hostile peer with a key, and unknown keys, at once: good clients go on",
    faults=for_ever(g.siege_with_keys),
)

UPGRADE = [
    Case(
        name="F82",
        what="clients of other versions are refused cleanly",
        loads=LIGHT,
        story=e.other_versions,
        seconds=3.0,
    ),
    Case(
        name="F83",
        what="every process is restarted in turn under load: no client sees an error",
        loads={"now": 30.0, "later": 5.0, "shared": 5.0, "once": 3.0},
        story=s.rolling_restart,
        check=s.no_client_saw_an_error,
    ),
]

FAILOVER = Rules(forgets=True, acks=frozenset({"replicas"}), drain_extra_ms=60_000)
FLEET = {"now": 40.0, "later": 5.0, "failing": 2.0, "once": 4.0, "shared": 8.0}
ISOLATED = Layout(fleet=Fleet(parted=True), ack="replicas", client_timeout_s=8.0)
SPLIT = Fleet(parted=True, sentinels=(1, 3, 3), daemons=(1, 3))
SENTINEL = [
    Case(
        name="F47",
        what="kill -9 of the primary, again and again; OKs wait for both replicas",
        loads=FLEET,
        layout=Layout(fleet=Fleet(), ack="replicas", client_timeout_s=8.0),
        rules=FAILOVER,
        faults=(Again(story=f.kill_primary, every=(8, 9), after=2),),
        seconds=15.0,
    ),
    Case(
        name="F48",
        what="the primary is stopped, another takes over, the former one goes on",
        loads=FLEET,
        layout=Layout(fleet=Fleet(), ack="replicas", client_timeout_s=8.0),
        rules=FAILOVER,
        faults=(Again(story=f.stop_primary, every=(12, 14), after=2),),
        seconds=12.0,
    ),
    Case(
        name="F49",
        what="primary, broker and worker are cut off from the others; OKs wait for both replicas",
        loads=FLEET,
        layout=ISOLATED,
        rules=FAILOVER,
        faults=(Again(story=f.part(1), every=(12, 14), after=2, times=1),),
        seconds=12.0,
    ),
    Case(
        name="F50",
        what="primary and one replica are cut off from the other; OKs wait for both",
        loads=FLEET,
        layout=Layout(fleet=SPLIT, ack="replicas", client_timeout_s=8.0),
        rules=FAILOVER,
        faults=(Again(story=f.part(1, 2), every=(12, 14), after=2, times=1),),
        seconds=12.0,
    ),
    Case(
        name="F59",
        what="any two of three machines do not hear each other: all hear a majority, each another one",
        loads=FLEET,
        layout=ISOLATED,
        rules=FAILOVER,
        faults=(Again(story=f.ring, every=(12, 14), after=2),),
        short=False,
    ),
    Case(
        name="F51",
        what="both replicas are killed: nothing is confirmed until they are back",
        loads=FLEET,
        layout=Layout(fleet=Fleet(), ack="replicas", client_timeout_s=8.0),
        rules=FAILOVER,
        faults=(Again(story=f.kill_replicas, every=(8, 9), after=2),),
        short=False,
    ),
    Case(
        name="F52",
        what="SENTINEL FAILOVER every ten seconds",
        loads=FLEET,
        layout=Layout(fleet=Fleet(), ack="replicas", client_timeout_s=8.0),
        rules=FAILOVER,
        faults=(Again(story=f.fail_over, every=(9, 11), after=2),),
        short=False,
    ),
    Case(
        name="F53",
        what="all sentinels are away: it goes on with the primary that is known",
        loads=FLEET,
        layout=Layout(fleet=Fleet(), ack="replicas", client_timeout_s=8.0),
        rules=FAILOVER,
        faults=(Again(story=f.kill_sentinels, every=(8, 9), after=2),),
        check=s.no_client_saw_an_error,
        short=False,
    ),
]

CONTROLS = [
    Case(
        name="F13-",
        what="the same with claims that leave no lease: tasks are lost",
        loads={"half": 10.0},
        layout=Layout(variant="take_by_pop"),
        faults=(Again(story=s.kill(s.a_worker, (0, 0.5)), every=(2, 3)),),
        seconds=6.0,
        caught_by=frozenset({"I1"}),
    ),
    Case(
        name="F15-",
        what="the same without a look at the fence: an outcome comes from an attempt that was given away",
        loads={"long": 4.0, "now": 10.0},
        layout=Layout(variant="no_fence"),
        faults=(Again(story=s.stop(s.first_worker, (5, 6)), every=(8, 9)),),
        seconds=10.0,
        caught_by=frozenset({"I3", "I4"}),
    ),
    Case(
        name="F49-",
        what="the same without a barrier: OKs are lost",
        loads=FLEET,
        layout=replace(ISOLATED, variant="no_barrier"),
        rules=FAILOVER,
        faults=(Again(story=f.part(1), every=(12, 14), after=2, times=1),),
        caught_by=frozenset({"I1"}),
    ),
    Case(
        name="F50-",
        what="the same with OKs that wait for one replica only: OKs are lost",
        loads=FLEET,
        layout=Layout(fleet=replace(SPLIT, confirmed_by=1), ack="replicas", client_timeout_s=8.0),
        rules=FAILOVER,
        faults=(Again(story=f.part(1, 2), every=(12, 14), after=2, times=1),),
        caught_by=frozenset({"I1"}),
    ),
    replace(
        SIEGE,
        name="F86-",
        what="the same where the relay bounds nothing: the broker takes any amount of memory",
        layout=replace(SIEGE.layout, variant="unbounded"),
        caught_by=frozenset({"I14"}),
        seconds=40.0,
        long_seconds=40.0,
        short=False,
    ),
]

MORE = [
    Case(
        name="F06",
        what="1,500 idle connections to a broker that may have 256 files",
        loads={"now": 20.0},
        layout=Layout(brokers=1, broker_limits=("--nofile=256",)),
        rules=Rules(fd_growth=256),  # for most of the case the broker has as many as it may
        check=e.memory_is_flat,
        faults=(Again(story=e.attack("idle", 6.0), every=(8, 8), after=2, times=1),),
        alone=True,
        seconds=9.0,
        long_seconds=9.0,
        short=False,
    ),
    Case(
        name="F07",
        what="thousands of scheduled tasks at a broker whose memory is limited to a gigabyte",
        loads={"parked": 250.0, "now": 5.0},
        layout=Layout(broker_limits=("--as=1000000000",)),
        rules=Rules(needs_faults=False),
        long_seconds=200.0,
        short=False,
    ),
    Case(
        name="F08",
        what="no log can be written, and executables run on a full disk (F30)",
        loads=ALL,
        layout=Layout(prepare=m.logs_on_a_small_disk, cleanup=m.remove_small_disk),
        faults=(Again(story=m.logs_full(3), every=(5, 6), after=2),),
        short=False,
    ),
    Case(
        name="F27",
        what="an executable is replaced, removed and turned into a link that leads out",
        loads=LIGHT,
        rules=Rules(silent=frozenset({"exchanged"})),
        story=m.exchanged,
        long_seconds=10.0,
        short=False,
    ),
    Case(
        name="F28",
        what="an executable is being written",
        loads=LIGHT,
        rules=Rules(silent=frozenset({"written"})),
        story=m.being_written,
        long_seconds=10.0,
        short=False,
    ),
    Case(
        name="F33",
        what="a broker that is to say fsync refuses a Redis that syncs once a second",
        loads=LIGHT,
        layout=Layout(ack="stored", redis={"appendfsync": "everysec"}),
        story=m.fsync_is_not_there,
        seconds=4.0,
        long_seconds=4.0,
        short=False,
    ),
    Case(
        name="F35",
        what="kill -9 of Redis, and the end of its file is cut off: it starts, and what is left is sound",
        # No `once`: what Redis had confirmed is gone, which no crash does, and `on_lost: fail` rests on it.
        loads={kind: rate for kind, rate in ALL.items() if kind != "once"},
        rules=Rules(forgets=True, promised=frozenset(), drain_extra_ms=60_000),
        # Once: Redis cuts a torn transaction after its last whole command, without the MULTI before it. The next load
        # executes that part, so that a second cut finds counters that a function had not come to.
        faults=(Again(story=m.file_cut_off((0, 1)), every=(4, 5), after=3, times=1),),
        short=False,
    ),
    Case(
        name="F44",
        what="the user of Redis is switched off, and comes back with another password",
        loads=ALL,
        layout=Layout(prepare=m.own_user),
        faults=(Again(story=m.password_rotated(1.5), every=(6, 7), after=2),),
        check=m.no_secret_logged,
        short=False,
    ),
    Case(
        name="F55",
        what="Redis comes back empty for some seconds: nothing is written to it",
        loads=ALL,
        faults=(Again(story=m.empty_for_a_while(3), every=(6, 7), after=2),),
        short=False,
    ),
    Case(
        name="F63",
        what="bytes of clients' and workers' connections to brokers are spoilt (no encryption)",
        loads={"now": 40.0, "shared": 8.0},  # an instant or an interval that is spoilt on the way is another one
        layout=LINKED,
        # What is asked and what is answered may be another thing on the way: nobody can tell, and no OK is a promise.
        rules=Rules(
            invariants=frozenset(INVARIANTS) - {"I1", "I2", "I3", "I5", "I6", "I7", "I8", "I9", "I15"},
            promised=frozenset(),
        ),
        faults=(Again(story=s.spoil(("client", "worker>"), (2, 3), corrupt=0.02), every=(4, 5)),),
        short=False,
    ),
    Case(
        name="F63K",
        what="the same where brokers ask for keys: nothing that was spoilt is taken, so nothing may be wrong",
        loads={"now": 40.0, "later": 10.0, "shared": 8.0},
        layout=replace(LINKED, keys=True),
        faults=(Again(story=s.spoil(("client", "worker>"), (2, 3), corrupt=0.02), every=(4, 5)),),
        short=False,
    ),
    Case(
        name="F74",
        what="peers without a key, with an unknown one and with another server's: nobody is let in, and clients go on",
        loads={"now": 20.0, "later": 5.0},
        layout=Layout(brokers=1, keys=True),
        faults=(Again(story=e.attack("strangers", 6.0), every=(8, 8), times=1),),
    ),
    Case(
        name="F75",
        what="what a client with a key said is said again: nothing comes of it",
        loads={"now": 20.0, "later": 5.0},
        layout=Layout(brokers=1, keys=True),
        faults=(Again(story=e.attack("replays", 6.0), every=(8, 8), times=1),),
        short=False,
    ),
    Case(
        name="F76",
        what="a storm of handshakes with wrong keys, some two thousand",
        loads={"now": 20.0, "later": 5.0},
        layout=Layout(brokers=1, keys=True),
        faults=(Again(story=e.attack("strangers", 12.0, peers=4), every=(14, 14), times=1),),
        seconds=15.0,
        long_seconds=15.0,
        short=False,
    ),
    Case(
        name="F66",
        what="messages of 2 GB that do not end, at a broker whose memory is limited: it cuts them off",
        loads={"now": 20.0, "later": 5.0},
        layout=Layout(brokers=1, broker_limits=("--as=1500000000",)),
        rules=Rules(rss_growth_bytes=2**30),
        faults=(Again(story=e.attack("unterminated", 6.0), every=(8, 8), after=2, times=1),),
        seconds=9.0,
        long_seconds=9.0,
        short=False,
    ),
    Case(
        name="F68",
        what="9,500 idle connections beside clients at work",
        loads={"now": 20.0, "later": 5.0},
        layout=Layout(brokers=1),
        faults=(Again(story=e.attack("crowd", 8.0), every=(9, 9), after=2, times=1),),
        rules=Rules(fd_growth=10_000),  # they are there for most of it
        check=e.memory_is_flat,
        alone=True,
        seconds=10.0,
        long_seconds=10.0,
        short=False,
    ),
    Case(
        name="F77",
        what="a broker's clock jumps by an hour and by ten years",
        loads=ALL,
        faults=for_ever(m.wrong_clock(s.first_broker)),
        short=False,
    ),
    Case(
        name="F78",
        what="a worker's clock jumps by an hour and by ten years",
        loads=ALL,
        faults=for_ever(m.wrong_clock(s.first_worker)),
        short=False,
    ),
    Case(
        name="F80",
        what="instants of leap seconds, of summer time, of the ends of calendars",
        loads=LIGHT,
        story=m.strange_instants,
        long_seconds=10.0,
        short=False,
    ),
    Case(
        name="F84",
        what="the command line against brokers that are not there, stopped or something else",
        loads=LIGHT,
        story=m.command_line,
        long_seconds=10.0,
        short=False,
    ),
]

ALL_CASES = [*MORE, *BROKER, *WORKER, *STORE, *NETWORK, *EDGE, SIEGE, SIEGE_WITH_KEYS, *UPGRADE, *SENTINEL, *CONTROLS]
CASES = {case.name: case for case in ALL_CASES}
