"""The player shows what was recorded: derived by hand, and looked at in a browser where there is one."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from itertools import pairwise

import networkx as nx
import pytest

from fedsim.record import Record
from fedsim.record.player import MOST_NODES, MOST_SPANS, TICKS, scene
from fedsim.record.reports import report
from fedsim.record.store import facts
from tests.record.conftest import fake_run

SECOND = 1_000_000
END = 10 * SECOND
ROW = (0, 0, 0, 0.0, 0.0, 0, 0, 0, 0, None)


@pytest.fixture
def run(tmp_path):
    """Two clients and a server, 10 s; a model goes to client 0, it trains, answers; client 1 crashes on its way."""
    with Record(tmp_path) as record:
        record.write("edges", [(0, 2, 5.0, None), (1, 2, 5.0, None)])
        record.write("nodes", [(0, "client", *ROW), (1, "client", *ROW), (2, "server", *ROW)])
        for node in range(3):
            record.presence(0, node, True)
        record.event(0, "send", 2, 0, 100, 1)
        record.event(0, "send", 2, 1, 100, 1)
        record.event(1 * SECOND, "deliver", 0, 2, 100, 1)
        record.event(1 * SECOND, "compute", 0, -1, 10, 1)
        record.event(2 * SECOND, "crash", 1)
        record.event(2 * SECOND, "lost", 2, 1, 40, 1)
        record.presence(2 * SECOND, 1, False)
        record.event(4 * SECOND, "done", 0, -1, 10, 1)
        record.event(4 * SECOND, "send", 0, 2, 100, 1)
        record.event(5 * SECOND, "deliver", 2, 0, 100, 1)
        record.event(9 * SECOND, "send", 2, 0, 100, 2)
        record.metric(1, 5 * SECOND, "accuracy", 0.25)
        record.round(1, 5 * SECOND, 300, 200, 40, 10, 0, 1)
    return tmp_path


def test_times_are_shares_of_the_run_and_nodes_are_places_in_the_list(run):
    found = scene(run, {}, END)
    assert [(node, role) for node, _, _, role in found["nodes"]] == [
        (0, "client"),
        (1, "client"),
        (2, "server"),
    ]
    assert found["moves"] == [
        [0, 100_000, 2, 0, 1],
        [0, 200_000, 2, 1, 0],  # lost
        [400_000, 500_000, 0, 2, 1],
        [900_000, TICKS, 2, 0, 1],  # still under way
    ]
    assert found["works"] == [[100_000, 400_000, 0]]
    assert found["presence"] == [[0, 0, 1], [0, 1, 1], [0, 2, 1], [200_000, 1, 0]]
    assert found["faults"] == [[200_000, 1, 0]]
    assert found["rounds"] == [[500_000, 1, 0.25]]
    assert found["links"] == [[0, 2], [1, 2]]
    assert (found["all"], found["every"], found["end_s"]) == (3, [1, 1], 10.0)


def test_places_are_between_0_and_1_with_one_scale(run):
    """The hub of a star is in the middle, its two clients are at opposite sides."""
    (x0, y0), (x1, y1), hub = [(x, y) for _, x, y, _ in scene(run, {}, END)["nodes"]]
    assert hub == (0.5, 0.5)
    assert (x0 + x1, y0 + y1) == (1.0, 1.0)
    assert max(abs(x0 - x1), abs(y0 - y1)) == 1.0


def test_sites_are_where_they_are_and_their_nodes_around_them(run):
    """Nodes 0 and 1 share a site in the south-west of the server's, on the equator, where degrees are alike."""
    sites = [(0, 10.0, -1.0), (1, 10.0, -1.0), (2, 12.0, 1.0)]
    places = [{"node": n, "name": "", "longitude": x, "latitude": y} for n, x, y in sites]
    found = [(x, y) for _, x, y, _ in scene(run, {"places": places}, END)["nodes"]]
    assert found[2] == (1.0, 0.0)  # y points down
    assert found[:2] == [(0.02, 1.0), (-0.02, 1.0)]


def test_of_many_nodes_some_are_shown_and_the_server_always(tmp_path):
    graph = nx.star_graph(range(1000, -1, -1))  # node 1000 is the hub
    with Record(tmp_path) as record:
        record.write("edges", [(min(a, b), max(a, b), 5.0, None) for a, b in graph.edges])
        for node in range(1000):
            record.presence(0, node, True)
            record.presence(SECOND, node, False)
            record.event(SECOND, "send", node, 1000, 8, 1)
    found = scene(tmp_path, {}, END)
    ids = [node for node, *_ in found["nodes"]]
    assert (len(ids), found["all"], ids[0], ids[-1]) == (MOST_NODES, 1001, 0, 1000)
    assert {b - a for a, b in pairwise(ids[:-1])} == {5, 6}
    assert len(found["links"]) == len(found["moves"]) == MOST_NODES - 1


def test_of_many_messages_every_so_many_is_shown(tmp_path):
    with Record(tmp_path) as record:
        record.write("edges", [(0, 1, 5.0, None)])
        for i in range(2 * MOST_SPANS + 1):
            record.event(i, "send", 0, 1, 8, i)
            record.event(i, "deliver", 1, 0, 8, i)
    found = scene(tmp_path, {}, 3 * MOST_SPANS)
    assert (found["every"], len(found["moves"])) == ([3, 1], -(-(2 * MOST_SPANS + 1) // 3))


def test_where_nothing_moved_there_is_nothing_to_play(tmp_path):
    with Record(tmp_path) as record:
        record.write("edges", [(0, 1, 5.0, None)])
        record.presence(0, 0, True)
    assert scene(tmp_path, facts(tmp_path), END) is None
    assert scene(tmp_path, {}, 0) is None


def browser():
    """Return a browser without a window, if there is one."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if shutil.which(name):
            return [name, "--headless", "--no-sandbox", "--disable-gpu"]
    return pytest.skip("there is no Chromium")


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser_it_plays_and_nothing_sticks_out(width, tmp_path):
    page = report(fake_run(tmp_path / "run", clients=30)).read_text(encoding="utf-8")
    # A browser without a window paints when it likes: frames come by the clock here.
    frames = "requestAnimationFrame = draw => setTimeout(() => draw(performance.now()), 16);"
    watched = f"<script>errors = []; onerror = text => errors.push(text); {frames}</script>"
    frame = html.escape(page.replace("<head>", f"<head>{watched}"), quote=True)
    (
        tmp_path / "test.html"
    ).write_text(f"""<body><iframe style="width: {width}px; height: 900px" srcdoc="{frame}"></iframe>
<script>
document.querySelector("iframe").onload = async event => {{
  const inner = event.target.contentWindow, at = inner.document, wait = ms => new Promise(done => setTimeout(done, ms));
  const input = at.querySelector("#player input"), text = () => at.querySelector("#player output").textContent;
  input.value = 500000; input.dispatchEvent(new inner.Event("input"));
  const half = text();
  at.querySelector("#player button").click();
  for (let i = 0; i < 80 && input.value <= 500000; i++) await wait(100);
  at.querySelector("#player button").click();
  const pixels = at.querySelector("canvas").getContext("2d").getImageData(0, 0, 300, 300);
  const table = {{wide: at.documentElement.scrollWidth, view: at.documentElement.clientWidth,
    errors: inner.errors, half,
    moved: input.value > 500000, drawn: pixels.data.some(one => one)}};
  document.body.innerHTML = "<pre>" + JSON.stringify(table) + "</pre>";
}};
</script></body>""")
    command = [
        *browser(),
        "--window-size=1400,1000",
        "--virtual-time-budget=10000",
        "--dump-dom",
        f"file://{tmp_path / 'test.html'}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    said = html.unescape(re.search("<pre>(.*?)</pre>", done.stdout, re.DOTALL)[1])
    assert '"errors":[]' in said
    found = dict(re.findall(r'"(wide|view|moved|drawn)":(\w+)', said))
    assert int(found["wide"]) <= int(found["view"]) <= width
    assert (found["moved"], found["drawn"]) == ("true", "true")
    assert '"half":"3.00 min of 6 min, round 20' in said
