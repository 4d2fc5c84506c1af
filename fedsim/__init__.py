"""fedsim: federated and decentralized learning in simulated time.

>>> import fedsim
>>> sorted(fedsim.__all__)
['Result', '__version__', 'check', 'load', 'parts', 'report', 'run']
"""

from fedsim.api import Result, check, load, report, run
from fedsim.version import __version__

__all__ = ["Result", "__version__", "check", "load", "parts", "report", "run"]
