"""What must happen before anything else is imported.

``python -m fedsim`` makes the current folder the first place to import from, also for libraries: a user's own
``queue.py`` there would be run in place of Python's. Parts in that folder are found in another way; see
:mod:`fedsim.beside`.
"""

import os
import sys


def names_us(command: list[str]) -> bool:
    """Tell whether a command, as in ``sys.orig_argv``, starts fedsim or one of its modules with ``-m``.

    >>> names_us(["python", "-m", "fedsim", "run"]), names_us(["python", "-Wmfedsim", "-m", "pytest", "-m", "fedsim"])
    (True, False)
    """
    for word, after in zip(command, [*command[1:], ""]):
        if word.startswith("-m"):
            return (word[2:] or after).partition(".")[0] == "fedsim"
    return False


# While Python looks for the module that -m names, this is what it has put in the place of the program.
if sys.argv[:1] == ["-m"] and names_us(sys.orig_argv) and sys.path[:1] == [os.getcwd()]:
    del sys.path[0]
