"""The report: one page that stands alone, for whatever a run has left."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from fedsim.errors import BadValue
from fedsim.record import Record
from fedsim.record.report import KEYS, MOST_FAULTS, write_report
from fedsim.record.store import FILE

VOID = {"input", "meta", "img", "br", "link", "hr"}


class Page(HTMLParser):
    """Collects ids, visible words and addresses, and checks that every tag is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.sources: list[str] = []
        self.tags: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        known = dict(attributes)
        self.ids += [known["id"]] if "id" in known else []
        self.sources += [known[key] for key in ("src", "href") if key in known]
        if tag == "img":
            assert known["alt"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)


def page(run) -> Page:
    path = write_report(run)
    assert path == run / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def bare(run, summary=None, **facts) -> None:
    with Record(run) as record:
        for key, value in facts.items():
            record.fact(key, value)
    if summary is not None:
        (run / "summary.json").write_text(json.dumps({**dict.fromkeys(KEYS), **summary}))


def test_a_finished_run_is_told_completely(tmp_path, fake_run):
    told = page(fake_run(tmp_path, clients=4, rounds=12))
    assert told.ids == [
        *("curves", "loss", "durations", "topology", "availability"),
        *("round", "node", "utilisation", "traffic", "hours", "labels"),
        *("player", "scene", "faults", "metrics", "hashes", "experiment"),
    ]
    for words in (
        "made-up strategy fedamd, seed 7",
        "final accuracy 91.23% best 92.34%",
        "time to target 3 min 10 s accuracy 0.85",
        "rounds 12",
        "simulated time 1 min 48 s computed in 12.5 s",
        "sent by all nodes 16.9 MB 507 kB lost",
        "median round 9 s 90% within 9 s, 99% within 9 s",
        "per client, both ways: 1 kB to",
        "wasted work 5.0% of 1,000 sample gradients, 16 s",
        "computing while online 12.5% 5 min 20 s busy, 37 min 20 s idle, 8 s offline",
        "energy 20 J all clients together",
        "e" * 64,
        "a" * 64,
        "b" * 64,
    ):
        assert words in told.text
    assert "unfinished" not in told.text
    assert "Timing only" not in told.text


def test_the_page_needs_nothing_but_itself(tmp_path, fake_run):
    run = fake_run(tmp_path, clients=4, rounds=3, events=False)
    told = page(run)
    assert len(told.sources) == 8
    assert all(
        re.match(r"data:image/(png|svg\+xml);base64,[A-Za-z0-9+/=]+$", source) for source in told.sources
    )
    assert {"link", "a", "iframe"} & set(told.tags) == set()
    text = (run / "report.html").read_text()
    assert "<script src" not in text
    for word in ("fetch(", "XMLHttpRequest", "import(", "WebSocket"):
        assert word not in text
    css = (run / "report.html").read_text().partition("</style>")[0]
    assert "url(" not in css
    assert "@import" not in css
    assert "http" not in css
    assert "@media print" in css
    assert "prefers-color-scheme: dark" in css
    assert told.tags.count("html") == told.tags.count("title") == told.tags.count("h1") == 1
    assert len(set(told.ids)) == len(told.ids)


def test_what_users_write_is_escaped(tmp_path):
    bare(tmp_path, {"name": "<script>alert(1)</script>", "strategy": "a & b"})
    (tmp_path / "experiment.yaml").write_text("name: '<img src=x>'\n")
    told = page(tmp_path)
    assert told.tags.count("script") == 1  # our own, which sorts tables
    assert "img" not in told.tags
    assert "<script>alert(1)</script> strategy a & b" in told.text
    assert "name: '<img src=x>'" in told.text


def test_an_unfinished_run_is_told_from_its_record(tmp_path):
    (tmp_path / "experiment.yaml").write_text("name: half\nseed: 3\nstrategy:\n  name: dpsgd\n")
    with Record(tmp_path) as record:
        record.fact("target_accuracy", 0.5)
        for round, accuracy in ((1, 0.25), (2, 0.75), (3, 0.625)):
            record.metric(round, round * 2_000_000, "accuracy", accuracy)
            record.round(round, round * 2_000_000, round * 1000, round * 900, round * 100, 200.0, 50.0, 3)
    told = page(tmp_path)
    for words in (
        "half strategy dpsgd, seed 3 unfinished run",
        "final accuracy 62.50% best 75.00%",
        "time to target 4 s accuracy 0.5",
        "rounds 3",
        "simulated time 6 s",
        "sent by all nodes 3 kB 300 B lost",
        "received by all nodes 2.7 kB",
        "wasted work 25.0% of 200 sample gradients",
    ):
        assert words in told.text
    assert "traffic" not in told.ids


@pytest.mark.parametrize("summary", ["", "{", '{"name": "x"', "[1, 2]", '{"name": "x", "rounds": 1}'])
def test_a_partial_summary_means_unfinished(tmp_path, summary):
    bare(tmp_path)
    (tmp_path / "summary.json").write_text(summary)
    assert "unfinished run" in page(tmp_path).text


def test_a_summary_full_of_nulls_means_finished(tmp_path):
    bare(tmp_path, {"name": "empty"})
    assert "unfinished" not in page(tmp_path).text


@pytest.mark.parametrize("experiment", ["name: [", "- 1\n- 2\n", "", "strategy: fedavg\n"])
def test_a_page_is_written_whatever_the_experiment_file_holds(tmp_path, experiment):
    bare(tmp_path)
    (tmp_path / "experiment.yaml").write_text(experiment)
    told = page(tmp_path)
    assert tmp_path.name in told.text
    assert ("strategy fedavg" in told.text) == (experiment == "strategy: fedavg\n")
    assert ("experiment" in told.ids) == bool(experiment)


def test_a_run_without_training_says_so_and_shows_rounds_against_time(tmp_path, fake_run):
    told = page(fake_run(tmp_path, clients=4, rounds=3, training=False, events=False))
    assert "Timing only" in told.text
    assert told.ids[0] == "progress"
    assert "curves" not in told.ids
    assert "accuracy 0.85" not in told.text
    assert (
        "Last rounds round time bytes up bytes down 0 0 s 0 B 0 B 1 9 s 1.41 MB 1.37 MB 2 18 s" in told.text
    )


def test_a_target_that_was_missed_is_called_missed(tmp_path):
    bare(tmp_path, {"accuracy": 0.25, "best_accuracy": 0.5}, target_accuracy=0.9)
    assert "time to target not reached accuracy 0.9" in page(tmp_path).text


def test_without_a_target_there_is_no_time_to_it(tmp_path):
    bare(tmp_path, {"accuracy": 0.25, "best_accuracy": 0.5})
    told = page(tmp_path)
    assert "25.00%" in told.text
    assert "time to target" not in told.text


def test_a_run_with_only_a_loss_shows_the_loss(tmp_path):
    bare(tmp_path, {"loss": 0.03125})
    assert "final loss 0.03125" in page(tmp_path).text


def test_bytes_per_node_are_told_with_the_extremes(tmp_path):
    bare(
        tmp_path,
        {"bytes_up": 4000, "bytes_down": 4000, "bytes_lost": 0, "bytes_min_node": 10, "bytes_max_node": 3000},
    )
    told = page(tmp_path)
    assert "sent by all nodes 4 kB nothing lost" in told.text
    assert "received by all nodes 4 kB per node, both ways: 10 B to 3 kB" in told.text


@pytest.mark.parametrize(("roles", "whose"), [(["server", "client"], "client"), (["peer", "peer"], "peer")])
def test_the_extremes_are_those_of_all_but_the_server(tmp_path, roles, whose):
    bare(
        tmp_path, {"bytes_up": 4, "bytes_down": 4, "bytes_lost": 0, "bytes_min_node": 1, "bytes_max_node": 3}
    )
    with Record(tmp_path) as record:
        record.write("nodes", [(node, role, 2, 2, *[0] * 8) for node, role in enumerate(roles)])
    assert f"per {whose}, both ways: 1 B to 3 B" in page(tmp_path).text


def test_faults_are_listed_in_the_order_in_which_they_happened(tmp_path):
    with Record(tmp_path) as record:
        record.event(90_000_000, "crash", 5, round=2)
        record.event(95_000_000, "send", 6, round=2)
        record.event(100_000_000, "slow", 7)
        record.event(110_000_000, "link_down", 3, 4)
        record.event(120_000_000, "heal", -1)
        record.event(121_000_000, "late", 3, 4)
    told = page(tmp_path)
    assert (
        "Faults crash: 1, heal: 1, link down: 1, slow: 1 simulated time fault node round 1 min 30 s"
        in told.text
    )
    assert "simulated time fault node round 1 min 30 s crash 5 2 1 min 40 s slow 7 –" in told.text
    assert "1 min 50 s link down 3, 4 – 2 min heal – – Hashes" in told.text


def test_of_very_many_faults_the_rest_is_counted(tmp_path):
    with Record(tmp_path) as record:
        for node in range(MOST_FAULTS + 7):
            record.event(node, "crash", node)
    told = page(tmp_path)
    assert f"Faults crash: {MOST_FAULTS + 7} simulated time" in told.text
    assert "and 7 more." in told.text
    assert told.tags.count("tr") == 1 + MOST_FAULTS + 3


def test_a_kind_of_fault_that_happens_often_does_not_crowd_out_the_others(tmp_path):
    with Record(tmp_path) as record:
        for number in range(1500):
            record.event(number, "drop", 1, 2)
        record.event(1_000_000, "crash", 5)
    told = page(tmp_path)
    assert "crash: 1, drop: 1,500" in told.text
    assert f"1 s crash 5 – and {1500 - MOST_FAULTS} more." in told.text


def test_a_run_without_faults_has_no_list_of_them(tmp_path):
    bare(tmp_path)
    assert "faults" not in page(tmp_path).ids


def test_the_last_ten_measurements_are_a_table(tmp_path):
    with Record(tmp_path) as record:
        for round in range(1, 13):
            record.metric(round, round * 1_000_000, "accuracy", round / 16)
        record.metric(12, 12_000_000, "train_loss", 0.5)
    told = page(tmp_path)
    assert "round time bytes up bytes down accuracy train loss 3 3 s 0 B 0 B 0.1875 – 4" in told.text
    assert "12 12 s 0 B 0 B 0.75 0.5 Hashes" in told.text


def test_an_availability_without_change_is_one_sentence(tmp_path):
    with Record(tmp_path) as record:
        record.write("presence", [(0, node, 1) for node in range(5)])
    told = page(tmp_path)
    assert "Every node was online from beginning to end." in told.text
    assert "availability" not in told.ids
    with Record(tmp_path) as record:
        record.presence(5, 2, False)
    assert "Every node" not in page(tmp_path).text


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    (tmp_path / "experiment.yaml").write_text("name: x\n")
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(BadValue, match=f"is not the folder of a run \\(it holds no {FILE}\\)") as error:
            write_report(path)
        assert (error.value.key, error.value.value) == ("run", str(path))
    assert not (tmp_path / "report.html").exists()


def test_a_report_can_be_written_again_and_while_the_run_goes_on(tmp_path):
    with Record(tmp_path) as record:
        record.metric(0, 0, "accuracy", 0.1)
        record.flush()
        before = page(tmp_path)
        record.metric(4, 40_000_000, "accuracy", 0.99)
        record.round(4, 40_000_000, 1, 1, 0, 1.0, 0.0, 1)
        after = page(tmp_path)
    assert "99.00%" not in before.text
    assert "final accuracy 99.00%" in after.text


def test_peers_have_a_page_too(tmp_path, fake_run):
    told = page(fake_run(tmp_path, clients=6, rounds=3, peers=True, events=False))
    assert "strategy dpsgd" in told.text
    assert told.ids[:4] == ["curves", "loss", "durations", "topology"]
    assert "per peer, both ways" in told.text


def test_what_the_facts_say_stands_below_the_figures(tmp_path, fake_run):
    run = fake_run(tmp_path, clients=4, rounds=3, events=False)
    assert "Spectral gap" not in page(run).text
    with Record(run) as record:
        for key, value in {
            "spectral_gap": 0.346753,
            "mixing_rounds": 11,
            "difficulty_between_clients": 0.61,
            "difficulty_within_clients": 0.042,
            "difficulty_unit": "known difficulty",
        }.items():
            record.fact(key, value)
    told = page(run).text
    assert "Spectral gap of the mixing matrix 0.3468, " in told
    assert "mixing time 11, " in told
    assert "(known difficulty): standard deviation 0.61 between the means of the clients" in told
    assert "on average 0.042 within a client" in told
