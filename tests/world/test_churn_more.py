from __future__ import annotations

import math
from itertools import pairwise

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim import parts
from fedsim.errors import BadValue, ConfigError
from fedsim.world import churn as churns
from fedsim.world import world as worlds
from fedsim.world.clock import MICRO, micros
from fedsim.world.net.network import Message
from fedsim.world.traces.files import Availability, write

HALF_DAY = {"name": "diurnal", "low": 0.1, "high": 0.8, "period_s": 3600.0, "step_s": 10.0}


def online(world):
    return [node.id for node in world.nodes if node.online]


def moments(events, node=0):
    """When one node came or went: (seconds, kind)."""
    return [(t / 1e6, kind) for t, kind, id, *_ in events if id == node and kind in ("online", "offline")]


def lengths(events):
    """The lengths in seconds of the stays that begin and end in a run, by kind."""
    own, found = {}, {"online": [], "offline": []}
    for time, kind, node, *_ in events:
        own.setdefault(node, []).append((time, kind))
    for stays in own.values():
        for (begin, kind), (end, _) in pairwise(stays):
            found[kind].append((end - begin) / 1e6)
    return found


# weibull


def weibull(make, watch, shape, nodes=500, seconds=100, seed=3, **more):
    churn = {"name": "weibull", "online_s": 30.0, "offline_s": 10.0, "shape": shape, **more}
    world = make(nx.empty_graph(nodes), start=True, seed=seed, churn=churn)
    events = watch(world)
    shares = []
    for second in range(0, seconds, 10):
        world.clock.run(until=micros(second) + 1)
        shares.append(len(online(world)) / nodes)
    return shares, events


@pytest.mark.parametrize("shape", [0.5, 1.0, 2.0])
def test_a_weibull_share_is_stationary_from_the_start(make, watch, shape):
    shares, _ = weibull(make, watch, shape)
    # At each moment a binomial share of 3/4 of 500 nodes: deviation sqrt(3/16 / 500) = 0.0194.
    assert all(abs(share - 0.75) < 4 * 0.0194 for share in shares)
    assert len(set(shares)) > 5


@pytest.mark.parametrize("shape", [0.5, 2.0])
def test_weibull_stays_have_their_means_and_shape(make, watch, shape):
    _, events = weibull(make, watch, shape, nodes=20, seconds=20_000)
    # Weibull: variation coefficient sqrt(Γ(1 + 2/k) / Γ(1 + 1/k)² - 1): √5 for k = 1/2 and 0.5227 for k = 2.
    varies = {0.5: math.sqrt(5), 2.0: 0.5227}[shape]
    for kind, mean in (("online", 30), ("offline", 10)):
        own = np.array(lengths(events)[kind])
        assert 8000 < len(own) < 12_000
        assert abs(own.mean() - mean) < 4 * varies * mean / math.sqrt(len(own))
        # P(length > mean) = exp(-Γ(1 + 1/k)^k): exp(-√2) = 0.2431 and exp(-π/4) = 0.4559.
        longer = {0.5: 0.2431, 2.0: 0.4559}[shape]
        assert abs((own > mean).mean() - longer) < 4 * math.sqrt(longer * (1 - longer) / len(own))


def test_a_large_shape_makes_all_stays_nearly_alike(make, watch):
    _, events = weibull(make, watch, 100, nodes=10, seconds=1000)
    own = lengths(events)
    assert 25 < min(own["online"]) < max(own["online"]) < 33
    assert 8 < min(own["offline"]) < max(own["offline"]) < 11


@pytest.mark.parametrize(("start", "share"), [(0.0, 0.0), (1.0, 1.0)])
def test_weibull_may_start_as_told(make, watch, start, share):
    shares, _ = weibull(make, watch, 1.5, nodes=50, seconds=10, start_online=start)
    assert shares == [share]


@pytest.mark.parametrize("shape", [0.0, 0.05, -1.0, 101.0])
def test_a_weibull_shape_has_bounds(make, shape):
    churn = {"name": "weibull", "online_s": 3.0, "offline_s": 1.0, "shape": shape}
    with pytest.raises(ConfigError, match=r"churn\.shape"):
        make(nx.empty_graph(1), start=True, churn=churn)


def test_a_crashed_node_ends_its_churn(make):
    for churn in (
        {"name": "weibull", "online_s": 3.0, "offline_s": 1.0, "shape": 1.0},
        HALF_DAY,
        {"name": "depart", "count": 1, "at_s": 5.0},
        {"name": "arrive", "count": 1, "at_s": 5.0},
    ):
        world = make(nx.empty_graph(1), start=True, churn=churn)
        world.nodes[0].crash()
        world.clock.run()  # it would never end if a process went on
        assert not world.nodes[0].online


# diurnal


@pytest.mark.parametrize(
    ("low", "high", "zones"), [(0.1, 0.8, 24), (0.0, 1.0, 1), (0.5, 0.5, 3), (0.0, 0.0, 7), (1, 1, 2)]
)
def test_many_nodes_come_and_go_as_each_of_them_alone(low, high, zones):
    day = churns._Day(low, high, period_us=3_600_000_000, step_us=10_000_000, zones=zones)
    shared = churns._Thresholds(day)
    assert (shared.most - shared.least).max() <= 1e-6
    for seed in range(200):
        rng = np.random.default_rng(seed)
        zone, bias = int(rng.integers(zones)), float(rng.beta(2, 5))
        assert np.array_equal(shared.online(zone, bias), day.online(zone, bias))


def expected(time_s):
    return 0.1 + 0.7 * (math.sin(2 * math.pi * time_s / 3600) + 1) / 2


@pytest.mark.parametrize("zones", [1, 2, 3, 24])
def test_the_share_online_follows_the_sine(make, zones):
    nodes = 500
    world = make(nx.empty_graph(nodes), start=True, seed=4, churn={**HALF_DAY, "zones": zones})
    for time_s in (0, 450, 900, 1350, 1800, 2250, 2700, 3150, 3600 + 900):
        world.clock.run(until=micros(time_s) + 1)
        share = expected(time_s)
        deviation = math.sqrt(share * (1 - share) / nodes)
        assert abs(len(online(world)) / nodes - share) < 4 * deviation, time_s


def test_golden_shares_of_the_curve():
    # lo 10 %, hi 80 %: the middle at the start, the peak at a quarter, the lowest point at three quarters.
    assert [round(expected(t), 9) for t in (0, 900, 1800, 2700)] == [0.45, 0.8, 0.45, 0.1]


def test_nodes_are_independent_of_each_other(make):
    # The number online in 40 worlds of 20 nodes is binomial: 20 x 0.45 = 9 with variance 4.95.
    counts = [
        len(online(make(nx.empty_graph(20), start=True, seed=seed, churn=HALF_DAY))) for seed in range(40)
    ]
    assert abs(np.mean(counts) - 9) < 4 * math.sqrt(4.95 / 40)
    # A sample variance of 40 numbers deviates by a factor of sqrt(2 / 39) = 0.23; fixed ranks would give 0.
    assert 4.95 * (1 - 4 * 0.23) < np.var(counts, ddof=1) < 4.95 * (1 + 4 * 0.23)


def test_every_day_is_the_same_and_switches_fall_on_steps(make, watch):
    world = make(nx.empty_graph(40), start=True, seed=5, churn=HALF_DAY)
    events = watch(world)
    world.clock.run(until=micros(2 * 3600) + 1)
    days = [
        [(t - day * 3600 * MICRO, kind, node) for t, kind, node, *_ in events if 0 < t / 3.6e9 - day <= 1]
        for day in (0, 1)
    ]
    assert len(days[0]) >= 40
    assert sorted(days[0]) == sorted(days[1])
    assert all(t % micros(10) == 0 for t, *_ in events)


@pytest.mark.parametrize(("low", "high", "count"), [(0.0, 0.0, 0), (1.0, 1.0, 20), (0, 0, 0), (1, 1, 20)])
def test_nobody_or_everybody_all_day(make, watch, low, high, count):
    churn = {**HALF_DAY, "low": low, "high": high}
    world = make(nx.empty_graph(20), start=True, churn=churn)
    events = watch(world)
    world.clock.run(until=micros(7200))
    assert len(online(world)) == count
    assert not [e for e in events if e[0] > 0]


def test_a_step_need_not_divide_the_day(make):
    world = make(nx.empty_graph(300), start=True, churn={**HALF_DAY, "step_s": 700.0})
    world.clock.run(until=micros(3600 + 700) + 1)  # the second step of the second day
    share = expected(700)
    assert abs(len(online(world)) / 300 - share) < 4 * math.sqrt(share * (1 - share) / 300)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"low": 0.9}, "churn.low: 0.9: must be at most high (0.8)"),
        ({"step_s": 4000.0}, "churn.step_s: 4000.0: a day of 3600 s must have 1 to 416666 steps"),
        ({"step_s": 1e-4}, "churn.step_s: 0.0001: a day of 3600 s must have 1 to 416666 steps"),
    ],
)
def test_impossible_days_are_refused(make, change, message):
    with pytest.raises(ConfigError) as caught:
        make(nx.empty_graph(2), start=True, churn={**HALF_DAY, **change})
    assert str(caught.value) == message


# trace


def replay(make, watch, tmp_path, sessions, period_s, until_s, nodes=1):
    path = tmp_path / "trace.json"
    write(path, Availability(period_s, sessions))
    world = make(nx.empty_graph(nodes), start=True, churn={"name": "trace", "path": str(path)})
    start, events = online(world), watch(world)
    world.clock.run(until=micros(until_s))
    return start, events


def test_a_trace_is_replayed_cyclically(make, watch, tmp_path):
    start, events = replay(make, watch, tmp_path, (((2.0, 3.5), (6.0, 9.0)),), 10.0, 20)
    assert start == []
    cycle = [(2.0, "online"), (3.5, "offline"), (6.0, "online"), (9.0, "offline")]
    assert moments(events) == cycle + [(t + 10, kind) for t, kind in cycle]


def test_sessions_that_touch_are_one_also_across_the_end(make, watch, tmp_path):
    start, events = replay(make, watch, tmp_path, (((0.0, 2.0), (2.0, 3.0), (8.0, 10.0)),), 10.0, 25)
    assert start == [0]
    assert moments(events) == [
        (3, "offline"),
        (8, "online"),
        (13, "offline"),
        (18, "online"),
        (23, "offline"),
    ]


def test_who_is_always_or_never_online_does_nothing(make, watch, tmp_path):
    rows = (((0.0, 5.0), (5.0, 10.0)), ())
    start, events = replay(make, watch, tmp_path, rows, 10.0, 95, nodes=4)
    assert (start, events) == ([0, 2], [])


def test_node_i_takes_row_i_modulo_the_rows(make, watch, tmp_path):
    rows = tuple(((float(i + 1), 9.0),) for i in range(3))
    _, events = replay(make, watch, tmp_path, rows, 10.0, 9.5, nodes=8)
    assert [moments(events, node)[0][0] for node in range(8)] == [1, 2, 3, 1, 2, 3, 1, 2]


def test_a_session_up_to_the_end_goes_offline_at_the_end(make, watch, tmp_path):
    _, events = replay(make, watch, tmp_path, (((1.0, 10.0),),), 10.0, 21.5)
    assert moments(events) == [
        (1, "online"),
        (10, "offline"),
        (11, "online"),
        (20, "offline"),
        (21, "online"),
    ]


def test_sessions_shorter_than_a_microsecond_are_left_out(make, watch, tmp_path):
    start, events = replay(make, watch, tmp_path, (((0.0, 1e-7), (3.0, 4.0)),), 10.0, 10)
    assert (start, moments(events)) == ([], [(3, "online"), (4, "offline")])


def test_a_changed_file_is_read_again(make, watch, tmp_path):
    assert replay(make, watch, tmp_path, (((0.0, 5.0),),), 10.0, 1)[0] == [0]
    assert replay(make, watch, tmp_path, (((2.25, 5.0),),), 10.0, 1)[0] == []


def test_a_bad_trace_dies_before_the_start(make, tmp_path):
    path = tmp_path / "bad.csv"
    path.write_text("node,start_s,end_s\n0,5,4\n")
    with pytest.raises(ConfigError) as caught:
        make(nx.empty_graph(2), start=True, churn={"name": "trace", "path": str(path)})
    assert caught.value.problems[0].key == "churn.path"
    assert caught.value.problems[0].rule == "bad.csv, line 2: end_s is 4, must be after start_s (5)"
    with pytest.raises(ConfigError, match=r"churn.path: .*no\.csv does not exist"):
        make(nx.empty_graph(2), start=True, churn={"name": "trace", "path": "no.csv"})


@settings(max_examples=30, deadline=None)
@given(
    edges=st.lists(st.integers(0, 50), unique=True, max_size=12).map(sorted),
    gap=st.integers(0, 5),
    touching=st.booleans(),
)
def test_at_any_time_the_trace_says_who_is_online(make, tmp_path_factory, edges, gap, touching):
    sessions = tuple(zip(map(float, edges[::2]), map(float, edges[1::2])))
    if touching:  # the same with every session cut in two
        sessions = tuple(half for a, b in sessions for half in ((a, (a + b) / 2), ((a + b) / 2, b)))
    period_s = max([*edges, 1]) + gap
    path = tmp_path_factory.mktemp("trace") / "a.csv"
    write(path, Availability(float(period_s), (sessions,)))
    world = make(nx.empty_graph(1), start=True, churn={"name": "trace", "path": str(path)})
    for second in range(2 * period_s):
        world.clock.run(until=micros(second) + 1)
        now = second % period_s
        assert world.nodes[0].online == any(a <= now < b for a, b in sessions)


# arrive and depart


def test_the_last_nodes_join_one_after_the_other(make, watch):
    # The join scenario of MoDeST: 90 nodes start, and from t = 20 s the other ten join, one every 60 s.
    churn = {"name": "arrive", "count": 10, "at_s": 20.0, "every_s": 60.0}
    world = make(nx.empty_graph(100), start=True, churn=churn)
    assert online(world) == list(range(90))
    events = watch(world)
    world.clock.run()
    assert [(t / 1e6, kind, node) for t, kind, node, *_ in events] == [
        (20.0 + 60 * k, "online", 90 + k) for k in range(10)
    ]


def test_all_may_join_at_once_and_the_server_is_not_counted(make):
    churn = {"name": "arrive", "count": 3, "at_s": 2}
    world = make(nx.star_graph(3), server=True, start=True, churn=churn)
    assert online(world) == [3]
    world.clock.run()
    assert (online(world), world.clock.now_s) == ([0, 1, 2, 3], 2.0)


def test_joining_at_the_start_is_no_absence(make, watch, describe):
    experiment = describe(3, churn={"name": "arrive", "count": 3, "at_s": 0.0})
    world = worlds.build(experiment, nx.empty_graph(3), False)
    events = watch(world)
    worlds.start(world, experiment)
    assert events == []


@pytest.mark.parametrize("name", ["arrive", "depart"])
def test_more_nodes_than_there_are_cannot_come_or_go(make, name):
    with pytest.raises(ConfigError) as caught:
        make(nx.star_graph(3), server=True, start=True, churn={"name": name, "count": 4, "at_s": 1.0})
    assert str(caught.value) == "churn.count: 4: must be at most 3, the number of clients or peers"


def test_idle_nodes_leave_on_time_and_for_good(make, watch):
    world = make(
        nx.empty_graph(4), start=True, churn={"name": "depart", "count": 2, "at_s": 5.0, "every_s": 1.5}
    )
    events = watch(world)
    world.clock.run()
    assert events == [(5_000_000, "offline", 2, -1, 0, -1), (6_500_000, "offline", 3, -1, 0, -1)]
    world.nodes[2].set_online(True)
    assert online(world) == [0, 1]


SLOW = {"latency_ms": 0, "up_mbps": 0.008, "header_bytes": 0}  # 1000 bytes a second


def leaving(make, watch, at_s):
    world = make(
        nx.path_graph(2),
        start=True,
        network=SLOW,
        devices={"seconds_per_sample": 1},
        churn={"name": "depart", "count": 1, "at_s": at_s},
    )
    return world, world.nodes[0], world.nodes[1], watch(world)


def brief(events):
    return [(time / 1e6, kind, node) for time, kind, node, *_ in events]


def test_a_leaving_node_finishes_what_it_was_sent_works_it_off_and_answers(make, watch):
    world, other, leaver, events = leaving(make, watch, at_s=1.0)

    def answer(message):
        job = leaver.compute(3)
        job.callbacks.append(lambda _: leaver.send(other, Message("reply", None, 2000)))

    leaver.on_message, other.on_message = answer, lambda message: None
    other.send(leaver, Message("task", None, 4000))  # arrives at t = 4, then 3 s of work, then 2 s of sending
    world.clock.run()
    assert brief(events) == [
        (0, "send", 0),
        (4, "deliver", 1),
        (4, "compute", 1),
        (7, "done", 1),
        (7, "send", 1),
        (9, "deliver", 0),
        (9, "offline", 1),
    ]


def test_a_leaving_node_finishes_all_its_queued_work(make, watch):
    world, _, leaver, events = leaving(make, watch, at_s=1.0)
    jobs = [leaver.compute(work) for work in (2, 3)]
    world.clock.run()
    assert [job.value for job in jobs] == [True, True]
    assert brief(events)[-1] == (5, "offline", 1)


def test_a_leaving_node_does_not_wait_for_what_begins_later(make, watch):
    world, other, leaver, events = leaving(make, watch, at_s=1.0)
    leaver.on_message, other.on_message = lambda m: None, lambda m: None
    leaver.send(other, Message("reply", None, 3000))  # until t = 3
    world.clock.after(micros(2), other.send, leaver, Message("task", None, 5000))  # until t = 7
    world.clock.run()
    assert brief(events) == [
        (0, "send", 1),
        (2, "send", 0),
        (3, "deliver", 0),
        (3, "offline", 1),
        (3, "lost", 0),
    ]
    assert (leaver.wasted, world.totals()["bytes_lost"]) == (0, 1000)


def test_a_node_that_is_never_idle_leaves_all_the_same(make, watch):
    world, other, leaver, events = leaving(make, watch, at_s=10.5)
    leaver.on_message = lambda m: leaver.send(other, m)
    other.on_message = lambda m: other.send(leaver, m)
    other.send(leaver, Message("ball", None, 1000))  # back and forth, a second each way
    world.clock.run(until=micros(100))
    # The ball comes in at t = 11 and is on its way back until t = 12, when the other sends it again.
    assert [(time, node) for time, kind, node in brief(events) if kind == "offline"] == [(12, 1)]


def test_others_still_hear_how_their_transfers_ended(make, watch):
    world, other, leaver, _ = leaving(make, watch, at_s=1.0)
    told = []
    leaver.on_message = lambda m: None
    other.send(leaver, Message("task", None, 2000), told.append)
    leaver.send(other, Message("reply", None, 3000), told.append)
    other.on_message = lambda m: None
    world.clock.run()
    assert told == [True, True]


def test_a_crash_while_leaving_ends_the_leaving(make, watch):
    world, _, leaver, events = leaving(make, watch, at_s=1.0)
    job = leaver.compute(100)
    world.clock.after(micros(2), leaver.crash)
    world.clock.run(until=micros(50))
    assert job.value is False
    assert [(t, kind) for t, kind, _ in brief(events)] == [
        (0, "compute"),
        (2, "crash"),
        (2, "offline"),
        (2, "aborted"),
    ]


@pytest.mark.parametrize(
    ("name", "given_", "key"),
    [
        ("arrive", {"count": 0, "at_s": 1.0}, "count"),
        ("arrive", {"count": 1, "at_s": -1.0}, "at_s"),
        ("depart", {"count": 1, "at_s": 1.0, "every_s": -2.0}, "every_s"),
        ("diurnal", {"low": -0.1, "high": 0.5}, "low"),
        ("diurnal", {"low": 0.1, "high": 1.5}, "high"),
        ("diurnal", {"low": 0.1, "high": 0.5, "zones": 0}, "zones"),
        ("diurnal", {"low": 0.1, "high": 0.5, "period_s": 0.0}, "period_s"),
        ("weibull", {"online_s": 1.0, "offline_s": 1.0}, "shape"),
        ("trace", {"path": 3}, "path"),
    ],
)
def test_parameters_are_checked_against_the_signature(make, name, given_, key):
    world = make(nx.empty_graph(1))
    part = parts.find("churn", name)
    with pytest.raises(BadValue) as caught:
        parts.call(
            part, given_, {"node": world.nodes[0], "rng": np.random.Generator(np.random.Philox(1)), "n": 1}
        )
    assert caught.value.key == key
