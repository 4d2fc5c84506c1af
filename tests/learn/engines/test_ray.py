"""A Ray cluster: the same bits as one process, whatever happens to its actors; clear words where there is none."""

from __future__ import annotations

import http.server
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import fedsim
import fedsim.learn.engines.ray as engines_ray
from fedsim.errors import BadValue, ConfigError
from fedsim.learn.engines import Closed, Lean, Shard, connection
from fedsim.learn.engines.choose import cluster_of
from fedsim.learn.engines.desk import dumps, loads
from fedsim.learn.engines.ray import Cluster, Ray, Remote, Shelf, Unlike
from fedsim.learn.local import LocalSGD
from fedsim.running.begin import _compared
from fedsim.running.threads import limited
from fedsim.spec.experiment import Local, Part
from tests.learn.engines.test_engines import UPDATES, make_jobs, same
from tests.learn.engines.test_workers import Deadly, share_of, small

pytestmark = [  # Ray leaves files and processes of its own to the end
    pytest.mark.filterwarnings("ignore:unclosed file .*/dev/null:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning"),
]

SLOW = pytest.mark.slow
"""A cluster takes seconds to start."""

RUN = {
    "data": {"clients": 6, "partition": {"name": "dirichlet", "alpha": 0.3}},
    "model": "mlp",
    "strategy": {"name": "dpsgd", "local": {"epochs": 2}},
    "topology": "ring",
    "stop": {"rounds": 3},
    "record": {"report": False, "events": False},
}


@pytest.fixture(autouse=True)
def _one_thread():
    with limited(1):
        yield


@pytest.fixture(scope="module")
def library():
    """Start Ray once, as a user may who has more to do with it."""
    ray = pytest.importorskip("ray")
    connection.ray()
    ray.init(num_cpus=4, address="local", log_to_driver=False, configure_logging=False)
    yield ray
    ray.shutdown()


@pytest.fixture
def sharing(library):
    begun = []

    def begin(engine, actors=1):
        for one in begun:  # their processors are needed
            one.close()
        made = Ray(engine, Cluster(actors=actors))
        begun.append(made)
        made.begin()
        assert made.wait() == actors
        made._is_worth_it = lambda kind, count: count > 1  # however small the work
        made.piece_s = 1e-9
        return made

    yield begin
    for one in begun:
        one.close()
        assert one.processes == []
    assert library.is_initialized()  # it was not us who has started it


@SLOW
def test_the_bits_are_those_of_one_process_with_any_number_of_actors(sharing):
    task, data = small()
    names = ("sgd", "momentum", "scaffold-2", "miner-5")
    for kind, actors in ((Closed, 1), (Closed, 3), (Lean, 2)):
        jobs = [job for name in names for job in make_jobs(task, data, UPDATES[name])]
        wanted = kind(task, data).train(jobs)
        found, elsewhere = share_of(sharing(kind(task, data), actors), jobs)
        assert all(map(same, found, wanted))
        assert 0 < elsewhere < len(jobs)


@SLOW
def test_models_are_judged_alike(sharing):
    task, data = small()
    test = torch.randn(50, 1, 8, 8), torch.randint(0, 4, (50,))
    data = Shard(data.x, data.y, data.owned, None, test)
    weights = [task.initial * (1 + i / 10) for i in range(9)]
    made = sharing(Closed(task, data))
    assert made.evaluate(weights, *test, 20) == made.inner.evaluate(weights, *test, 20)


@SLOW
def test_the_work_of_an_actor_that_is_killed_is_done_again(sharing, caplog):
    task, data = small()
    update = Deadly(Local(epochs=1, batch_size=4, lr=0.1), os.getpid(), "SIGKILL")
    jobs = make_jobs(task, data, update) * 3
    made = sharing(Closed(task, data), 2)
    assert all(map(same, made.train(jobs), Closed(task, data).train(jobs)))
    while made.processes:  # the second may have been given nothing
        made._bury(made.processes[0])
    assert "an actor has ended (ActorDiedError" in caplog.messages[0]
    assert caplog.messages[0].endswith("what it was at is done again")
    assert all(map(same, made.train(jobs), Closed(task, data).train(jobs)))


@SLOW
def test_what_fails_there_is_done_here_and_what_cannot_be_sent_stays_here(sharing):
    task, data = small()
    made = sharing(Closed(task, data))
    jobs = make_jobs(task, data, Deadly(Local(epochs=1, batch_size=4, lr=0.1), os.getpid(), "raise"))
    assert all(map(same, made.train(jobs), Closed(task, data).train(jobs)))
    assert len(made.processes) == 1

    class Local_(LocalSGD):
        def __reduce__(self):
            raise TypeError("not to be sent")

    jobs = make_jobs(task, data, Local_(Local(epochs=1, batch_size=4, lr=0.1)))
    assert all(map(same, made.train(jobs), Closed(task, data).train(jobs)))
    assert made.processes == []


@SLOW
def test_an_actor_that_could_compute_other_numbers_is_not_used(sharing):
    task, data = small()
    made = sharing(Closed(task, data))
    [actor] = made.processes
    mine = engines_ray.facts(made)
    assert mine["torch"] == torch.__version__
    actor._compare(mine)
    for name in mine:
        with pytest.raises(Unlike, match=rf"{name} is other there, and .* here"):
            actor._compare({**mine, name: "other"})


@SLOW
def test_runs_and_studies_say_the_same(library, tmp_path):
    """Also where runs advance together; the address is that of the cluster that is connected."""
    engine = {"name": "ray", "actors": 2}
    wanted = fedsim.run(RUN, out=tmp_path, compute__workers=1).summary["run_hash"]
    here = library.get_runtime_context().gcs_address
    for one in (engine, {**engine, "address": here}, {"name": "ray", "inner": "closed"}):
        assert fedsim.run(RUN, out=tmp_path, compute__engine=one).summary["run_hash"] == wanted
    study = {"base": {**RUN, "compute": {"engine": engine}}, "vary": {"seed": [0, 1]}}
    found = fedsim.sweep(study, out=tmp_path / "study", together=True)
    assert found[0].summary["run_hash"] == wanted
    with pytest.raises(ConfigError, match=r"compute.engine.address: 127.0.0.1:\d+: no Ray cluster"):
        fedsim.check(RUN, compute__engine={"name": "ray", "address": f"127.0.0.1:{free_port()}"})


CONNECTS = """
import sys, time, fedsim
experiment, address = eval(sys.argv[1]), sys.argv[2]
for engine in ("closed", {"name": "ray", "address": address, "actors": 1}):
    print(fedsim.run(experiment, out="runs", compute__engine=engine).summary["run_hash"])
import ray
print(ray.is_initialized())
"""


@SLOW
def test_a_cluster_that_runs_already(tmp_path):
    """Nothing of it ends with the run; a run that is killed leaves nothing on it."""
    pytest.importorskip("ray")
    port = free_port()
    tool = [sys.executable, "-m", "ray.scripts.scripts"]
    start = ["start", "--head", f"--port={port}", "--num-cpus=2", "--include-dashboard=false", "--block"]
    environment = {**os.environ, **connection.QUIET}
    head = subprocess.Popen(
        [*tool, *start], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    )
    try:
        end_s = time.monotonic() + 60
        while not is_open(port) and time.monotonic() < end_s:
            time.sleep(0.2)
        ran = subprocess.run(
            [sys.executable, "-c", CONNECTS, repr(RUN), f"127.0.0.1:{port}"],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
        mine, its, left = [line for line in ran.stdout.splitlines() if "Token" not in line][-3:]
        assert (mine, left) == (its, "False")
        assert is_open(port)
    finally:
        head.terminate()
        head.wait()


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def is_open(port):
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


@SLOW
def test_a_cluster_that_cannot_be_reached(monkeypatch):
    """In one line, and soon: also where somebody answers who is no Ray cluster."""
    pytest.importorskip("ray")
    monkeypatch.setattr(engines_ray, "REACH_S", 1.0)
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    began = time.monotonic()
    try:
        for port in (free_port(), server.server_address[1]):
            for scheme in ("", "ray://"):
                with pytest.raises(
                    BadValue, match=f"engine.address: {scheme}127.0.0.1:{port}: no Ray cluster"
                ):
                    Cluster(address=f"{scheme}127.0.0.1:{port}").reach()
    finally:
        server.shutdown()
        server.server_close()
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("engine", "workers", "said"),
    [
        ({"name": "ray", "adress": "auto"}, None, "engine.adress: unknown key; did you mean address?"),
        ({"name": "ray", "actors": 0}, None, "engine.actors: 0: must be at least 1"),
        ({"name": "ray", "inner": "ray"}, None, "engine.inner: ray: is no engine that does jobs by itself"),
        ({"name": "ray", "inner": "clsed"}, None, "engine: clsed: no such engine; did you mean closed?"),
        ({"name": "ray"}, 2, "workers: 2: are processes of this machine, and the engine takes actors of a cluster"),
    ],
)  # fmt: skip
def test_what_is_refused(engine, workers, said):
    with pytest.raises(BadValue) as error:
        cluster_of(Part.model_validate(engine), workers)
    assert str(error.value).startswith(said)


@pytest.mark.parametrize("address", ["here", "10.0.0.1", "10.0.0.1:", ":6379", "host:port", "host:99999"])
def test_addresses_that_are_none(address, monkeypatch):
    monkeypatch.setattr(connection, "ray", lambda: None)
    with pytest.raises(BadValue, match=rf"engine.address: {address}: must be HOST:PORT; such as"):
        Cluster(address=address).reach()


def test_without_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"compute.engine.*: ray: needs ray, which is not installed; pip"):
        fedsim.check({**RUN, "compute": {"engine": "ray"}})


def test_other_engines_need_no_ray():
    for block in ("auto", "closed"):
        assert cluster_of(Part(name=block), 2) is None


def test_a_run_may_go_on_with_or_without_a_cluster():
    given = {"model": "mlp", "compute": {"workers": 2, "dtype": "float32"}}
    seen = [
        _compared({**given, "compute": {**given["compute"], "engine": engine}})["compute"]["engine"]
        for engine in ("ray", {"name": "ray", "actors": 3}, {"name": "ray", "inner": "lean"}, "closed")
    ]
    assert seen == ["auto", "auto", "lean", "closed"]
    less = {"name": "stacked", "precision": "bf16"}
    assert _compared({**given, "compute": {"engine": less}})["compute"] == {"engine": less}


def test_numbers_on_a_shelf():
    """Larger ones are put into the store, each time they are laid down: who lays them twice keeps them himself."""
    stored = []

    def store(array, tensor):
        stored.append(tensor)
        return array

    big, small_ = torch.arange(2000.0), torch.arange(400)
    shelf = Shelf(store, 5000)
    data = dumps({"a": big, "b": [big, small_]}, shelf)
    assert len(shelf.arrays) == 2
    assert [one.data_ptr() for one in stored] == [big.data_ptr()]
    found = loads(data, Shelf(arrays=shelf.arrays))
    assert torch.equal(found["a"], big)
    assert found["b"][0] is found["a"]
    assert torch.equal(found["b"][1], small_)
    assert found["b"][1].dtype == torch.int64
    read_only = Shelf(arrays=[one.view() for one in shelf.arrays])
    for array in read_only.arrays:
        array.flags.writeable = False
    assert torch.equal(loads(data, read_only)["a"], big)


def test_a_remote_is_a_helper_of_workers():
    assert {"give", "take", "ended", "close"} <= vars(Remote).keys()
    assert Path(engines_ray.__file__).exists()
