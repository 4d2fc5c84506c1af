"""Runs of apps that were stopped go on, and end as they would have ended: to the last bit, and line by line."""

from __future__ import annotations

import shutil

import pytest
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from typer.testing import CliRunner

import fedsim
import fedsim.flower
from fedsim.cli.app import app as cli
from fedsim.errors import ConfigError, RunError, short
from fedsim.flower import run_app
from fedsim.flower.apps.origin import REPLIES, sources
from fedsim.record.store import read
from fedsim.record.tape import Tape

WORLD = {
    "seed": 3,
    "network": {"latency_ms": 5, "detect_s": 0.1},
    "churn": {"name": "exponential", "online_s": 0.2, "offline_s": 0.02},
    "faults": [
        {"name": "message_loss", "probability": 0.05},
        {"name": "corrupt", "kind": "noise", "scale": 0.1, "nodes": [2]},
    ],
    "record": {"report": False, "checkpoint": {}},
}
SAYS = (
    "    target = float",
    """    import logging
    from itertools import count
    CALLS.append(context.node_id)
    count = context.state["visits"]["count"] if "visits" in context.state else 0
    logging.getLogger("my.client").info("client %d, visit %d", context.node_id, count)
    if context.node_id == 1 and count == 1:
        context.state["visits"]["count"] += 1
        raise ValueError("no data today")
    target = float""",
)
CALLS = ("app = ClientApp()\n", "app = ClientApp()\nCALLS = []\n")
"""The clients say something, and one of them fails once."""

DATED = (
    "    config = context.run_config\n",
    """    import time, random
    config = dict(context.run_config)
    config["fraction-train"] = 0.4 + 0.3 * random.random() + 0.1 * (int(time.time()) % 3)
    time.sleep(0.25)
""",
)
"""The server looks at the date, draws a number, and sleeps: all that follows from the run's beginning."""


@pytest.fixture
def talking(app):
    folder = app("plain", {"server.py": DATED})
    client = folder / "plain_app" / "client.py"
    text = client.read_text()
    for old, new in (CALLS, SAYS):
        assert old in text
        text = text.replace(old, new)
    client.write_text(text)
    return folder


def run(folder, out, rounds=4, nodes=5, world=WORLD, **more):
    return run_app(
        folder, nodes=nodes, world=world, run_config=f"num-server-rounds={rounds}", out=out, **more
    )


def cut(result, size):
    """Make of a finished run one that was killed when so many bytes had been kept."""
    (result / "summary.json").unlink(missing_ok=True)
    with (result / REPLIES).open("r+b") as file:
        file.truncate(size)


def pieces(folder):
    """Return where each piece of what was kept ends."""
    with Tape(folder / REPLIES) as tape:
        whole, ends = tape.left, []
        while tape.read() is not None:
            ends.append(whole - tape.left)
    return ends


def left(folder):
    """Return all that a run leaves but times of the real world."""
    lines = (folder / "app.log").read_text().splitlines()
    return {
        "log": [
            line for line in lines if "execution finished in" not in line
        ],  # Flower looks at a real clock
        "kept": (folder / REPLIES).read_bytes(),
        "weights": (folder / "weights.safetensors").read_bytes(),
        **{
            table: [repr(column.tolist()) for column in read(folder, table).values()]
            for table in ("metrics", "rounds", "events", "presence", "nodes", "links")
        },
    }


def test_a_run_that_was_stopped_ends_as_it_would_have(talking, tmp_path):
    """It is cut off at the start, in the middle of a piece, with a flipped bit, and at the very end."""
    whole = run(talking, tmp_path / "whole")
    assert whole.summary["error_replies"] == 1
    expected, ends = left(whole.path), pieces(whole.path)
    assert sum("INFO my.client: client" in line for line in expected["log"]) >= 8
    assert any("no data today" in line for line in expected["log"])
    place = tmp_path / "cut" / whole.path.name
    shutil.copytree(whole.path, place)
    for size in (ends[0], ends[len(ends) // 2] + 7, ends[-1]):
        cut(place, size)
        found = fedsim.resume(place)
        assert found.summary["run_hash"] == whole.summary["run_hash"]
        assert left(place) == expected
    raw = bytearray(expected["kept"])
    raw[ends[len(ends) // 3] + 60] ^= 1
    (place / REPLIES).write_bytes(raw)
    (place / "summary.json").unlink()
    assert fedsim.resume(place).summary["weights_hash"] == whole.summary["weights_hash"]
    assert left(place) == expected


@pytest.mark.slow
@pytest.mark.parametrize(("name", "rounds"), [("legacy", 3), ("pooled", 3)])
def test_former_servers_and_threads_go_on(name, rounds, app, tmp_path):
    whole = run(app(name), tmp_path / "whole", rounds)
    ends, expected = pieces(whole.path), read(whole.path, "events")
    cut(whole.path, ends[len(ends) // 2])
    found = fedsim.resume(whole.path)
    assert found.summary["run_hash"] == whole.summary["run_hash"]
    assert found.summary["metrics"] == whole.summary["metrics"]
    assert repr(read(whole.path, "events")) == repr(expected)


@pytest.mark.slow
def test_other_processes_make_no_difference(talking, tmp_path):
    """Neither in what was kept nor in the log, whoever has made the visits before and after."""
    here = run(talking, tmp_path / "here", overrides={"app.workers": 0})
    there = run(talking, tmp_path / "there", overrides={"app.workers": 2})
    expected, found = left(here.path), left(there.path)
    ends = pieces(there.path)
    assert {key: one for key, one in found.items() if key not in ("kept", "log")} == {
        key: one for key, one in expected.items() if key not in ("kept", "log")
    }
    assert [line for line in found["log"] if "my.client" in line] == [
        line for line in expected["log"] if "my.client" in line
    ]
    cut(there.path, ends[len(ends) // 2])
    assert fedsim.resume(there.path).summary["run_hash"] == here.summary["run_hash"]
    assert left(there.path) == found


def test_no_client_works_twice(talking, tmp_path):
    """Only the very first reply is made again, to see that clients reply as they did."""
    calls = tmp_path / "calls"
    client = talking / "plain_app" / "client.py"
    note = f"with open({str(calls)!r}, 'a') as file: file.write('x')"
    client.write_text(client.read_text().replace("CALLS.append(context.node_id)", note))
    whole = run(talking, tmp_path / "whole")
    worked = len(calls.read_text())
    (whole.path / "summary.json").unlink()
    assert fedsim.resume(whole.path).summary["run_hash"] == whole.summary["run_hash"]
    assert len(calls.read_text()) == worked + 1


def changing(folder, text, tmp_path):
    """Let the ServerApp do something else in every process, as a real clock would have it."""
    mark = tmp_path / "mark"
    server = folder / "plain_app" / "server.py"
    code = server.read_text().replace(
        "    config = context.run_config\n",
        f"""    from pathlib import Path
    mark = Path({str(mark)!r})
    again = mark.exists()
    mark.touch()
    config = dict(context.run_config)
{text}
""",
    )
    assert "again" in code
    server.write_text(code)
    return folder


@pytest.mark.parametrize(
    ("text", "place", "said"),
    [
        (
            "    import numpy\n    grid.send_and_receive([ask(2, 1), ask(1, 1 + again)]); return",
            "node 1, round 7, t = 0.000000 s, server: ",
            "the message that it sends holds something else",
        ),
        (
            "    grid.send_and_receive([ask(2, 1), ask(1 - again, 1)]); return",
            "node 0, round 7, t = 0.000000 s, server: ",
            "it sends a message to this client, and had sent one to client 1",
        ),
        (
            "    grid.send_and_receive([ask(2, 1)] * (1 + again)); return",
            "node 2, round 7, t = 0.000000 s, server: ",
            "it sends a message more",
        ),
        (
            "    grid.send_and_receive([ask(2, 1), ask(1, 1)][again:]); return",
            "node 1, round 7, t = 0.000000 s, server: ",
            "it sends a message to this client, and had sent one to client 2",
        ),
        (
            "    import time; time.sleep(1 + again)\n    grid.send_and_receive([ask(2, 1)]); return",
            "node 2, round 7, t = 2.000000 s, server: ",
            "that was at t = 1.000000 s",
        ),
        (
            "    grid.send_and_receive([ask(2, 1)])\n    again or grid.send_and_receive([ask(0, 1)])\n    return",
            "node 5, round 7, t = 0.012000 s, server: ",
            "it has returned, and had sent messages at t = 0.012000 s",
        ),
    ],
)
def test_a_server_that_does_something_else_is_found_at_once(text, place, said, app, tmp_path):
    """A visit takes 5 ms to the client, its 12 samples (client 2) at 1 ms … and 5 ms back, without a header."""
    folder = changing(app("plain"), text, tmp_path)
    server = folder / "plain_app" / "server.py"
    server.write_text(
        server.read_text()
        + """

def ask(node, value):
    from flwr.app import ConfigRecord, Message, RecordDict
    arrays = ArrayRecord({"w": Array(np.full(4, value, dtype=np.float32))})
    return Message(RecordDict({"arrays": arrays, "config": ConfigRecord({"server-round": 7})}), node, "train")
"""
    )
    quiet = {"record": {"report": False, "checkpoint": {}}, "devices": {"seconds_per_sample": 0.001}}
    first = run(folder, tmp_path / "runs", world=quiet)
    kept = (first.path / REPLIES).read_bytes()
    (first.path / "summary.json").unlink()
    with pytest.raises(RunError) as caught:
        fedsim.resume(first.path)
    text = str(caught.value)
    assert text.startswith(
        f"{place}the ServerApp does not repeat what it did before the run was stopped: {said}"
    )
    assert "\n" not in text
    assert not hasattr(caught.value, "go_on")
    assert (first.path / REPLIES).read_bytes() == kept


def said(folder, *options):
    """Return what the command prints where it refuses a run, after the folder, of which it shows the beginning."""
    done = CliRunner().invoke(cli, ["resume", str(folder), "--quiet", *options])
    assert done.exit_code == 2, done.output
    assert "Traceback" not in done.output
    return done.output.removeprefix(f"run: {short(str(folder))}: ").rstrip("\n")


CALM = {"network": {"latency_ms": 5}, "record": {"report": False, "checkpoint": {}}}


def test_what_cannot_go_on_is_refused_by_name(app, tmp_path):
    folder = app("plain")
    result = run(folder, tmp_path / "runs", 1, world=CALM)
    path, client = result.path, folder / "plain_app" / "client.py"
    hint = "where the world has a stop.sim_time_s, it can be longer with --extend sim_time_s=+N"
    assert said(path) == f"has ended; there is nothing to go on with; {hint}"
    (path / "summary.json").unlink()
    rule = "an app's own code says how many rounds it has; begin it anew, as with --run-config"
    assert said(path, "--extend", "rounds=+2") == f"extend: rounds: {rule}"
    assert said(path, "--set", "stop.rounds=9") == f"{path}: stop.rounds: an app brings this itself"
    other = said(path, "--set", "network.latency_ms=7")
    assert "network.latency_ms: 7.0: must be 5.0, as when the run began" in other
    kept, text = (path / REPLIES).read_bytes(), client.read_text()
    client.write_text(text + "# a remark\n")
    (folder / "plain_app" / "more.py").touch()
    again = "put them back, or begin it anew: fedsim flower run"
    changed = "is that of an app whose sources have changed since: plain_app/client.py, plain_app/more.py"
    assert said(path).startswith(f"{changed}; {again} {folder} --nodes 5")
    client.write_text(text)
    (folder / "plain_app" / "more.py").unlink()
    folder.rename(tmp_path / "away")
    assert said(path) == f"is that of the app in {folder}, which is not there any more; put it back"
    (tmp_path / "away").rename(folder)
    (path / REPLIES).write_bytes(b"x" + kept)
    assert (
        said(path) == f"cannot go on: the beginning of its {REPLIES} is not what was written; begin it anew"
    )
    with Tape(path / REPLIES) as tape:
        tape.append(b'{"format": 99, "version": "7.0.0"}')
    assert said(path).startswith("was begun by fedsim 7.0.0, whose runs of apps this version")
    (path / REPLIES).unlink()
    rule = "is that of a Flower app, and the replies of its clients were not kept; begin it anew, with --checkpoint"
    assert said(path) == rule
    (path / REPLIES).write_bytes(kept)
    assert fedsim.resume(path).summary["run_hash"] == result.summary["run_hash"]


def test_app_and_run_may_be_moved_together(app, tmp_path):
    app("plain")
    (tmp_path / "old").mkdir()
    (tmp_path / "plain").rename(tmp_path / "old" / "plain")
    result = run(tmp_path / "old" / "plain", tmp_path / "old" / "runs", 1, world=CALM)
    (result.path / "summary.json").unlink()
    (tmp_path / "old").rename(tmp_path / "new")
    found = fedsim.resume(tmp_path / "new" / "runs" / result.path.name)
    assert found.summary["run_hash"] == result.summary["run_hash"]


def test_a_run_that_time_has_ended_can_be_longer(app, tmp_path):
    """A round of 20 ms without work: 50 ms are two of them and a half, and 50 more make it five."""
    world = {**CALM, "devices": {"seconds_per_sample": 1e-9}, "stop": {"sim_time_s": 0.05}}
    short = run(app("plain"), tmp_path / "runs", 9, world=world)
    assert short.summary["sim_time_s"] == 0.05
    long = run(tmp_path / "plain", tmp_path / "runs", 9, world={**world, "stop": {"sim_time_s": 0.1}})
    done = CliRunner().invoke(cli, ["resume", str(short.path), "--extend", "sim_time_s=+0.05", "--quiet"])
    assert done.exit_code == 0, done.output
    assert read(short.path, "rounds")["time_us"].tolist() == read(long.path, "rounds")["time_us"].tolist()
    assert left(short.path)["weights"] == left(long.path)["weights"]
    less = {"stop.sim_time_s": 0.02, "record.checkpoint": None}
    found = fedsim.resume(short.path, extend={"sim_time_s": 0.01}, overrides=less)
    assert found.summary["sim_time_s"] == 0.03  # what came later is still kept, and nothing of it is wrong


def test_replies_are_kept_where_that_is_asked_for(app, tmp_path):
    folder = app("plain", **{"fedsim.world": "record = {report = false}"})
    arguments = [
        "flower",
        "run",
        str(folder),
        "--nodes",
        "2",
        "--quiet",
        "--run-config",
        "num-server-rounds=1",
    ]
    for name, options, kept in (("usual", [], False), ("asked", ["--checkpoint"], True)):
        done = CliRunner().invoke(cli, [*arguments, *options, "--out", str(tmp_path / name)])
        assert done.exit_code == 0, done.output
        (path,) = (tmp_path / name).iterdir()
        assert (path / REPLIES).exists() is kept
    with pytest.raises(ConfigError, match="must be left out: an app that consists of objects"):
        fedsim.flower.simulate(ServerApp(), ClientApp(), nodes=2, world=CALM, out=tmp_path)


def test_ctrl_c_says_how_to_go_on(app, tmp_path):
    """The server is stopped after its third round, and does as it is told when it is resumed."""
    mark = tmp_path / "mark"
    stop = (
        "    return MetricRecord",
        f"""    from pathlib import Path
    if server_round == 3 and not Path({str(mark)!r}).exists():
        Path({str(mark)!r}).touch()
        raise KeyboardInterrupt
    return MetricRecord""",
    )
    arguments = [
        "flower",
        "run",
        str(app("plain", {"server.py": stop})),
        "--nodes",
        "3",
        "--checkpoint",
        "--quiet",
    ]
    done = CliRunner().invoke(
        cli, [*arguments, "--set", "record.report=false", "--out", str(tmp_path / "runs")]
    )
    assert done.exit_code == 130
    (path,) = (tmp_path / "runs").iterdir()
    assert f"  to go on:        fedsim resume {path}" in done.output.splitlines()
    # How it began; and for each question the messages and the replies, of two clients to train and three to evaluate.
    assert len(pieces(path)) == 1 + 3 * (1 + 2) + 3 * (1 + 3)
    assert fedsim.resume(path).summary["rounds"] == 3


def test_a_disk_that_is_full_ends_what_is_kept_and_not_the_run(app, tmp_path, caplog, monkeypatch):
    """It has room for so many bytes of replies; what came after them is done again."""
    whole = run(app("plain"), tmp_path / "whole", world=CALM)
    room, append = pieces(whole.path)[7] + 5, Tape.append

    def full(self, piece):
        with_room = self.path.stat().st_size + len(piece) + 40 <= room
        if not with_room:
            raise OSError(28, "No space left on device")
        append(self, piece)

    monkeypatch.setattr(Tape, "append", full)
    found = run(tmp_path / "plain", tmp_path / "full", world=CALM)
    assert caplog.messages == ["replies are not kept any more: No space left on device"]
    assert found.summary["run_hash"] == whole.summary["run_hash"]
    assert len(pieces(found.path)) == 8
    monkeypatch.undo()
    (found.path / "summary.json").unlink()
    assert fedsim.resume(found.path).summary["run_hash"] == whole.summary["run_hash"]
    assert (found.path / REPLIES).read_bytes()[-100:] == (whole.path / REPLIES).read_bytes()[-100:]


def test_two_processes_are_not_in_one_folder(app, tmp_path):
    folder, found = app("plain"), []

    def look(progress):
        (path,) = (tmp_path / "runs").iterdir()
        found.append(said(path))

    run(folder, tmp_path / "runs", 1, world=CALM, progress=look)
    assert "is in use: another process runs or resumes this run" in found[0]


@pytest.mark.parametrize(("change", "error", "warns"), [("+ 0.001", None, True), ("/ 0", RunError, False)])
def test_clients_that_reply_something_else_are_noticed(change, error, warns, app, tmp_path, caplog):
    """Their data have changed, or are gone: what the file beside the app says is no source of the app's."""
    data = tmp_path / "data.txt"
    data.write_text("+ 0")
    old = 'target = float(context.node_config["partition-id"])'
    new = f"{old} + eval('1' + __import__('pathlib').Path({str(data)!r}).read_text())"
    folder = app("plain", {"client.py": (old, new)})
    result = run(folder, tmp_path / "runs", 2, world=CALM)
    cut(result.path, pieces(result.path)[3])
    data.write_text(change)
    if error is None:
        fedsim.resume(result.path)
    else:
        with pytest.raises(error, match=r"not reply as it did; now, it has sent an error .*division by zero"):
            fedsim.resume(result.path)
    assert any("does not reply to its first message as it did" in line for line in caplog.messages) is warns


def test_sources_are_those_of_the_app_alone(tmp_path):
    files = (
        "a.py",
        "b/c.py",
        "b/notes.txt",
        ".git/d.py",
        "b/__pycache__/e.py",
        "venv/pyvenv.cfg",
        "venv/lib/f.py",
    )
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "runs" / "one").mkdir(parents=True)
    (tmp_path / "runs" / "one" / "record.sqlite").touch()
    (tmp_path / "runs" / "one" / "objects.py").touch()
    assert list(sources(tmp_path)) == ["a.py", "b/c.py"]
