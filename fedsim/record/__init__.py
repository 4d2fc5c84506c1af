"""What a run leaves behind: the record of facts, the figures and the report."""

from __future__ import annotations

from fedsim.record.store import Record, Table, facts, faults, metrics, read, wide

__all__ = ["Record", "Table", "facts", "faults", "metrics", "read", "wide"]
