"""fedsim: federated and decentralized learning in simulated time.

>>> import fedsim
>>> sorted(fedsim.__all__)
['ConfigError', 'Result', 'RunError', '__version__', 'check', 'load', 'report', 'resume', 'run']
"""

from fedsim import start  # noqa: F401  (first of all: it decides what the others import)
from fedsim.api import Result, check, load, report, resume, run
from fedsim.errors import ConfigError, RunError
from fedsim.version import __version__

__all__ = ["ConfigError", "Result", "RunError", "__version__", "check", "load", "report", "resume", "run"]
