from __future__ import annotations

import pickle

import numpy as np
import pytest
from matplotlib.image import imread
from typer.testing import CliRunner

from fedsim.cli import app as cli
from fedsim.cli.tracing import describe, generate
from fedsim.errors import ConfigError
from fedsim.world.traces.files import Availability, Device, read, write

HOUR = ("--nodes", "20", "--hours", "1")
STAYS = ("--online-s", "300", "--offline-s", "100")


def call(*words):
    result = CliRunner().invoke(cli.app, ["trace", *map(str, words)])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.stdout, result.stderr


def refused(*words):
    code, out, error = call(*words)
    assert (code, out) == (2, "")
    assert error.count("\n") == 1, error
    return error.rstrip("\n")


# usage


@pytest.mark.parametrize("command", ["convert", "generate", "show"])
def test_every_command_has_help(command):
    assert f" {command} " in call("--help")[1]
    code, text, _ = call(command, "--help")
    assert code == 0
    assert "Usage" in text


@pytest.mark.parametrize(
    "words",
    [
        ["convert", "a"],
        ["generate"],
        ["generate", "exponential", "a.csv"],
        ["generate", "poisson", "a.csv"],
        ["generate", "exponential", *STAYS, "--nodes", "0", "--hours", "1", "a.csv"],
        ["generate", "exponential", *STAYS, "--nodes", "x", "--hours", "1", "a.csv"],
        ["show"],
    ],
)
def test_a_wrong_command_line_is_exit_code_2(words):
    code, _, errors = call(*words)
    assert code == 2
    assert "Traceback" not in errors


# generate


@pytest.mark.parametrize("suffix", ["csv", "json"])
@pytest.mark.parametrize(
    ("name", "options", "churn"),
    [
        ("exponential", STAYS, {"online_s": 300.0, "offline_s": 100.0}),
        ("weibull", (*STAYS, "--shape", "0.7"), {"online_s": 300.0, "offline_s": 100.0, "shape": 0.7}),
        (
            "diurnal",
            ("--low", "0.2", "--high", "0.7", "--period-s", "1800", "--zones", "3", "--step-s", "20"),
            {"low": 0.2, "high": 0.7, "period_s": 1800.0, "zones": 3, "step_s": 20.0},
        ),
    ],
)
def test_generate_writes_what_the_churn_does(tmp_path, name, options, churn, suffix):
    out = tmp_path / f"a.{suffix}"
    code, text, errors = call("generate", name, *HOUR, "--seed", "4", *options, out)
    assert (code, errors) == (0, "")
    trace = read(out)
    assert trace == generate({"name": name, **churn}, 20, 3600.0, seed=4)
    assert trace != generate({"name": name, **churn}, 20, 3600.0, seed=5)
    assert (len(trace.sessions), trace.period_s) == (20, 3600.0)
    assert text == f"{out}: {sum(map(len, trace.sessions))} sessions of 20 nodes in 3600 s\n"


def test_the_defaults_of_diurnal_are_those_of_the_churn(tmp_path):
    out = tmp_path / "a.json"
    assert (
        call("generate", "diurnal", "--nodes", "9", "--hours", "30", "--low", "0", "--high", "1", out)[0] == 0
    )
    assert read(out) == generate({"name": "diurnal", "low": 0, "high": 1}, 9, 30 * 3600.0, seed=0)


def test_mistakes_of_generate_are_one_line(tmp_path):
    out = tmp_path / "a.csv"
    assert refused("generate", "exponential", *HOUR, "--online-s", 0, "--offline-s", 1, out).startswith(
        "churn.online_s: 0.0: "
    )
    assert refused("generate", "diurnal", *HOUR, "--low", 0.9, "--high", 0.1, out) == (
        "churn.low: 0.9: must be at most high (0.1)"
    )
    assert refused("generate", "weibull", *HOUR, *STAYS, "--shape", 0, out).startswith("churn.shape: 0.0: ")
    for hours in ("0", "-1", "nan", "inf"):
        words = ("generate", "exponential", "--nodes", 2, "--hours", hours, *STAYS, out)
        assert refused(*words) == f"--hours: {float(hours)}: must be above 0 and at most 1000000"
    assert "a.txt must end in .csv or .json" in refused(
        "generate", "exponential", *HOUR, *STAYS, tmp_path / "a.txt"
    )
    assert "a.csv cannot be written" in refused(
        "generate", "exponential", *HOUR, *STAYS, tmp_path / "no" / "a.csv"
    )
    assert not out.exists()


def test_generate_refuses_an_unknown_churn():
    with pytest.raises(ConfigError, match="no such churn; did you mean exponential"):
        generate({"name": "exponentail"}, 1, 1.0, 0)


# convert


def test_convert_capacity(tmp_path):
    source, out = tmp_path / "client_device_capacity", tmp_path / "c.csv"
    source.write_bytes(pickle.dumps({1: {"computation": 10, "communication": 2000}}))
    assert call("convert", source, out) == (0, f"{out}: the capacity of 1 nodes\n", "")
    assert read(out) == (Device(0.03, 2.0, 2.0),)


def test_convert_behaviour_and_between_the_formats(tmp_path):
    source, first, second = tmp_path / "client_behave_trace", tmp_path / "a.json", tmp_path / "a.csv"
    row = {"duration": 9, "inactive": [2, 7], "finish_time": 10, "active": [1, 4], "model": "x"}
    source.write_bytes(pickle.dumps({1: row}))
    assert call("convert", source, first) == (0, f"{first}: 2 sessions of 1 nodes in 10 s\n", "")
    assert call("convert", first, second)[0] == 0
    assert read(first) == read(second) == Availability(10.0, (((1.0, 2.0), (4.0, 7.0)),))


def test_mistakes_of_convert_are_one_line(tmp_path):
    class Harm:
        def __reduce__(self):
            return exec, (f"open({str(tmp_path / 'harm')!r}, 'w')",)

    source, out = tmp_path / "evil", tmp_path / "a.csv"
    source.write_bytes(pickle.dumps({1: Harm()}))
    assert "evil is not a pickle of plain data (it names builtins.exec, and" in refused(
        "convert", source, out
    )
    source.write_bytes(pickle.dumps({1: {"computation": 1, "communication": 1}})[:-5])
    assert "evil is not a pickle of plain data (" in refused("convert", source, out)
    assert "no cannot be read" in refused("convert", tmp_path / "no", out)
    assert "a.txt must end in .csv or .json" in refused("convert", source, tmp_path / "a.txt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evil"]


# show


def test_show_describes_a_trace_as_a_circle(tmp_path):
    # Node 0: 90 to 100 and 0 to 20 are one session of 30 s, the other has 10 s; absences 40 and 20 s.
    # Node 1 is always online, node 2 never. Uptime (40 + 100 + 0) / 300.
    path = tmp_path / "a.json"
    sessions = (((0.0, 20.0), (60.0, 65.0), (65.0, 70.0), (90.0, 100.0)), ((0.0, 50.0), (50.0, 100.0)), ())
    write(path, Availability(100.0, sessions))
    assert call("show", path)[1].splitlines() == [
        "nodes      3, of which 1 never and 1 always online",
        "period     100 s",
        "uptime     0.4667 on average",
        "sessions   2: 5 %, 25 %, 50 %, 75 % and 95 % last at most 11, 15, 20, 25, 29 s",
        "absences   2: 5 %, 25 %, 50 %, 75 % and 95 % last at most 21, 25, 30, 35, 39 s",
    ]


def test_a_trace_without_any_change_has_no_lengths():
    lines = describe(Availability(10.0, ((), ((0.0, 10.0),))))
    assert lines[2:] == ["uptime     0.5 on average", "sessions   none", "absences   none"]


def test_show_describes_capacity(tmp_path):
    path = tmp_path / "c.csv"
    write(path, tuple(Device(float(n), None, 2.0 * n) for n in range(1, 102)))
    assert call("show", path)[1].splitlines() == [
        "nodes                101",
        "seconds_per_sample   6, 26, 51, 76, 96 (5 %, 25 %, 50 %, 75 %, 95 %)",
        "up_mbps              not given",
        "down_mbps            12, 52, 102, 152, 192 (5 %, 25 %, 50 %, 75 %, 95 %)",
    ]


def test_show_draws_a_picture(tmp_path):
    path, png = tmp_path / "a.csv", tmp_path / "a.png"
    write(path, Availability(100.0, (((0.0, 20.0), (20.0, 70.0)), (), ((30.0, 100.0),))))
    code, text, errors = call("show", path, "--png", png)
    assert (code, errors) == (0, "")
    assert text.startswith("nodes      3")
    picture = imread(png)
    assert picture.shape[0] > 200
    assert picture.shape[1] > 800
    assert len(np.unique(picture.reshape(-1, picture.shape[2]), axis=0)) > 10


def test_mistakes_of_show_are_one_line(tmp_path):
    path, speeds = tmp_path / "a.csv", tmp_path / "c.csv"
    write(speeds, (Device(1.0),))
    assert "a.csv does not exist" in refused("show", path)
    path.write_text("node,start_s,end_s\n0,2,1\n")
    assert refused("show", path).endswith("a.csv, line 2: end_s is 1, must be after start_s (2)")
    write(path, Availability(1.0, (((0.0, 1.0),),)))
    assert refused("show", path, "--png", "a.gif") == "--png: a.gif: must end in .png"
    assert "cannot be written" in refused("show", path, "--png", tmp_path / "no" / "a.png")
    assert "only availability can be drawn" in refused("show", speeds, "--png", tmp_path / "c.png")


# end to end


def test_an_experiment_runs_on_a_generated_trace_as_on_the_churn_itself(tmp_path):
    path = tmp_path / "a.csv"
    hours = ("--nodes", "4", "--hours", "2", "--seed", "3")
    assert call("generate", "exponential", *hours, "--online-s", 30, "--offline-s", 10, path)[0] == 0
    from fedsim import api

    base = {
        "data": {"clients": 4},
        "model": "softmax",
        "strategy": "dpsgd",
        "topology": "ring",
        "seed": 3,
        "devices": {"classes": [{"share": 1, "seconds_per_sample": 0.01}]},
        "network": {"latency_ms": 20},
        "stop": {"rounds": 3},
        "record": {"report": False},
    }
    churns = (
        {"name": "trace", "path": str(path)},
        {"name": "exponential", "online_s": 30.0, "offline_s": 10.0},
    )
    runs = [
        api.run({**base, "churn": churn}, out=tmp_path / name, timing_only=True)
        for churn, name in zip(churns, "ab")
    ]
    summaries = [dict(run.summary) for run in runs]
    assert summaries[0]["rounds"] == 3
    for key in ("sim_time_s", "bytes_up", "bytes_lost", "event_hash"):
        assert summaries[0][key] == summaries[1][key]
