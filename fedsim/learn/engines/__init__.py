"""Engines: how the compute plane does its jobs. All of them give what the sequential one gives."""

from __future__ import annotations

from fedsim.learn.engines.base import BUFFERS, Engine, Shard, TrainJob
from fedsim.learn.engines.closed import Closed
from fedsim.learn.engines.lean import Lean
from fedsim.learn.engines.sequential import Sequential
from fedsim.learn.engines.stacked import Stacked

__all__ = ["BUFFERS", "Closed", "Engine", "Lean", "Sequential", "Shard", "Stacked", "TrainJob"]
