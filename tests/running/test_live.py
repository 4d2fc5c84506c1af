"""The live page shows what a run tells, to this machine alone, and stops with the run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import asdict

import pytest

from fedsim.running.live import MOST_POINTS, Live
from fedsim.running.progress import Progress


def at(round):
    return Progress(round, 9, 1.5 * round, None, 0.25, 1.0, 100 * round, 90 * round, round, 0.5)


def get(address, **headers):
    with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=20) as answer:
        return answer.status, dict(answer.headers), answer.read().decode()


def states(text):
    return [json.loads(one) for one in re.findall(r"^data: (\{.+\})$", text, re.MULTILINE)]


def test_who_comes_late_sees_all_and_is_told_of_the_end():
    live = Live("mine")
    for round in (1, 2):
        live(at(round))
    with urllib.request.urlopen(f"{live.address}news", timeout=20) as answer:
        live(at(3))
        live.close()
        text = answer.read().decode()
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/event-stream")
    assert states(text) == [asdict(at(round)) for round in (1, 2, 3)]
    assert text.endswith("event: end\ndata: {}\n\n")


def test_of_many_states_the_older_are_thinned_and_the_latest_kept():
    with Live("long") as live:
        for round in range(MOST_POINTS + 10):
            live(at(round))
        rounds = [one["round"] for one in live._points]
    assert len(rounds) <= MOST_POINTS
    assert rounds == sorted(rounds)
    assert rounds[-1] == MOST_POINTS + 9


def test_the_page_needs_nothing_but_itself_and_names_are_no_html():
    with Live("<b>mine</b>") as live:
        status, headers, text = get(live.address)
    assert (status, headers["Cache-Control"], headers["Referrer-Policy"]) == (200, "no-store", "no-referrer")
    assert headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert "<b>" not in text
    assert "&lt;b>mine&lt;/b>" in text
    assert "http" not in text


def test_only_the_address_itself_is_answered_and_only_for_reading():
    with Live("mine") as live:
        root = live.address.rsplit("/", 2)[0]
        for wrong in ("/", "/news", "/x/", f"{live.address[len(root) :]}../"):
            with pytest.raises(urllib.error.HTTPError) as caught:
                get(f"{root}{wrong}")
            assert caught.value.code == 404
            caught.value.close()
        for given, code in (({"method": "POST"}, 501), ({"headers": {"Host": "elsewhere.example"}}, 403)):
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(urllib.request.Request(live.address, **given), timeout=20)
            assert caught.value.code == code
            caught.value.close()


def test_two_pages_have_two_addresses_and_none_answers_when_it_is_over():
    with Live("a") as one, Live("b") as two:
        tokens = {live.address.rsplit("/", 2)[1] for live in (one, two)}
        assert len(tokens) == 2
        assert all(len(token) >= 20 for token in tokens)
    with pytest.raises(urllib.error.URLError):
        get(one.address)


@pytest.mark.slow
def test_the_command_serves_its_run_until_it_is_over(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "data: {clients: 4}\nmodel: softmax\nstrategy: dpsgd\ntopology: ring\n"
        "stop: {rounds: 60}\nrecord: {report: false}\n"
    )
    command = [sys.executable, "-m", "fedsim", "run", str(file), "--live", "--out", str(tmp_path / "runs")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        address = re.fullmatch(r"live: (http://127\.0\.0\.1:\d+/[\w-]+/)\n", run.stderr.readline())[1]
        _, _, text = get(f"{address}news")
        assert run.wait(60) == 0
    assert states(text)[-1]["round"] == 60
    assert "event: end" in text
