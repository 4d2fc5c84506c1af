"""Latency matrices: how they are read, what stands in for missing pairs, how routes use them."""

from __future__ import annotations

import os
from pathlib import Path

import networkx as nx
import numpy as np
import pytest

from fedsim.errors import BadValue, ConfigError
from fedsim.spec.experiment import load
from fedsim.world.net.matrix import Matrix, read

DATA = Path(os.environ.get("FEDSIM_DATA", Path(__file__).parents[4] / "shared" / "data"))
CITIES = DATA / "latency" / "wondernetwork-2022-05.csv"

ONE_WAY = {"latency_unit": "one_way"}
ASYMMETRIC = "0.5,10,20\n12,0.5,30\n24,36,0.5\n"


@pytest.fixture
def file(tmp_path):
    def write(text):
        path = tmp_path / "delays.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


def test_directions_differ_and_nodes_go_round_the_sites(file):
    matrix = read(file(ASYMMETRIC))
    assert matrix.sites == 3
    assert (matrix.delay_us(0, 1), matrix.delay_us(1, 0)) == (10_000, 12_000)
    assert (matrix.delay_us(3, 4), matrix.delay_us(7, 6)) == (10_000, 12_000)
    assert matrix.delay_us(0, 3) == 500  # two nodes at one site


def test_the_opposite_direction_or_the_median_stands_in_for_a_missing_pair():
    one = Matrix(np.array([[0.0, -0.5, 7.0], [4.0, 0.0, 5.0], [-1.0, 6.0, 0.0]]))
    assert (one.delay_us(0, 1), one.delay_us(2, 0)) == (4_000, 7_000)
    both = Matrix(np.array([[0.0, -1.0, 1.0], [-1.0, 0.0, 2.0], [3.0, 10.0, 0.0]]))
    assert both.delay_us(0, 1) == both.delay_us(1, 0) == 2_500  # the median of 1, 2, 3 and 10


def test_blank_lines_and_spaces_do_not_matter(file):
    assert read(file("0, 5\n\n 6 ,0\n")).delay_us(1, 0) == 6_000


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("0,1\n2\n", "must be square: it has 2 rows, and row 2 has 1 numbers"),
        ("0,1,2\n3,0,4\n", "must be square: it has 2 rows, and row 1 has 3 numbers"),
        ("0,one\n2,0\n", "row 1 must hold numbers of milliseconds, not 'one'"),
        ("0,1\nnan,0\n", "row 2 must hold numbers of milliseconds, not 'nan'"),
        ("0,1\n,0\n", "row 2 must hold numbers of milliseconds, not ''"),
        ("0,inf\n1,0\n", "row 1 must hold numbers of milliseconds, not 'inf'"),
        ("0,1e10\n1,0\n", "row 1 must hold numbers of milliseconds, not '1e10'"),
        ("0,5\t1,5\n1,5\t0,5\n", r"row 1 must hold numbers of milliseconds, not '5\t1'"),
        ("0\t\n1\t0\n", "row 1 must hold numbers of milliseconds, not ''"),
        ("0;1\n1;0\n", "row 1 must hold numbers of milliseconds, not '0;1'"),
        ("-1,-1\n-1,-1\n", "every delay between two sites is missing"),
        ("", "is empty"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_what_is_not_a_square_of_numbers_is_refused(file, text, rule):
    with pytest.raises(BadValue) as caught:
        read(file(text))
    assert caught.value.key == "latency_matrix"
    assert rule in str(caught.value)


def test_two_nodes_at_one_site_are_never_as_far_apart_as_two_sites():
    # Sites 40, 2 and 60 ms apart: the median of the six delays is 40.
    delays = np.array([[-1.0, 40.0, 2.0], [40.0, -0.5, 60.0], [2.0, 60.0, 0.3]])
    matrix = Matrix(delays)
    assert [matrix.delay_us(site, site + 3) for site in range(3)] == [0, 0, 300]
    assert matrix.delay_us(1, 2) == 60_000
    assert Matrix(np.array([[-1.0]])).delay_us(0, 1) == 0


def test_half_of_a_round_trip_is_taken(make, file):
    assert read(file(ASYMMETRIC), "round_trip").delay_us(0, 2) == 10_000
    halved = "0.25,5,10\n6,0.25,15\n12,18,0.25\n"
    delays = []
    for text, unit in ((ASYMMETRIC, "round_trip"), (halved, "one_way")):
        world = make(nx.complete_graph(3), network={"latency_matrix": file(text), "latency_unit": unit})
        delays.append([world.network.route(a, b).latency_us for a in range(3) for b in range(3) if a != b])
    assert delays[0] == delays[1] == [5_000, 10_000, 6_000, 15_000, 12_000, 18_000]


def test_a_missing_round_trip_stays_missing(file):
    matrix = read(file("0,-1,8\n-1,0,6\n8,6,-2\n"), "round_trip")
    assert matrix.delay_us(0, 1) == 3_500  # the median of 4, 3, 4 and 3
    assert matrix.delay_us(2, 5) == 0


def test_what_an_entry_is_must_be_said(describe, file):
    with pytest.raises(ConfigError) as caught:
        describe(3, network={"latency_matrix": file(ASYMMETRIC)})
    assert str(caught.value) == (
        "network.latency_unit: is required with latency_matrix: one_way if an entry is the delay in one direction, "
        "round_trip if it is the time there and back of a ping"
    )
    with pytest.raises(ConfigError, match=r"network.latency_unit: one_way: says what latency_matrix holds"):
        describe(3, network={"latency_unit": "one_way"})


def test_what_was_made_of_it_is_told(make, file):
    path = file("0,-1,8\n-1,0,6\n8,-1,0\n")
    world = make(nx.complete_graph(3), network={"latency_matrix": path, "latency_unit": "round_trip"})
    # 8/2, 6/2, 8/2 and, for the missing way from 2 to 1, 6/2: the median is 3.5 ms.
    assert world.notes == [
        f"latencies are half of the round trips in {path}; 1 that is missing there is that of the opposite direction; "
        "2 that are missing there are the median of all, 3.5 ms"
    ]
    assert make(nx.complete_graph(3)).notes == []


@pytest.mark.parametrize("separator", ["\t", " ", "  \t", ", "])
def test_tabs_and_spaces_separate_as_commas_do(file, separator):
    matrix = read(file(ASYMMETRIC.replace(",", separator)))
    assert (matrix.delay_us(0, 1), matrix.delay_us(2, 1)) == (10_000, 36_000)


def test_a_wide_matrix_with_other_separators_is_one_short_line(file):
    row = ";".join("12.345" for _ in range(1000))
    with pytest.raises(BadValue) as caught:
        read(file(f"{row}\n" * 1000))
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("path", ["n" * 300, "nul\0.csv", "."])
def test_a_name_that_cannot_be_a_file_is_one_line(path):
    with pytest.raises(BadValue, match="cannot be read"):
        read(path)


def test_a_missing_file_is_refused_with_a_hint():
    with pytest.raises(BadValue, match=r"no such file; .*FEDSIM_DATA"):
        read("no/such/file.csv")


def test_the_data_folder_is_searched(tmp_path, monkeypatch, file):
    file(ASYMMETRIC)
    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path))
    assert read("delays.csv").sites == 3


@pytest.mark.skipif(not CITIES.exists(), reason="the city latencies are not in the data folder")
def test_the_city_latencies():
    matrix = read(str(CITIES))
    assert matrix.sites == 227
    delays = np.array([[matrix.delay_us(i, j) for j in range(227)] for i in range(227)]) / 1000
    between = delays[~np.eye(227, dtype=bool)]
    assert between.min() >= 0
    assert np.median(between) == pytest.approx(67.0, abs=0.3)  # published facts of this file
    assert between.max() == pytest.approx(811.8, abs=0.1)
    assert int(np.argmin(np.median(delays, axis=1))) == 19
    matrix.place(500, "best")
    assert matrix.delay_us(500, 3) == matrix.delay_us(19, 3)


def test_a_message_takes_the_matrix_time_in_its_own_direction(make, file):
    world = make(
        nx.path_graph(3),
        network={"latency_matrix": file(ASYMMETRIC), **ONE_WAY, "header_bytes": 0},
    )
    network = world.network
    assert network.route(0, 1).latency_us == 10_000
    assert network.route(1, 0).latency_us == 12_000
    assert network.route(0, 2).latency_us == 40_000  # 10 + 30 over node 1: the graph has no edge 0-2
    assert network.route(2, 0).latency_us == 48_000


def test_an_overlay_goes_straight(make, file):
    world = make(
        nx.path_graph(3),
        network={"latency_matrix": file(ASYMMETRIC), **ONE_WAY, "overlay": True},
    )
    assert world.network.route(0, 2).latency_us == 20_000
    assert world.network.route(0, 2).links == ((0, 2),)


def test_an_overlay_without_a_matrix_draws_a_latency_for_every_pair(make):
    network = {"latency_ms": {"distribution": "uniform", "low": 10, "high": 90}, "overlay": True}
    one, two = (make(nx.path_graph(n), network=network).network for n in (5, 5))
    delays = {pair: one.route(*pair).latency_us for pair in ((0, 4), (4, 0), (1, 3), (0, 2))}
    assert delays[0, 4] == delays[4, 0]
    assert len(set(delays.values())) == 3
    assert all(10_000 <= delay <= 90_000 for delay in delays.values())
    assert all(two.route(*pair).latency_us == delay for pair, delay in delays.items())
    assert one.route(0, 1).latency_us == one.graph.edges[0, 1]["latency_us"]


def test_a_matrix_beside_drawn_latencies_is_refused(describe, file):
    with pytest.raises(ConfigError, match="latency_matrix"):
        describe(3, network={"latency_matrix": file(ASYMMETRIC), **ONE_WAY, "latency_ms": 20})


def test_links_with_latencies_of_their_own_are_refused(make, file):
    graph = nx.path_graph(3)
    graph.edges[0, 1]["latency_ms"] = 5.0
    network = {"latency_matrix": file(ASYMMETRIC), **ONE_WAY}
    with pytest.raises(
        ConfigError, match="the topology star gives its links latency_ms as well; take one of the two"
    ):
        make(graph, network=network)


def star(make, file, site):
    """Return delays in milliseconds from and to the server, node 3, of a star of three clients."""
    network = {
        "latency_matrix": file(ASYMMETRIC),
        "latency_unit": "one_way",
        "server": {"site": site},
        "header_bytes": 0,
    }
    world = make(nx.star_graph([3, 0, 1, 2]), network=network, server=True)
    ways = [way for client in range(3) for way in ((3, client), (client, 3))]
    return [world.network.route(*way).latency_us / 1000 for way in ways]


def test_the_server_stands_where_it_is_put(make, file):
    matrix = read(file(ASYMMETRIC))
    assert star(make, file, None) == star(make, file, 0)  # node 3 of 3 sites
    for site in range(3):
        ways = [way for client in range(3) for way in ((site, client), (client, site))]
        assert star(make, file, site) == [matrix.delay_us(*way) / 1000 for way in ways]
    assert star(make, file, "best") == star(
        make, file, 0
    )  # there and back: 22, 44 and 66 ms between 0-1, 0-2, 1-2


def test_a_site_that_is_not_there_is_refused(make, file):
    with pytest.raises(ConfigError, match=r"server.site: 3: must be less than 3, the number of sites"):
        star(make, file, 3)
    with pytest.raises(ConfigError, match=r"server.site: best: names a row of network.latency_matrix"):
        make(nx.star_graph([1, 0]), network={"server": {"site": "best"}}, server=True)


def test_other_units_and_zeros_that_are_missing(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("0,0.02,0\n0.03,0,0.05\n0,0.05,0\n")
    seconds = read(str(path), "one_way", "s")
    assert (seconds.delay_us(0, 1), seconds.delay_us(1, 0), seconds.delay_us(0, 2)) == (20_000, 30_000, 0)
    # Zero between two sites is missing both ways: the median of 20, 30, 50 and 50 ms stands in; the diagonal stays 0.
    known = read(str(path), "one_way", "s", "zero")
    assert (known.delay_us(0, 2), known.delay_us(2, 0), known.delay_us(1, 1)) == (40_000, 40_000, 0)
    assert known.guessed == 2
    half = read(str(path), "round_trip", "s")
    assert half.delay_us(0, 1) == 10_000
    path.write_text("0,20\n30,0\n")
    assert read(str(path), "one_way", "us").delay_us(1, 0) == 30
    path.write_text("0,x\n30,0\n")
    with pytest.raises(BadValue, match="row 1 must hold numbers of seconds, not 'x'"):
        read(str(path), "one_way", "s")


@pytest.mark.parametrize("given", [{"latency_in": "s"}, {"latency_missing": "zero"}])
def test_what_a_matrix_holds_is_said_of_a_matrix(given):
    with pytest.raises(ConfigError, match="says what latency_matrix holds, and there is none"):
        load({"data": {"clients": 2}, "strategy": "dpsgd", "stop": {"rounds": 1}, "network": given})
