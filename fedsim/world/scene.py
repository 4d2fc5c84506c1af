"""Whose code runs: the node and the line of a process, of an event that is about to happen, or of a thread."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any, NamedTuple, Protocol, runtime_checkable

import simpy

from fedsim.places import is_own, near


class Scene(NamedTuple):
    """Where something happens.

    Args:
        node: the node's id, or None where no node has to do with it.
        line: file and line of the code, or an empty string.
    """

    node: int | None
    line: str


def of_frames(frames: list[FrameType]) -> Scene:
    """Return the scene of a stack of frames, the innermost last: the innermost line that a user may have written."""
    foreign = [frame for frame in frames if not is_own(frame.f_code.co_filename)]
    nodes = [id for frame in reversed(frames) for id in _nodes(frame)]
    last = (foreign or frames)[-1:]
    return Scene(nodes[0] if nodes else None, line(last[0]) if last else "")


def of_process(process: simpy.Process) -> Scene:
    """Return the scene of a process that waits for something."""
    return of_frames(_frames(process))


def _frames(process: simpy.Process) -> list[FrameType]:
    frames: list[FrameType] = []
    generator: Any = process._generator
    while getattr(generator, "gi_frame", None) is not None:
        frames.append(generator.gi_frame)
        generator = generator.gi_yieldfrom
    return frames


def of_event(event: simpy.Event) -> Iterator[Scene]:
    """Yield the scenes of those who will react to an event."""
    for callback in event.callbacks or ():
        owner = getattr(callback, "__self__", None)
        if isinstance(owner, simpy.Process):
            yield of_process(owner)
        for call, arguments in getattr(owner, "_calls", ()):
            inner = next((one for one in (*arguments, call) if hasattr(one, "__code__")), None)
            if inner is not None and not is_own(inner.__code__.co_filename):
                yield Scene(None, f"{near(inner.__code__.co_filename)}:{inner.__code__.co_firstlineno}")


def of_thread(ident: int) -> Scene:
    """Return the scene of a running thread."""
    frames: list[FrameType] = []
    frame = sys._current_frames().get(ident)
    while frame is not None:
        frames.insert(0, frame)
        frame = frame.f_back
    for process in [frame.f_locals.get("self") for frame in reversed(frames)]:
        if isinstance(process, simpy.Process):  # SimPy may be just about to resume it
            return of_frames(frames + [inner for inner in _frames(process) if inner not in frames])
    return of_frames(frames)


def line(frame: FrameType) -> str:
    """Return file and line of a frame."""
    return f"{near(frame.f_code.co_filename)}:{frame.f_lineno}"


@runtime_checkable
class Somebody(Protocol):
    """A node, as far as it matters here: it has a number and a role."""

    id: int
    role: str


def _nodes(frame: FrameType) -> Iterator[int]:
    for value in frame.f_locals.values():
        node: Any = value if isinstance(value, Somebody) else getattr(value, "node", None)
        if isinstance(node, Somebody) and isinstance(node.id, int):
            yield node.id
