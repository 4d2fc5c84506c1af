"""Reports of runs, finished or not: what goes wrong with one is told in one line."""

from __future__ import annotations

import logging
from pathlib import Path

from fedsim.errors import BadValue, ConfigError, Problem

log = logging.getLogger("fedsim")


def report(run: str | Path, out: str | Path | None = None) -> Path:
    """Write the report of a run from what was recorded, finished or not, and return its path.

    Args:
        run: the run's folder.
        out: the folder in which report and figures are written, the run's own if it is None.

    Raises:
        ConfigError: if the folder is not a run, its record is damaged, or the report cannot be written.
    """
    from fedsim.record.report import write_report  # loads matplotlib and Jinja

    try:
        return write_report(Path(run), None if out is None else Path(out))
    except BadValue as error:
        raise ConfigError([Problem(error.key, error.value, error.rule, error.hint)]) from error
    except OSError as error:
        rule = f"its report cannot be written ({error.strerror or error})"
        raise ConfigError([Problem("run", str(run), rule)]) from error
    except (ArithmeticError, LookupError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        # Of the right kind, but no run gives such numbers: ages before its beginning, the bytes of a galaxy.
        rule = f"its report cannot be drawn ({type(error).__name__}: {error}); its record may be damaged"
        raise ConfigError([Problem("run", str(run), rule)]) from error


def try_report(run: Path) -> None:
    """Write the report of a run that is over; should that fail, warn, for the run itself has all that it needs."""
    try:
        report(run)
    except Exception as error:
        why = error if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"
        log.warning("the run is done, but its report failed (%s); to try again: fedsim report %s", why, run)
