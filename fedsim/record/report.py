"""The report of a run: one self-contained HTML page."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fedsim.errors import BadValue
from fedsim.record.store import FILE, Table, facts, metrics, read
from fedsim.record.style import human_bytes, human_time

KEYS = (
    *("name", "strategy", "seed", "rounds", "sim_time_s", "wall_time_s", "time_to_target_s"),
    *("accuracy", "best_accuracy", "loss", "work_samples", "wasted_samples"),
    *("bytes_up", "bytes_down", "bytes_lost", "bytes_max_node", "bytes_min_node"),
    *("event_hash", "weights_hash", "run_hash"),
)
"""What ``summary.json`` of a finished run holds; a value may be null."""

TITLES = {
    "curves": "Learning curves",
    "loss": "Loss",
    "progress": "Rounds and bytes over time",
    "availability": "Who was online",
    "traffic": "Bytes per node",
    "topology": "Topology",
    "labels": "Labels of each client",
}

LAST_ROWS = 10
MOST_FAULTS = 100
MOST_SVG_BYTES = 150_000


def write_report(run: str | Path) -> Path:
    """Write RUN/report.html, which needs no other file, and draw RUN/figures.

    Args:
        run: the run's folder, with ``record.sqlite`` and, if they exist, ``experiment.yaml`` and
            ``summary.json``. The run may be unfinished or without training; the page then says so.

    Returns:
        The path of the page.

    Raises:
        BadValue: if the folder is not a run.
    """
    # Matplotlib takes a while to load, and not everybody who imports this module draws.
    from fedsim.record.figures import draw_all

    run = Path(run)
    if not (run / FILE).is_file():
        raise BadValue("run", str(run), f"is not the folder of a run (it holds no {FILE})", "try: ls runs")
    experiment = _text(run / "experiment.yaml")
    table = metrics(run)
    given = _summary(run)
    target = facts(run).get("target_accuracy")
    summary = {**_so_far(run, table, experiment, target), **given}
    crashes = read(run, "events", kind="crash")
    loader = FileSystemLoader(Path(__file__).parent / "templates")
    pages = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    html = pages.get_template("report.html").render(
        summary=summary,
        finished=all(key in given for key in KEYS),
        trained="accuracy" in table or "loss" in table,
        steady=_steady(read(run, "presence")),
        tiles=_tiles(summary, target),
        figures=[(TITLES[name], name, _picture(path)) for name, path in draw_all(run).items()],
        faults=_faults(crashes),
        more_faults=max(0, len(crashes["node"]) - MOST_FAULTS),
        columns=[name.removesuffix("_s").replace("_", " ") for name in table],
        rows=_last_rows(table),
        experiment=experiment,
    )
    page = run / "report.html"
    page.write_text(html, encoding="utf-8")
    return page


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _summary(run: Path) -> dict[str, Any]:
    try:
        summary = json.loads(_text(run / "summary.json"))
    except json.JSONDecodeError:
        # There is none yet, or the run was killed while it was being written.
        return {}
    return summary if isinstance(summary, dict) else {}


def _so_far(run: Path, table: Table, experiment: str, target: float | None) -> dict[str, Any]:
    """Return a summary from the record and the experiment file: what an unfinished run can say of itself."""
    summary: dict[str, Any] = dict.fromkeys(KEYS)
    try:
        chosen = yaml.safe_load(experiment)
    except yaml.YAMLError:
        chosen = None
    if isinstance(chosen, dict):
        strategy = chosen.get("strategy")
        summary["strategy"] = strategy.get("name") if isinstance(strategy, dict) else strategy
        summary["name"], summary["seed"] = chosen.get("name"), chosen.get("seed")
    summary["name"] = summary["name"] or run.resolve().name
    rounds = read(run, "rounds")
    if len(rounds["round"]):
        last = {name: column[-1].item() for name, column in rounds.items()}
        summary.update({key: last[key] for key in ("bytes_up", "bytes_down", "bytes_lost")})
        summary.update(work_samples=last["work"], wasted_samples=last["wasted"])
        summary.update(rounds=last["round"], sim_time_s=last["time_us"] / 1e6)
    for name in {"accuracy", "loss"} & set(table):
        values = table[name][np.isfinite(table[name])]
        summary[name] = float(values[-1]) if len(values) else None
        if name == "accuracy" and len(values):
            summary["best_accuracy"] = float(values.max())
            goal = math.inf if target is None else target
            summary["time_to_target_s"] = next(iter(table["time_s"][table[name] >= goal].tolist()), None)
    return summary


def _tiles(summary: Mapping[str, Any], target: float | None) -> list[tuple[str, str, str]]:
    """Return what the tiles show: the number, what it is, and a remark."""
    s = summary
    tiles = []
    if s["accuracy"] is not None:
        best = "" if s["best_accuracy"] is None else f"best {s['best_accuracy']:.2%}"
        tiles.append((f"{s['accuracy']:.2%}", "final accuracy", best))
    elif s["loss"] is not None:
        tiles.append((f"{s['loss']:.4g}", "final loss", ""))
    if target is not None and s["accuracy"] is not None:
        reached = s["time_to_target_s"]
        shown = "not reached" if reached is None else human_time(reached)
        tiles.append((shown, "time to target", f"accuracy {target:g}"))
    if s["rounds"] is not None:
        tiles.append((f"{s['rounds']:,}", "rounds", ""))
    if s["sim_time_s"] is not None:
        wall = "" if s["wall_time_s"] is None else f"computed in {human_time(s['wall_time_s'])}"
        tiles.append((human_time(s["sim_time_s"]), "simulated time", wall))
    if s["bytes_up"] is not None:
        lost = f"{human_bytes(s['bytes_lost'])} lost" if s["bytes_lost"] else "nothing lost"
        tiles.append((human_bytes(s["bytes_up"]), "sent by all nodes", lost))
        tiles.append((human_bytes(s["bytes_down"]), "received by all nodes", _extremes(s)))
    if s["work_samples"]:
        wasted = f"of {s['work_samples']:,.0f} sample gradients"
        tiles.append((f"{(s['wasted_samples'] or 0) / s['work_samples']:.1%}", "wasted work", wasted))
    return tiles


def _extremes(summary: Mapping[str, Any]) -> str:
    low, high = summary["bytes_min_node"], summary["bytes_max_node"]
    return (
        ""
        if low is None or high is None
        else f"per node, both ways: {human_bytes(low)} to {human_bytes(high)}"
    )


def _steady(presence: Table) -> bool:
    """Tell whether everybody is known to have been online from beginning to end."""
    return bool(len(presence["node"])) and bool((presence["online"] == 1).all())


def _faults(crashes: Table) -> list[tuple[str, int, str]]:
    first = zip(*(crashes[name][:MOST_FAULTS].tolist() for name in ("time_us", "node", "round")))
    return [(human_time(time / 1e6), node, str(round) if round >= 0 else "–") for time, node, round in first]


def _last_rows(table: Table) -> list[list[str]]:
    write: dict[str, Callable[[Any], str]] = {"round": str, "time_s": human_time}
    write |= {"bytes_up": human_bytes, "bytes_down": human_bytes}
    rows = zip(*(column[-LAST_ROWS:].tolist() for column in table.values()))
    return [[write.get(name, _number)(value) for name, value in zip(table, row)] for row in rows]


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "–"


def _picture(png: Path) -> str:
    """Return a figure as a data address: drawn lines where they are few, a picture where they are many."""
    svg = png.with_suffix(".svg")
    best, kind = (svg, "svg+xml") if svg.stat().st_size <= MOST_SVG_BYTES else (png, "png")
    return f"data:image/{kind};base64,{base64.b64encode(best.read_bytes()).decode()}"
