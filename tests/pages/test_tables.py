"""Tables of reports and comparisons are sorted by click and by key, on a phone and on a wide screen, without errors."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import fedsim

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="needs Chromium")]

RUN: dict[str, Any] = {
    "data": {"clients": 12, "client_test_share": 0.2},
    "model": "softmax",
    "strategy": {"name": "fedavg", "participants": 4, "local": {"steps": 2, "lr": 0.1}},
    "network": {"latency_ms": 300},
    "faults": [{"name": "message_loss", "probability": 0.3}],
    "evaluate": {"metrics": ["accuracy", "macro_f1", {"name": "top_k", "k": 3}]},
    "stop": {"rounds": 12},
}
WATCH = """<script>
errors = [];
onerror = text => { errors.push(String(text)); };
console.error = (...words) => errors.push(words.join(" "));
</script>"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the report of a run and the comparison of two methods."""
    out = tmp_path_factory.mktemp("pages")
    report = fedsim.run(RUN, out=out / "runs").path / "report.html"
    study = {
        "name": "two",
        "base": {**RUN, "record": {"report": False}},
        "methods": {"a": {"strategy.local.lr": 0.01}, "b": {"strategy.local.lr": 0.1}},
        "vary": {"seed": [1, 2]},
        "compare": {"target": {"accuracy": 0.4}, "baseline": "b"},
    }
    fedsim.sweep(study, out=out)
    [page] = [file for file in fedsim.compare(out / "two").write(out / "c") if file.suffix == ".html"]
    return {"report": report.read_text(), "comparison": page.read_text()}


def asked(page: str, width: int, script: str, tmp_path: Path) -> Any:
    """Return what a script says of a page in a frame as wide as that; a window of its own would be wider."""
    frame = html.escape(page.replace("<head>", f"<head>{WATCH}", 1), quote=True)
    (tmp_path / "test.html").write_text(
        f"""<body><iframe style="width: {width}px; height: 900px" srcdoc="{frame}"></iframe><script>
document.querySelector("iframe").onload = event => {{
  const inner = event.target.contentWindow, at = inner.document;
  const found = (() => {{ {script} }})();
  document.body.innerHTML = "<pre>" + JSON.stringify({{...found, errors: inner.errors}}) + "</pre>";
}};
</script></body>""",
        encoding="utf-8",
    )
    assert BROWSER is not None
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1400,1000"]
    command += ["--virtual-time-budget=5000", "--dump-dom", (tmp_path / "test.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    said = re.search("<pre>(.*?)</pre>", done.stdout, re.DOTALL)
    assert said is not None, done.stdout[-2000:]
    return json.loads(html.unescape(said[1]))


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", ["report", "comparison"])
def test_nothing_sticks_out_and_every_title_can_be_reached(
    name: str, width: int, pages: dict[str, str], tmp_path: Path
) -> None:
    script = """
    const titles = [...at.querySelectorAll("thead th")];
    for (const one of titles) { one.querySelector("button").click(); one.querySelector("button").click(); }
    return {wide: at.documentElement.scrollWidth, view: at.documentElement.clientWidth,
      titles: titles.length, scopes: titles.filter(one => one.scope === "col").length,
      tabs: titles.filter(one => one.querySelector("button").tabIndex === 0).length,
      sorted: [...at.querySelectorAll("table")].map(one => one.querySelectorAll("[aria-sort=descending]").length)};
    """
    found = asked(pages[name], width, script, tmp_path)
    assert found["errors"] == []
    assert found["wide"] <= found["view"] <= width
    assert found["titles"] == found["scopes"] == found["tabs"] > 6
    assert set(found["sorted"]) <= {0, 1}  # of each table one column, or none of one without titles
    assert sum(found["sorted"]) == 2


SORT = """
const column = (table, place) => [...table.tBodies[0].rows].map(row => row.cells[place].textContent);
const titles = [...at.querySelectorAll("TABLE thead th")];
const place = titles.findIndex(one => one.textContent.startsWith("TITLE"));
const table = titles[place].closest("table"), before = column(table, place);
titles[place].querySelector("button").click();
const up = column(table, place), first = titles[place].getAttribute("aria-sort");
titles[place].querySelector("button").click();
return {before, up, down: column(table, place), first, second: titles[place].getAttribute("aria-sort"),
  others: titles.filter(one => one.hasAttribute("aria-sort")).length};
"""


@pytest.mark.parametrize("title", ["round", "time", "bytes up", "accuracy"])
def test_a_click_sorts_by_what_the_cells_mean(title: str, pages: dict[str, str], tmp_path: Path) -> None:
    script = SORT.replace("TABLE", "#metrics table").replace("TITLE", title)
    found = asked(pages["report"], 1280, script, tmp_path)
    assert found["errors"] == []
    assert (found["first"], found["second"], found["others"]) == ("ascending", "descending", 1)
    assert sorted(found["up"]) == sorted(found["before"])  # no row is lost
    assert found["up"] == (
        sorted(found["up"], key=float) if title in ("round", "accuracy") else found["before"]
    )
    values = [text for text in found["down"]]
    assert found["up"] == values[::-1] or title == "accuracy"  # equal accuracies keep their order


def test_units_numbers_names_and_nothing_are_put_in_order(pages: dict[str, str], tmp_path: Path) -> None:
    cells = ["1 min 35 s", "–", "900 ms", "2 h 5 min", "0 s", "42.3 s"]
    spans = ["0.5 [0.4, 0.6]", "–", "-1e-05", "1,200", "", "0.25"]
    words = ["fedavg", "scaffold", "–", "b10", "b9", "FedProx"]
    rows = "".join(f"<tr><td>{a}</td><td>{b}</td><td>{c}</td></tr>" for a, b, c in zip(cells, spans, words))
    table = f"""<table id="mine"><thead><tr><th>time</th><th>span</th><th>word</th></tr></thead>
<tbody>{rows}</tbody></table>"""
    page = pages["report"].replace("<body>", f"<body>{table}")
    wanted = {
        "time": ["0 s", "900 ms", "42.3 s", "1 min 35 s", "2 h 5 min", "–"],
        "span": ["-1e-05", "0.25", "0.5 [0.4, 0.6]", "1,200", "–", ""],
        "word": ["b9", "b10", "fedavg", "FedProx", "scaffold", "–"],
    }
    for title, order in wanted.items():
        found = asked(page, 1280, SORT.replace("TABLE", "#mine").replace("TITLE", title), tmp_path)
        assert found["up"] == order
        known = [cell for cell in order if cell not in ("–", "")]
        assert found["down"] == known[::-1] + order[len(known) :]  # what is not known stays at the end
