"""Check the findings of "When Do Curricula Work in Federated Learning?" one by one, on MNIST made hard.

FEDSIM_DATA=DIR python experiments/findings.py --out findings.jsonl

Every run is a line of the file, so that a study which was stopped goes on where it was. Two tables come of it: the
accuracy of every ordering, and each finding with what it says, what was measured, and whether it holds.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml
from compare import PAPERS, Curve, run, spread

ORDERS = ("curriculum", "random", "anti")
EVEN: dict[str, Any] = {"name": "dirichlet", "alpha": 1e6}
WORLDS: dict[str, dict[str, Any]] = {
    "IID": {"partition": EVEN},
    "Dir(0.05)": {},
    "IID, sorted": {"partition": {"name": "by_difficulty", "order": "inc", "by": "expert"}},
    "IID, wrong": {"partition": EVEN, "levels": [0.0], "wrong": 0.3},
    "Dir(0.05), wrong": {"levels": [0.0], "wrong": 0.3},
}
"""What a world changes in the data of the experiment, whose inputs have noise: sorted gives every client samples of
about the same difficulty, wrong has three in ten labels wrong in the place of noise."""

Measure = Literal["end", "equal", "early"]


class Cell(NamedTuple):
    """What is run with several seeds.

    Args:
        world: one of :data:`WORLDS`.
        samples: how a client orders its samples.
        clients: how the server orders the clients; None draws them uniformly.
        score: which model says how hard samples and clients are.
        b: the share of them that is there from the start.
    """

    world: str
    samples: str = "vanilla"
    clients: str | None = None
    score: str = "global"
    b: float = 0.2


class Result(NamedTuple):
    """What one run has shown.

    Args:
        end: mean accuracy over the last ten of the experiment's rounds.
        equal: mean accuracy over the ten rounds up to as many client updates as the plain algorithm makes in these.
        early: mean accuracy over rounds 1 to 5.
        best: the best accuracy of a round.
        gradients: per-sample gradients in the experiment's rounds, in thousands.
    """

    end: float
    equal: float
    early: float
    best: float
    gradients: float


class Finding(NamedTuple):
    """A difference that is to be positive.

    Args:
        text: what is claimed.
        paper: the difference in the paper's own runs, in points of accuracy, or "-".
        more: cells whose accuracies are added.
        less: cells whose accuracies are taken away.
        measure: which accuracy.
    """

    text: str
    paper: str
    more: Sequence[Cell]
    less: Sequence[Cell]
    measure: Measure = "end"


IID, DIR = Cell("IID"), Cell("Dir(0.05)")
ALIKE = Cell("IID, sorted", score="expert")
PLAIN = Cell("IID, sorted")


def ordered(base: Cell, order: str, **more: Any) -> Cell:
    """Return a cell whose samples are ordered."""
    return base._replace(samples=order, **more)


def chosen(base: Cell, order: str, **more: Any) -> Cell:
    """Return a cell whose clients are ordered."""
    return base._replace(clients=order, **more)


def both(base: Cell) -> Cell:
    """Return a cell in which samples and clients are ordered."""
    return base._replace(samples="curriculum", clients="curriculum")


def orderings() -> Iterable[Finding]:
    """Yield what is said of the order of samples."""
    claims = {
        "IID": ("4.2", "5.4", "5.0"),
        "Dir(0.05)": ("6.0", "7.0", "4.5"),
        "IID, wrong": ("-", "-", "-"),
        "Dir(0.05), wrong": ("-", "-", "-"),
    }
    pairs = [("curriculum", "random"), ("random", "anti"), ("curriculum", "vanilla")]
    for world, papers in claims.items():
        for (one, other), paper in zip(pairs, papers):
            base = Cell(world)
            yield Finding(
                f"{one} above {other}, {world}", paper, [ordered(base, one)], [ordered(base, other)]
            )


def strengths() -> Iterable[Finding]:
    """Yield what is said of heterogeneity, of the share at the start and of scores."""
    easy, chance = "curriculum", "random"
    yield Finding(
        "curriculum gains more over random in Dir(0.05) than IID",
        "1.8",
        [ordered(DIR, easy), ordered(IID, chance)],
        [ordered(DIR, chance), ordered(IID, easy)],
    )
    for base, helps, hurts in ((IID, "1.8", "4.7"), (DIR, "2.9", "6.7")):
        small, large = (ordered(base, easy, b=b) for b in (0.2, 0.8))
        yield Finding(
            f"a small start helps curriculum (b = 0.2 above 0.8), {base.world}", helps, [small], [large]
        )
        small, large = (ordered(base, "anti", b=b) for b in (0.2, 0.8))
        yield Finding(f"a small start hurts anti (b = 0.8 above 0.2), {base.world}", hurts, [large], [small])
    local, expert = (ordered(DIR, easy, score=score) for score in ("local", "expert"))
    yield Finding("the global score above the local one, Dir(0.05)", "4.4", [ordered(DIR, easy)], [local])
    text = "the expert's score above the global one in rounds 1 to 5, Dir(0.05)"
    yield Finding(text, "1.8", [expert], [ordered(DIR, easy)], "early")


def levels() -> Iterable[Finding]:
    """Yield what is said of ordering samples, clients or both."""
    easy, anti, mixed = "curriculum", "anti", IID._replace(score="expert")
    yield Finding(
        "the order of samples matters less where a client's samples are alike",
        "8.0",
        [ordered(mixed, easy), ordered(ALIKE, anti)],
        [ordered(mixed, anti), ordered(ALIKE, easy)],
    )
    yield Finding(
        "the order of clients matters more where a client's samples are alike",
        "-",
        [chosen(ALIKE, easy), chosen(mixed, anti)],
        [chosen(ALIKE, anti), chosen(mixed, easy)],
    )
    for other, paper in ((PLAIN, "3.9"), (ordered(ALIKE, easy), "1.7"), (chosen(ALIKE, easy), "1.8")):
        text = f"both levels above {describe(other)}, sorted"
        yield Finding(text, paper, [both(ALIKE)], [other])
    measures: tuple[tuple[str, Measure], ...] = (("rounds", "end"), ("updates", "equal"))
    for base, plain, paper in ((ALIKE, PLAIN, "7.2"), (DIR, DIR, "-")):
        for name, measure in measures:
            text = f"ordered clients above the plain algorithm at equal {name}, {base.world}"
            yield Finding(text, paper, [chosen(base, easy)], [plain], measure)


def findings() -> list[Finding]:
    """Return all findings."""
    return [*orderings(), *strengths(), *levels()]


def cells() -> list[Cell]:
    """Return all that is run: what the findings need."""
    return list(dict.fromkeys(plain(cell) for one in findings() for cell in (*one.more, *one.less)))


def plain(cell: Cell) -> Cell:
    """Return the cell without what changes nothing: chance needs no score, and vanilla no share either."""
    orders = {cell.samples, cell.clients} - {None, "vanilla"}
    if not orders:
        return cell._replace(score="global", b=0.2)
    return cell if orders - {"random"} else cell._replace(score="global")


def describe(cell: Cell) -> str:
    """Return the level that is ordered, in words."""
    names = ["samples"] * (cell.samples != "vanilla") + ["clients"] * bool(cell.clients)
    return f"ordered {' and '.join(names)} alone" if names else "the plain algorithm"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="where the runs are kept")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    base = yaml.safe_load((PAPERS / "curriculum-mnist.yaml").read_text())
    jobs = [(cell, seed) for cell in cells() for seed in given.seeds]
    mark = hashlib.sha256(json.dumps(base).encode()).hexdigest()[:12]
    known = read(given.out, mark)
    with ProcessPoolExecutor(given.processes, mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(measured, base, *job): job for job in jobs if job not in known}
        for done in as_completed(waiting):
            job = waiting[done]
            known[job] = done.result()
            with given.out.open("a") as file:
                print(json.dumps([mark, *job, known[job]]), file=file)
    print(accuracies(known, given.seeds), verdicts(known, given.seeds), sep="\n\n")


def read(path: Path, mark: str) -> dict[tuple[Cell, int], Result]:
    """Return the runs of this very experiment that are kept; a line that was cut off does not count."""
    found = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            experiment, cell, seed, result = json.loads(line)
            if experiment == mark:
                found[Cell(*cell), seed] = Result(*result)
    return found


def measured(base: Mapping[str, Any], cell: Cell, seed: int) -> Result:
    """Run a cell with a seed."""
    rounds = base["stop"]["rounds"]
    strategy = {key: value for key, value in base["strategy"].items() if key != "local"}
    local = dict(base["strategy"]["local"])
    local["curriculum"] = {**local["curriculum"], "order": cell.samples, "score": cell.score, "b": cell.b}
    if cell.samples == "vanilla":
        local["curriculum"] = {"order": "vanilla"}
    if cell.clients:
        order = {"order": cell.clients, "score": cell.score, "b": cell.b}
        strategy["select"] = {"name": "curriculum", "rounds": rounds, **order}
    changed = {
        **base,
        "data": {**base["data"], **WORLDS[cell.world]},
        "strategy": {**strategy, "local": local},
        "stop": {"rounds": rounds * 3 // 2 if cell.clients else rounds},
    }
    curve = run(changed, {"strategy": strategy}, local["lr"], seed)
    return result(curve, rounds, rounds * strategy["participants"])


def result(curve: Curve, rounds: int, updates: int) -> Result:
    """Return what a run has shown, after so many rounds and after so many client updates."""
    accuracy = curve["accuracy"]
    equal = max(place for place, done in enumerate(curve["updates"]) if done <= updates)
    mean = statistics.fmean
    return Result(
        end=mean(accuracy[rounds - 9 : rounds + 1]),
        equal=mean(accuracy[equal - 9 : equal + 1]),
        early=mean(accuracy[1:6]),
        best=max(accuracy[: rounds + 1]),
        gradients=curve["work"][rounds] / 1e3,
    )


Known = Mapping[tuple[Cell, int], Result]


def accuracies(known: Known, seeds: Sequence[int]) -> str:
    """Return the first table: the accuracy of every ordering."""
    lines = ["| data | ordered | score | b | curriculum | random | anti | vanilla |", "| --- " * 8 + "|"]
    rows: dict[Cell, None] = {}
    for cell in cells():
        orders = {cell.samples, cell.clients} - {None, "vanilla"}
        if orders <= {"curriculum", "anti"} and orders and (cell.samples == "vanilla" or not cell.clients):
            rows[(chosen if cell.clients else ordered)(cell, "curriculum")] = None
    for row in sorted(
        rows, key=lambda cell: (list(WORLDS).index(cell.world), bool(cell.clients), cell.b, cell.score)
    ):
        kind = chosen if row.clients else ordered
        mine = [plain(kind(row, order)) for order in ORDERS] + [Cell(row.world)]
        level = "clients" if row.clients else "samples"
        texts = [row.world, level, row.score, f"{row.b:g}", *(accuracy(known, cell, seeds) for cell in mine)]
        lines.append(f"| {' | '.join(texts)} |")
    return "\n".join(lines)


def accuracy(known: Known, cell: Cell, seeds: Sequence[int]) -> str:
    """Return the accuracy at the end, and the best one."""
    if any((cell, seed) not in known for seed in seeds):
        return "-"
    runs = [known[cell, seed] for seed in seeds]
    return f"{spread([r.end for r in runs], '.3f')} ({statistics.fmean(r.best for r in runs):.3f})"


def verdicts(known: Known, seeds: Sequence[int]) -> str:
    """Return the second table: each finding, the paper's difference and ours, and whether it holds."""
    lines = ["| finding | paper | here | seeds | holds |", "| --- " * 5 + "|"]
    for finding in findings():
        gains = [gain(known, finding, seed) for seed in seeds]
        texts = [
            finding.text,
            finding.paper,
            spread(gains, "+.1f"),
            str(sum(g > 0 for g in gains)),
            verdict(gains),
        ]
        lines.append(f"| {' | '.join(texts)} |")
    return "\n".join(lines)


def gain(known: Known, finding: Finding, seed: int) -> float:
    """Return the difference in one seed, in points of accuracy."""
    more, less = (
        sum(getattr(known[plain(cell), seed], finding.measure) for cell in side)
        for side in (finding.more, finding.less)
    )
    return float(100 * (more - less))


def verdict(gains: Sequence[float]) -> str:
    """Return whether a finding holds: with every seed, in the mean alone, or not.

    >>> verdict([1.0, 2.0]), verdict([3.0, -1.0]), verdict([-1.0, 0.5])
    ('yes', 'in the mean', 'no')
    """
    if min(gains) > 0:
        return "yes"
    return "in the mean" if statistics.fmean(gains) > 0 else "no"


if __name__ == "__main__":
    main()
