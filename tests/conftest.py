"""What holds for all tests."""

from __future__ import annotations

import os

os.environ.setdefault("FEDSIM_WORKERS", "1")
"""Several tests run at a time already; those of worker processes ask for them by name."""
