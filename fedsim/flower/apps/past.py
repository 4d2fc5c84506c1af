"""What the clients of an app have replied: kept in the run's folder, and told again when the run goes on.

Then the ServerApp's own code runs once more from its start, and no ClientApp does until what was kept is used up. That
is the run it was only if the ServerApp asks for the same again, at the same moments: so what it sends is compared.
"""

from __future__ import annotations

import json
import logging
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from flwr.app import Error, Message, RecordDict

from fedsim.errors import RunError
from fedsim.flower import serial
from fedsim.flower.apps.applog import OUTSIDE, Line, say
from fedsim.flower.apps.visit import Done
from fedsim.flower.apps.visit import said as used
from fedsim.flower.simulate.instruction import named_round
from fedsim.record.tape import Tape
from fedsim.world.clock import MICRO
from fedsim.world.world import World

HEAD = struct.Struct("<QQ")
"""The lengths of the first two parts of a piece: what JSON can hold of it, and the reply's content."""

CAUSES = "does it look at a real clock, or draw random numbers that nobody has seeded? Begin the run anew"

log = logging.getLogger(OUTSIDE)


@dataclass(frozen=True)
class Piece:
    """What was kept of one moment: messages that were sent, or a reply.

    Args:
        about: all but records; ``sent`` has node and digest of each message, ``reply`` the id of the one replied to.
        content: the reply's records.
        state: the client's after it; empty if that is the one before it.
    """

    about: dict[str, Any]
    content: bytes = b""
    state: bytes = b""

    def packed(self) -> bytes:
        """Return it as bytes."""
        about = json.dumps(self.about).encode()
        return b"".join((HEAD.pack(len(about), len(self.content)), about, self.content, self.state))

    @classmethod
    def unpacked(cls, data: bytes) -> Piece:
        """Read what :meth:`packed` has returned.

        >>> Piece.unpacked(Piece({"at_us": 5}, b"content", b"state").packed())
        Piece(about={'at_us': 5}, content=b'content', state=b'state')
        """
        first, second = HEAD.unpack_from(data)
        middle = HEAD.size + first
        return cls(
            json.loads(data[HEAD.size : middle]), data[middle : middle + second], data[middle + second :]
        )


class Past:
    """Tells again what was kept, and keeps what is new.

    Args:
        tape: where; what is read of it next is the first of what was kept.
        world: the run's, for the time and the server's node id.
        keeps: whether to keep what is new.

    Attributes:
        round: returns the round that the run is in.
        told: how many replies were told again.
    """

    def __init__(self, tape: Tape, world: World, keeps: bool = True) -> None:
        self._tape, self._world, self._clock, self._keeps = tape, world, world.clock, keeps
        self.round: Callable[[], int | None] = lambda: None
        self.told = 0
        self._next = self._read()

    @property
    def repeats(self) -> bool:
        """Whether something is left to be told again."""
        return self._next is not None

    def sent(self, messages: Sequence[Message]) -> None:
        """Compare what the server sends with what it sent, or keep it.

        Raises:
            RunError: if that is something else, naming the first message that differs.
        """
        seen: serial.Seen = {}
        now = [
            [
                one.metadata.dst_node_id,
                one.metadata.message_type,
                one.metadata.ttl,
                serial.digest(one.content, seen),
            ]
            for one in messages
        ]
        if self._next is None:
            self._keep(Piece({"at_us": self._clock.now, "sent": now}))
            return
        self._check_moment("sent", messages[0])
        before = self._next.about["sent"]
        for one, message, other in zip(now, messages, [*before, *(len(now) * [None])], strict=False):
            if one != other:
                raise self._differs(_difference(one, other), message)
        if len(before) > len(now):
            reason = f"it sends messages to {len(now)} clients, and had sent {len(before)}"
            raise self._differs(reason, messages[-1])
        self._next = self._read()

    def reply(self, message: Message, state: RecordDict) -> Done | None:
        """Return what a client has replied to a message; None if that is not known.

        Args:
            message: which has arrived now.
            state: of the client, as it is.

        Raises:
            RunError: if that is not what had happened next.
        """
        if self._next is None:
            return None
        self._check_moment("reply", message)
        piece = self._next
        if piece.about["reply"] != message.metadata.message_id:
            raise self._differs("messages arrive in another order", message)
        self.told += 1
        self._next = self._read()
        say((name, level, text) for name, level, text in piece.about["said"])
        if piece.about["changed"]:
            state = serial.with_doubles(serial.from_bytes(piece.state), piece.about["state_doubles"])
        if piece.about["error"] is not None:
            return Done(None, Error(*piece.about["error"]), state)
        content = serial.with_doubles(serial.from_bytes(piece.content), piece.about["doubles"])
        return Done(content, None, state, used(content) or 0)

    def keep(self, message: Message, before: RecordDict, done: Done, said: Sequence[Line]) -> None:
        """Keep what a client has replied.

        Args:
            message: the message.
            before: the client's state before it.
            done: the reply, and the state after it.
            said: what was said meanwhile.
        """
        if not self._keeps:
            return
        about: dict[str, Any] = {"at_us": self._clock.now, "reply": message.metadata.message_id}
        about["said"] = list(said)
        about["error"] = None if done.error is None else [done.error.code, done.error.reason]
        try:
            content = b"" if done.content is None else serial.to_bytes(done.content)
            state = serial.to_bytes(done.state)
            about["changed"] = state != serial.to_bytes(before)
        except Exception as error:  # whatever an app's own objects raise
            client = message.metadata.dst_node_id
            self._stop(f"the reply of client {client} cannot be written ({type(error).__name__}: {error})")
            return
        about["doubles"] = [] if done.content is None else serial.doubles(done.content)
        about["state_doubles"] = serial.doubles(done.state)
        about["changed"] |= about["state_doubles"] != serial.doubles(before)
        self._keep(Piece(about, content, state if about["changed"] else b""))

    def compare(self, message: Message, before: Done, now: Done) -> None:
        """Say that a client does not reply to a message as it did.

        Args:
            message: the message.
            before: what was kept.
            now: what its ClientApp makes of it now.

        Raises:
            RunError: if only one of them is an error.
        """
        client, causes = message.metadata.dst_node_id, "have its data changed, or what it computes with?"
        if (before.error is None) != (now.error is None):
            error = before.error or now.error
            assert error is not None  # one of them is none
            when = "now" if before.error is None else "before"
            named = named_round(message)
            place = client, named if named >= 0 else self.round(), self._clock.now_s
            reason = f"the client does not reply as it did; {when}, it has sent an error ({error.reason}); {causes}"
            raise RunError(reason, *place, message.metadata.message_type)
        same = before.error is not None or _held(before) == _held(now)
        if not same:
            text = "client %d does not reply to its first message as it did, to the last bit; %s"
            log.warning(
                f"{text} The run goes on, but will not be the one that it would have been", client, causes
            )

    def check_end(self) -> None:
        """Refuse a server that has returned where it had gone on.

        Raises:
            RunError: if something is left to be told again.
        """
        if self._next is not None:
            what = "sent messages" if "sent" in self._next.about else "waited for a reply"
            raise self._differs(f"it has returned, and had {what} at {self._moment()}", None)

    def close(self) -> None:
        """Keep nothing more."""
        try:
            self._tape.close()
        except OSError as error:
            self._stop(error.strerror or str(error))

    def _read(self) -> Piece | None:
        data = self._tape.read()
        if data is not None:
            return Piece.unpacked(data)
        if self._tape.left:
            text = "%s: its last %d bytes are not what was written; what was in them is done again"
            log.warning(text, self._tape.path, self._tape.left)
        return None

    def _keep(self, piece: Piece) -> None:
        if not self._keeps:
            return
        try:
            self._tape.append(piece.packed())
        except OSError as error:
            self._stop(error.strerror or str(error))

    def _stop(self, why: str) -> None:
        if self._keeps:
            log.warning("replies are not kept any more: %s", why)
        self._keeps = False

    def _check_moment(self, kind: str, message: Message) -> None:
        """See to it that what happens is what had happened next, as far as the events tell."""
        assert self._next is not None  # or there is nothing to compare with
        at_us = self._next.about["at_us"]
        if kind not in self._next.about:
            had = "sent messages" if kind == "reply" else "waited for a reply"
            raise self._differs(f"it had {had} at {self._moment()} before that", message)
        if at_us != self._clock.now:
            raise self._differs(f"that was at {self._moment()}", message)

    def _moment(self) -> str:
        assert self._next is not None  # or there is no such moment
        return f"t = {self._next.about['at_us'] / MICRO:.6f} s"

    def _differs(self, what: str, message: Message | None) -> RunError:
        server = self._world.server
        node, round = None if server is None else server.id, self.round()
        if message is not None:
            node, named = message.metadata.dst_node_id, named_round(message)
            round = named if named >= 0 else round
        reason = f"the ServerApp does not repeat what it did before the run was stopped: {what}; {CAUSES}"
        return RunError(reason, node, round, self._clock.now_s, "server")


def _held(done: Done) -> tuple[str, ...]:
    return tuple(serial.digest(one) for one in (done.content, done.state) if one is not None)


def _difference(now: Sequence[Any], before: Sequence[Any] | None) -> str:
    """Say in what two messages differ.

    >>> _difference([3, "train", 9.0, "ab"], [3, "evaluate", 9.0, "ab"])
    'it sends a message to train, and had sent one to evaluate'
    """
    if before is None:
        return "it sends a message more"
    if now[0] != before[0]:
        return f"it sends a message to this client, and had sent one to client {before[0]}"
    if now[1] != before[1]:
        return f"it sends a message to {now[1]}, and had sent one to {before[1]}"
    what = "has another time to live" if now[2] != before[2] else "holds something else"
    return f"the message that it sends {what}"
