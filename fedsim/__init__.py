"""fedsim: federated and decentralized learning in simulated time.

>>> import fedsim
>>> [name for name in sorted(fedsim.__all__) if name.islower()][:6]
['__version__', 'check', 'compare', 'load', 'report', 'reproduce']
"""

from fedsim import start  # noqa: F401  (first of all: it decides what the others import)
from fedsim.api import Result, check, load, report, results, resume, run, schema
from fedsim.errors import ConfigError, RunError
from fedsim.studies import compare, reproduce, sweep
from fedsim.version import __version__

__all__ = [
    "ConfigError",
    "Result",
    "RunError",
    "__version__",
    "check",
    "compare",
    "load",
    "report",
    "reproduce",
    "results",
]
__all__ += ["resume", "run", "schema", "sweep"]
