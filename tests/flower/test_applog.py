"""What an app says is in its run's folder, and on the screen what is asked for."""

from __future__ import annotations

import logging

from typer.testing import CliRunner

from fedsim.cli.app import app as cli
from fedsim.flower import run_app

SAYS = (
    "    config = context.run_config\n",
    """    import logging
    import time
    config = context.run_config
    time.sleep(2.5)
    logging.getLogger("my.app").info("chose %d", 7)
    logging.getLogger("my.app").debug("no word")
""",
)
RAISES = ("    target = float", '    raise ZeroDivisionError("no data")\n    target = float')
QUIET = {"record.report": False}


def test_lines_have_the_simulated_time(app, tmp_path):
    before = logging.getLogger().level, logging.getLogger("flwr").level, list(logging.getLogger().handlers)
    result = run_app(app("plain", {"server.py": SAYS}), nodes=2, overrides=QUIET, out=tmp_path)
    lines = (result.path / "app.log").read_text().splitlines()
    assert "t = 2.500000 s INFO my.app: chose 7" in lines
    assert any(line.startswith("t = 2.500000 s INFO flwr: Starting FedAvg strategy") for line in lines)
    assert not any("no word" in line for line in lines)
    assert before == (
        logging.getLogger().level,
        logging.getLogger("flwr").level,
        list(logging.getLogger().handlers),
    )


def test_a_client_that_raises_leaves_its_traceback(app, tmp_path):
    result = run_app(app("plain", {"client.py": RAISES}), nodes=2, overrides=QUIET, out=tmp_path)
    text = (result.path / "app.log").read_text()
    assert "client 0: the ClientApp raised ZeroDivisionError: no data" in text
    assert 'raise ZeroDivisionError("no data")' in text


def test_verbose_shows_more(app, tmp_path, caplog):
    folder = app("plain", {"server.py": SAYS})
    arguments = ["flower", "run", str(folder), "--nodes", "2", "--set", "record.report=false", "--quiet"]
    arguments += ["--out", str(tmp_path / "runs")]
    caplog.set_level(logging.DEBUG)
    assert CliRunner().invoke(cli, arguments).exit_code == 0
    assert "chose 7" not in caplog.text
    assert CliRunner().invoke(cli, [*arguments, "--verbose"]).exit_code == 0
    assert "chose 7" in caplog.text
