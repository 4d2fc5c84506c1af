"""The report of a run: one self-contained HTML page."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fedsim.errors import BadValue, ConfigError
from fedsim.record import figures, player
from fedsim.record.files import from_json, write_text
from fedsim.record.plain import first
from fedsim.record.schema import Summary
from fedsim.record.store import FILE, WIDE, Table, facts, faults, metrics, read, settled
from fedsim.record.style import Array, human_bytes, human_time, percentiles, round_times_s
from fedsim.spec import yamlfile

KEYS = (
    *("name", "strategy", "seed", "rounds", "sim_time_s", "wall_time_s", "time_to_target_s"),
    *("accuracy", "best_accuracy", "loss", "work_samples", "wasted_samples"),
    *("busy_s", "idle_s", "offline_s", "wasted_s", "joules", "memory_mb", "assumed"),
    *("bytes_up", "bytes_down", "bytes_lost", "bytes_max_node", "bytes_min_node"),
    *("event_hash", "weights_hash", "run_hash"),
)
"""What ``summary.json`` of a finished run holds; a value may be null."""

TITLES = {
    "curves": "Learning curves",
    "loss": "Loss",
    "personal": "What clients get",
    "progress": "Rounds and bytes over time",
    "durations": "How long rounds took",
    "availability": "Who was online",
    "round": "A typical round",
    "node": "The busiest node",
    "utilisation": "Busy links",
    "traffic": "Bytes per node",
    "hours": "What the nodes did with their time",
    "topology": "Topology",
    "map": "Where everybody is",
    "labels": "Labels of each client",
    "pace": "Pace of the samples",
    "curriculum": "Curriculum of the clients",
    "servers": "The servers",
    "views": "Who is in the views",
    "numbers": "What else was measured",
}

REMARKS = {
    "durations": "How long each round took when it ended, and the share of rounds that took at most so long.",
    "round": "The round of median duration: every node that did something in it, in the order in which they "
    "finished. A transfer lasts from the beginning of its sending until it arrives, latency included.",
    "node": "What the client or peer that was busy for the longest time did in the whole run.",
    "personal": "On the samples that each client has held out: with the model that it has, and with the one that it "
    "makes of that by training for itself. Left, the clients at the last evaluation, each line from the worst to the "
    "best; right, their mean and, dotted, the mean of the worst tenth. Gini is 0 where all get the same.",
    "pace": "How many samples of a client of median size take part.",
    "curriculum": "The pool of clients, their scores when they were last asked (the darker, the more clients), and how "
    "often each took part, the hardest on the right: by the known difficulty of its samples, or else by its first "
    "score, for training makes the last one low.",
    "servers": "Each server's own model, and the bytes that it has sent and received by then, without headers.",
    "views": "How many nodes a node counts as active by the round that it knows of, which may be an old one: the mean, "
    "and from the least to the most, when a round was evaluated, over the nodes that were online then or, where there "
    "are more than 100 nodes, over those of them that were among 100 drawn for the round.",
    "numbers": "What the method, its selector or the app has measured, by its name in the record, where it has changed "
    "from round to round (the first twelve); dotted are the least and the most.",
    "hours": "Work counts as wasted when it was broken off, or when the server that had asked for it did not use what "
    "came of it; what peers make of each other's work is not followed. An idle node is online and does not compute: it "
    "sends, receives or waits. What is missing to 100% is absence.",
    "map": "Sites, the larger the more clients or peers are there; orange is the server's. The wider a link, the "
    "more it carried.",
    "utilisation": "The share of the run in which at least one transfer was under way, latency included.",
}
"""What a figure needs said beside its title."""

LAST_ROWS = 10
MOST_FAULTS = 30
"""So many of each kind are listed."""
MOST_SVG_BYTES = 150_000


def write_report(run: str | Path, out: str | Path | None = None) -> Path:
    """Write RUN/report.html, which needs no other file, and draw RUN/figures.

    Args:
        run: the run's folder, with ``record.sqlite`` and, if they exist, ``experiment.yaml`` and
            ``summary.json``. The run may be unfinished or without training; the page then says so.
        out: another folder for page and figures; it is made if there is none.

    Returns:
        The path of the page.

    Raises:
        BadValue: if the folder is not a run, or a file in it is damaged.
        OSError: if the page or a figure cannot be written.
    """
    run, out = Path(run), Path(run if out is None else out)
    if not (run / FILE).is_file():
        raise BadValue("run", str(run), f"is not the folder of a run (it holds no {FILE})", "try: ls runs")
    given = _summary(run)
    with settled(run) as record:
        out.mkdir(parents=True, exist_ok=True)
        html = _page(run, record, given, out)
    write_text(out / "report.html", html, lasting=False)
    return out / "report.html"


def _page(run: Path, record: Path, given: Mapping[str, Any], out: Path) -> str:
    """Draw the figures and return the page."""
    experiment = _text(run / "experiment.yaml")
    table = metrics(record)
    known = facts(record)
    target = known.get("target_accuracy")
    rounds = read(record, "rounds")
    told = {**_from_file(experiment, run), "assumed": known.get("assumed")}
    summary = {**dict.fromkeys(KEYS), **told, **_so_far(rounds, table, target), **given}
    broken = faults(record)
    listed = _faults(broken)
    role = _member(read(record, "nodes"))
    loader = FileSystemLoader(Path(__file__).parent / "templates")
    pages = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return pages.get_template("report.html").render(
        summary=summary,
        finished="run_hash" in given,  # it is written last
        trained="accuracy" in table or "loss" in table or ("app" in known and set(table) > set(WIDE)),
        is_app="app" in known,
        assumed=", ".join(f"{name} = {_number(value)}" for name, value in (summary["assumed"] or {}).items()),
        stalled=summary.get("stalled"),
        notes=known.get("notes") or [],
        scene=player.scene(record, known, _end_us(summary, known)),
        steady=_steady(read(record, "presence")),
        tiles=_tiles(summary, target, round_times_s(rounds), role, figures.evaluated_on(known)),
        figures=[
            (
                TITLES[name],
                name,
                _picture(path),
                " ".join(filter(None, (REMARKS.get(name), _told(name, known)))),
            )
            for name, path in figures.draw_all(record, out).items()
        ],
        faults=listed,
        fault_counts=_counts(broken),
        more_faults=len(broken["node"]) - len(listed),
        columns=[name.removesuffix("_s").replace("_", " ") for name in table],
        rows=_last_rows(table),
        experiment=experiment,
    )


def _end_us(summary: Mapping[str, Any], known: Mapping[str, Any]) -> int:
    """Return when a run ended, or how far it has come."""
    so_far = round((summary["sim_time_s"] or 0) * 1e6)
    return so_far if known.get("sim_time_us") is None else int(known["sim_time_us"])


def _told(name: str, known: Mapping[str, Any]) -> str:
    """Return what the facts of a run say of what a figure shows."""
    if name == "topology" and known.get("spectral_gap") is not None:
        rounds = known.get("mixing_rounds")
        time = (
            ""
            if rounds is None
            else f"; mixing time {rounds:,}, the rounds until averaging alone leaves 1% of it"
        )
        return (
            f"Spectral gap of the mixing matrix {known['spectral_gap']:.4g}, the share of the nodes' distance "
            f"from their mean that a round of averaging takes away at least{time}."
        )
    between, within = (known.get(f"difficulty_{where}_clients") for where in ("between", "within"))
    if name == "labels" and between is not None and within is not None:
        unit = known.get("difficulty_unit")
        return (
            f"How hard the samples are{f' ({unit})' if unit else ''}: standard deviation {between:.4g} between the "
            f"means of the clients, and on average {within:.4g} within a client."
        )
    return ""


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _summary(run: Path) -> dict[str, Any]:
    try:
        summary = from_json(_text(run / "summary.json"))
    except ValueError:
        # There is none yet, or a version that did not write it at once was killed meanwhile.
        return {}
    if not isinstance(summary, dict):
        return {}
    try:
        Summary.model_validate(summary)
    except pydantic.ValidationError as error:
        raise BadValue("run", str(run), f"holds no readable summary.json ({first(error)})") from error
    return summary


def _from_file(experiment: str, run: Path) -> dict[str, Any]:
    """Return what the experiment file says of a run that has no summary."""
    try:
        chosen = yamlfile.parse(experiment, "experiment.yaml").data
    except ConfigError:
        chosen = {}
    strategy = chosen.get("strategy")
    name = strategy.get("name") if isinstance(strategy, dict) else strategy
    return {"strategy": name, "name": chosen.get("name") or run.resolve().name, "seed": chosen.get("seed")}


def _so_far(rounds: Table, table: Table, target: float | None) -> dict[str, Any]:
    """Return a summary from the record: what an unfinished run can say of itself."""
    summary: dict[str, Any] = {}
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


def _tiles(
    summary: Mapping[str, Any], target: float | None, lasted_s: Array, member: str, on: str
) -> list[tuple[str, str, str]]:
    """Return what the tiles show: the number, what it is, and a remark."""
    s = summary
    tiles = _scores(s, on)
    if target is not None and s["accuracy"] is not None:
        reached = s["time_to_target_s"]
        shown = "not reached" if reached is None else human_time(reached)
        tiles.append((shown, "time to target", f"accuracy {target:g}"))
    if s["rounds"] is not None:
        tiles.append((f"{s['rounds']:,}", "rounds", ""))
    if s["sim_time_s"] is not None:
        wall = "" if s["wall_time_s"] is None else f"computed in {human_time(s['wall_time_s'])}"
        if s.get("wall_total_s") is not None:
            wall += f", {human_time(s['wall_total_s'])} with setup and report"
        tiles.append((human_time(s["sim_time_s"]), "simulated time", wall))
    if len(lasted_s):
        rank = {n: human_time(time_s) for n, time_s in percentiles(lasted_s).items()}
        tiles.append((rank[50], "median round", f"90% within {rank[90]}, 99% within {rank[99]}"))
    if s["bytes_up"] is not None:
        lost = f"{human_bytes(s['bytes_lost'])} lost" if s["bytes_lost"] else "nothing lost"
        tiles.append((human_bytes(s["bytes_up"]), "sent by all nodes", lost))
        tiles.append((human_bytes(s["bytes_down"]), "received by all nodes", _extremes(s, member)))
    if s["work_samples"]:
        wasted = f"of {s['work_samples']:,.0f} sample gradients"
        wasted += "" if s["wasted_s"] is None else f", {human_time(s['wasted_s'])}"
        tiles.append((f"{(s['wasted_samples'] or 0) / s['work_samples']:.1%}", "wasted work", wasted))
    return tiles + _spent(s, member)


def _scores(s: Mapping[str, Any], on: str) -> list[tuple[str, str, str]]:
    """Return the tiles of how good the model is; the test's own score where the run was evaluated on other samples."""
    tiles = []
    held = on if on == "validation" else ""  # the test's own score stands beside it
    if s["accuracy"] is not None:
        best = "" if s["best_accuracy"] is None else f"best {s['best_accuracy']:.2%}"
        tiles.append((f"{s['accuracy']:.2%}", " ".join(f"final {held} accuracy".split()), best))
    elif s["loss"] is not None:
        tiles.append((f"{s['loss']:.4g}", " ".join(f"final {held} loss".split()), ""))
    if s.get("test_accuracy") is not None:
        tiles.append((f"{s['test_accuracy']:.2%}", "test accuracy", "looked at when the run was over"))
    elif s.get("test_loss") is not None:
        tiles.append((f"{s['test_loss']:.4g}", "test loss", "looked at when the run was over"))
    return tiles


def _spent(s: Mapping[str, Any], member: str) -> list[tuple[str, str, str]]:
    """Return the tiles of what all clients or peers together spent: time, energy, memory."""
    tiles = []
    online_s = (s["busy_s"] or 0.0) + (s["idle_s"] or 0.0)
    if online_s:
        times = f"{human_time(s['busy_s'])} busy, {human_time(s['idle_s'])} idle, {human_time(s['offline_s'])} offline"
        tiles.append((f"{s['busy_s'] / online_s:.1%}", "computing while online", times))
    if s["joules"] is not None:
        tiles.append((f"{s['joules']:,.4g} J", "energy", f"all {member}s together"))
    if s["memory_mb"] is not None:
        tiles.append((f"{s['memory_mb']:,.4g} MB", "memory needed", f"by the largest {member}"))
    return tiles


def _member(nodes: Table) -> str:
    """Return what those who learn are called; servers are left out of the extremes."""
    return next((role for role in nodes["role"].tolist() if role != "server"), "node")


def _extremes(summary: Mapping[str, Any], member: str) -> str:
    low, high = summary["bytes_min_node"], summary["bytes_max_node"]
    if low is None or high is None:
        return ""
    return f"per {member}, both ways: {human_bytes(low)} to {human_bytes(high)}"


def _steady(presence: Table) -> bool:
    """Tell whether everybody is known to have been online from beginning to end."""
    return bool(len(presence["node"])) and bool((presence["online"] == 1).all())


def _faults(broken: Table) -> list[tuple[str, str, str, str]]:
    """Return the rows of the list of faults: the first of each kind, so that none crowds out the others."""
    firsts = [np.flatnonzero(broken["kind"] == kind)[:MOST_FAULTS] for kind in set(broken["kind"].tolist())]
    shown = np.sort(np.concatenate([*firsts, np.zeros(0, dtype=np.int64)]))
    columns = (broken[name][shown].tolist() for name in ("time_us", "kind", "node", "peer", "round"))
    return [
        (human_time(time / 1e6), kind.replace("_", " "), _ids(node, peer), _ids(round))
        for time, kind, node, peer, round in zip(*columns)
    ]


def _counts(broken: Table) -> str:
    kinds, counts = np.unique(broken["kind"], return_counts=True)
    return ", ".join(
        f"{kind.replace('_', ' ')}: {count:,}" for kind, count in zip(kinds.tolist(), counts.tolist())
    )


def _ids(*ids: int) -> str:
    return ", ".join(str(one) for one in ids if one >= 0) or "–"


def _last_rows(table: Table) -> list[list[str]]:
    write: dict[str, Callable[[Any], str]] = {"round": str, "time_s": human_time}
    write |= {"bytes_up": human_bytes, "bytes_down": human_bytes}
    rows = zip(*(column[-LAST_ROWS:].tolist() for column in table.values()))
    return [[write.get(name, _number)(value) for name, value in zip(table, row)] for row in rows]


def _number(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.4g}"


def _picture(png: Path) -> str:
    """Return a figure as a data address: drawn lines where they are few, a picture where they are many."""
    svg = png.with_suffix(".svg")
    best, kind = (svg, "svg+xml") if svg.stat().st_size <= MOST_SVG_BYTES else (png, "png")
    return f"data:image/{kind};base64,{base64.b64encode(best.read_bytes()).decode()}"
