"""Compare strategies on one experiment: tune each one's learning rate on one seed, run it with others, print a table.

python experiments/compare.py fedamd-quadratic --target 1e-6 --seeds 1 2 3

Every method gets the same grid of learning rates and is tuned on a seed of its own (0); where a study has one rate,
all methods take it as it is. The table has what it took to reach the target, such as rounds, bytes and per-sample
gradients, as mean and standard deviation over the seeds, of as many of them as reach it. Bytes are counted where they
are sent and where they are received.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import statistics
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from matplotlib.figure import Figure

PAPERS = Path(__file__).parent / "papers"
Method = dict[str, Any]
"""What a method changes in the experiment's blocks; its strategy also gets the experiment's local training, its network
the experiment's other settings."""


def plain(name: str, **params: Any) -> Method:
    """Return a method that is a strategy and nothing else."""
    return {"strategy": {"name": name, **params}}


ANCHORS = {
    "FedAMD, p = 0.5": plain("fedamd", p=0.5),
    "FedAMD, p = 0.8": plain("fedamd", p=0.8),
    "FedAMD, sequential": plain("fedamd", period=2),
    "FedAvg": plain("fedavg"),
    "SCAFFOLD": plain("scaffold"),
    "FedPAGE": plain("fedpage"),
    "BVR-L-SGD": plain("bvr_l_sgd"),
}
SERVER: Method = {"topology": "star", "network": {"server": {"site": "best"}}}
"""A server at the best of the sites, whose links have no limit."""
REGULAR = {"name": "random_regular", "degree": 10}
PEERS = {
    "MoDeST, a = 1": plain("modest", sample_size=10, aggregators=1),
    "MoDeST, a = 2": plain("modest", sample_size=10, aggregators=2),
    "FedAvg, unlimited server": plain("fedavg") | SERVER,
    "D-PSGD, 10 neighbours": plain("dpsgd") | {"topology": REGULAR},
    "one-peer D-SGD": plain("one_peer") | {"topology": "exponential"},
    "gossip": plain("gossip", period_s=5) | {"topology": REGULAR},
}
CRASH = {"ping_timeout_s": 2, "window": 20}
CRASHED = {
    "MoDeST, a = 1, sf = 1": plain("modest", sample_size=10, aggregators=1, success_fraction=1.0, **CRASH),
    "MoDeST, a = 1, sf = 0.6": plain("modest", sample_size=10, aggregators=1, success_fraction=0.6, **CRASH),
    "MoDeST, a = 2, sf = 0.6": plain("modest", sample_size=10, aggregators=2, success_fraction=0.6, **CRASH),
    "MoDeST, a = 3, 60 s": plain("modest", sample_size=10, aggregators=3, aggregator_timeout_s=60, **CRASH),
    "FedAvg, unlimited server": plain("fedavg") | SERVER,
}
JOINED = {
    "MoDeST, a = 2, sf = 0.9": plain(
        "modest", sample_size=10, aggregators=2, success_fraction=0.9, window=1000
    ),
    "FedAvg, unlimited server": plain("fedavg") | SERVER,
}
RANKED = {
    order: plain("dpsgd_curriculum", rounds=40, order=order)
    for order in ("vanilla", "random", "anti", "curriculum")
}


ORDERED = {
    order: plain(
        "fedprox", mu=0.0, local={"curriculum": {"order": order, "score": "global", "a": 0.8, "b": 0.2}}
    )
    for order in ("curriculum", "random", "anti")
} | {"vanilla": plain("fedprox", mu=0.0, local={"curriculum": {"order": "vanilla"}})}


class Study(NamedTuple):
    """What is compared.

    Args:
        methods: by the name in the table.
        rates: the learning rates to choose from; a single one is taken as it is.
        columns: what it takes to reach the target.
        lasts: whether the table says how many rounds there were, and when the last one ended.
    """

    methods: Mapping[str, Method]
    rates: tuple[float, ...]
    columns: tuple[str, ...]
    lasts: bool = False


STUDIES = {
    "fedamd-quadratic": Study(ANCHORS, (0.02, 0.05, 0.1, 0.2), ("round", "bytes", "work")),
    "fedamd-digits": Study(ANCHORS, (0.02, 0.05, 0.1, 0.2), ("round", "bytes", "work")),
    "fedamd-mnist": Study(ANCHORS, (0.001, 0.003, 0.01, 0.03, 0.1), ("round", "bytes", "work")),
    "modest-digits": Study(PEERS, (0.1,), ("time", "bytes", "work")),
    "modest-mnist": Study(PEERS, (0.05,), ("time", "bytes", "work")),
    "modest-crash80": Study(CRASHED, (0.1,), ("time", "bytes", "work"), lasts=True),
    "curriculum-mnist": Study(ORDERED, (0.01,), ("round", "time", "work")),
    "curriculum-peers": Study(RANKED, (0.1,), ("round", "time", "bytes")),
    "modest-join": Study(JOINED, (0.1,), ("time", "bytes", "work"), lasts=True),
}
TITLES = {
    "round": ("rounds", 1.0),
    "time": ("simulated s", 1e6),
    "bytes": ("MB sent and received", 1e6),
    "work": ("1,000 gradients", 1e3),
}

Curve = dict[str, list[float]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment", choices=sorted(STUDIES))
    parser.add_argument("--target", type=float, required=True, help="accuracy, or distance to the minimiser")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--methods", nargs="+", help="instead of all of the study's")
    parser.add_argument("--rounds", type=int, help="instead of the experiment's")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--figure", type=Path, help="where to draw the curves")
    given = parser.parse_args()
    study = STUDIES[given.experiment]
    if given.methods:
        study = study._replace(methods={name: study.methods[name] for name in given.methods})
    base = yaml.safe_load((PAPERS / f"{given.experiment}.yaml").read_text())
    if given.rounds:
        base["stop"] = {"rounds": given.rounds}
    os.environ["OMP_NUM_THREADS"] = "1"
    context = get_context("spawn")
    with ProcessPoolExecutor(given.processes, mp_context=context) as pool:
        rates = tune(pool, base, study)
        jobs = [(method, seed) for method in study.methods for seed in given.seeds]
        work = [(study.methods[method], rates[method], seed) for method, seed in jobs]
        runs = list(pool.map(functools.partial(run, base), *zip(*work)))
    curves = {m: [curve for (name, _), curve in zip(jobs, runs) if name == m] for m in study.methods}
    print(table(curves, rates, given.target, study))
    if given.figure:
        draw(curves, given.target, study.columns).savefig(given.figure, dpi=110)


def tune(pool: ProcessPoolExecutor, base: Mapping[str, Any], study: Study) -> dict[str, float]:
    """Return the learning rate of each method that does best at the end of a run with seed 0."""
    if len(study.rates) == 1:
        return dict.fromkeys(study.methods, study.rates[0])
    jobs = [(method, rate) for method in study.methods for rate in study.rates]
    work = [(study.methods[method], rate, 0) for method, rate in jobs]
    found = list(pool.map(functools.partial(run, base), *zip(*work)))
    rates = {}
    for method in study.methods:
        mine = {rate: last(curve) for (name, rate), curve in zip(jobs, found) if name == method}
        rates[method] = (max if measure(found) == "accuracy" else min)(mine, key=mine.__getitem__)
        print(
            f"{method}: " + ", ".join(f"lr {rate:g}: {score:.3g}" for rate, score in mine.items()), flush=True
        )
    return rates


def run(base: Mapping[str, Any], method: Method, rate: float, seed: int) -> Curve:
    """Run a method once, and return its accuracy or distance with what it had cost by then."""
    import fedsim
    from fedsim.errors import NotFiniteError, StalledError
    from fedsim.record.store import read

    with tempfile.TemporaryDirectory() as out:
        with contextlib.suppress(NotFiniteError, StalledError):  # what was measured before that counts
            fedsim.run(variant(base, method, rate, seed), out=out)
        path = next(Path(out).iterdir())
        metrics, rounds, nodes = (read(path, name) for name in ("metrics", "rounds", "nodes"))
    name = "distance" if (metrics["name"] == "distance").any() else "accuracy"
    at = (metrics["name"] == name) & (metrics["node"] < 0)
    traffic = (nodes["bytes_up"] + nodes["bytes_down"])[nodes["role"] != "server"]
    rows = np.searchsorted(rounds["round"], metrics["round"][at])
    return {
        name: metrics["value"][at].tolist(),
        "round": metrics["round"][at].tolist(),
        "time": metrics["time_us"][at].tolist(),
        "least": [float(traffic.min())],
        "most": [float(traffic.max())],
        "rounds": [float(rounds["round"].max())],
        "last": [float(rounds["time_us"].max()) / 1e6],
        "bytes": (rounds["bytes_up"] + rounds["bytes_down"])[rows].tolist(),
        "work": rounds["work"][rows].tolist(),
        "updates": rounds["clients"][rows].tolist(),
    }


def variant(base: Mapping[str, Any], method: Method, rate: float, seed: int) -> dict[str, Any]:
    """Return the experiment with another method, learning rate and seed."""
    own = base["strategy"]
    local = {**own["local"], **method["strategy"].get("local", {}), "lr": rate}
    strategy: dict[str, Any] = {**method["strategy"], "local": local}
    cohort = own.get("participants") or own.get("sample_size")
    if strategy["name"] == "fedavg":
        strategy |= {"fraction_train": cohort / base["data"]["clients"], "fraction_evaluate": 0.0}
    elif "participants" in own:
        strategy["participants"] = cohort
    network = {**base.get("network", {}), **method.get("network", {})}
    changed = {**base, **method, "network": network, "strategy": strategy}
    return {**changed, "name": strategy["name"], "seed": seed, "record": {"report": False, "events": False}}


def measure(curves: list[Curve]) -> str:
    """Return what is measured: accuracy or distance."""
    return "accuracy" if "accuracy" in curves[0] else "distance"


def last(curve: Curve) -> float:
    """Return the mean over the last fifth of what was measured."""
    name = measure([curve])
    values = [value for value in curve[name][-max(1, len(curve[name]) // 5) :]]
    return statistics.fmean(values)


def reached(curve: Curve, target: float) -> int | None:
    """Return the place at which a run first reaches the target."""
    name = measure([curve])
    good: Callable[[float], bool] = (lambda v: v >= target) if name == "accuracy" else (lambda v: v <= target)
    return next((place for place, value in enumerate(curve[name]) if good(value)), None)


def table(curves: Mapping[str, list[Curve]], rates: Mapping[str, float], target: float, study: Study) -> str:
    """Return the comparison as Markdown."""
    titles = [TITLES[key][0] for key in study.columns] + ["at the end"]
    titles += ["rounds", "the last one ends (s)"] if study.lasts else []
    titles = ["method", "lr", f"seeds at {target:g}", *titles, "MB of a node, least to most"]
    lines = [f"| {' | '.join(titles)} |", "| --- " * len(titles) + "|"]
    for method, runs in curves.items():
        ends = [(run, place) for run in runs if (place := reached(run, target)) is not None]
        cells = [method, f"{rates[method]:g}", f"{len(ends)} of {len(runs)}"]
        for key in study.columns:
            cells.append(spread([run[key][place] / TITLES[key][1] for run, place in ends], ".3g"))
        name = measure(runs)
        cells.append(spread([last(run) for run in runs], ".3f" if name == "accuracy" else ".2g"))
        if study.lasts:
            cells += [spread([run[key][0] for run in runs], ".0f") for key in ("rounds", "last")]
        least, most = (statistics.fmean(run[key][0] for run in runs) / 1e6 for key in ("least", "most"))
        cells.append(f"{least:.3g} to {most:.3g}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(values: list[float], digits: str) -> str:
    """Return mean and standard deviation as text."""
    if not values:
        return "-"
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):{digits}} ± {deviation:{digits.lstrip('+')}}"


def draw(curves: Mapping[str, list[Curve]], target: float, columns: tuple[str, ...]) -> Figure:
    """Draw every method's mean, and the range over seeds, against what it costs."""
    name = measure(next(iter(curves.values())))
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    for ax, key in zip(panels, columns):
        title, unit = TITLES[key]
        for method, runs in curves.items():
            length = min(len(run[name]) for run in runs)
            values = np.array([run[name][:length] for run in runs])
            x = np.mean([run[key][:length] for run in runs], axis=0) / unit
            (line,) = ax.plot(x, values.mean(axis=0), label=method, linewidth=1.3)
            ax.fill_between(
                x, values.min(axis=0), values.max(axis=0), color=line.get_color(), alpha=0.15, linewidth=0
            )
        widths = [np.mean([run[key][-1] for run in runs]) for runs in curves.values()]
        if max(widths) > 20 * min(widths):
            ax.set_xscale("log")
        ax.axhline(target, color="grey", linewidth=0.8, linestyle=":")
        ax.set_xlabel(title)
    panels[0].set_ylabel(name if name == "accuracy" else "distance to the minimiser")
    if name == "distance":
        panels[0].set_yscale("log")
    panels[2].legend(fontsize=7)
    return figure


if __name__ == "__main__":
    main()
