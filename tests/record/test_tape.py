"""A tape gives back what was written on it, up to the first piece that is not whole; what is appended follows that."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.record.tape import HEAD, Tape

PIECES = st.lists(st.binary(max_size=40), max_size=5)


def written(path: Path, pieces: list[bytes]) -> None:
    with Tape(path) as tape:
        while tape.read() is not None:
            pass
        for piece in pieces:
            tape.append(piece)


def read(path: Path) -> list[bytes]:
    with Tape(path) as tape:
        return list(iter(tape.read, None))


@given(PIECES, PIECES)
def test_pieces_come_back_in_their_order(first: list[bytes], second: list[bytes]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a.tape"
        written(path, first)
        written(path, second)
        assert read(path) == first + second
        assert path.stat().st_size == sum(HEAD.size + len(piece) for piece in first + second)


@given(PIECES, st.data())
def test_a_file_that_is_cut_off_gives_what_is_whole(pieces: list[bytes], data: st.DataObject) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a.tape"
        written(path, pieces)
        ends = [0]
        for piece in pieces:
            ends.append(ends[-1] + HEAD.size + len(piece))
        size = data.draw(st.integers(0, ends[-1]))
        with path.open("r+b") as file:
            file.truncate(size)
        whole = sum(end <= size for end in ends) - 1
        assert read(path) == pieces[:whole]
        written(path, [b"new"])
        assert read(path) == [*pieces[:whole], b"new"]


@given(PIECES.filter(bool), st.data())
def test_a_bit_that_is_flipped_ends_it(pieces: list[bytes], data: st.DataObject) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a.tape"
        written(path, pieces)
        raw = bytearray(path.read_bytes())
        place = data.draw(st.integers(0, len(raw) - 1))
        raw[place] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(raw)
        found = read(path)
        assert found == pieces[: len(found)]
        assert sum(HEAD.size + len(piece) for piece in found) <= place
        with Tape(path) as tape:
            for _ in found:
                tape.read()
            assert tape.read() is None
            assert tape.left == len(raw) - sum(HEAD.size + len(piece) for piece in found)
            tape.append(b"new")
            assert tape.left == 0


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_piece_for_which_there_is_no_room_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.tape"
    with Tape(path) as tape:
        tape.append(b"one")
        with files_of_at_most(100), pytest.raises(OSError, match="too large"):
            tape.append(b"x" * 100)
        assert path.stat().st_size == HEAD.size + 3
        tape.append(b"two")
    assert read(path) == [b"one", b"two"]


def test_a_tape_that_is_read_alone_is_not_changed(tmp_path: Path) -> None:
    path = tmp_path / "a.tape"
    path.write_bytes(b"nothing that was ever written")
    assert read(path) == []
    assert path.read_bytes() == b"nothing that was ever written"
