"""What a run remembers of its values, and how it finds them again when it is repeated."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch

from fedsim.learn.book import Book, Mismatch, Past
from fedsim.learn.deferred import Deferred, Inputs, apply, combine, noted


class Doubled:
    """Counts how often it is run."""

    batch = "double"

    def __init__(self, ran: list[int]) -> None:
        self.ran = ran

    def named_by(self) -> object:
        return ()

    def run(self, calls: Any, inputs: list[Inputs]) -> list[Any]:
        self.ran.append(len(calls))
        return [given["of"] * 2 for given in inputs]


def start(book: Book) -> Deferred:
    return Deferred.known(torch.tensor([1.0, 2.0]), book)


def chain(book: Book, ran: list[int], length: int) -> list[Deferred]:
    """Return values each of which is the double of the one before."""
    values = [start(book)]
    for _ in range(length):
        values.append(Deferred(Doubled(ran), {"of": values[-1]}))
    return values[1:]


def norm(vector: torch.Tensor) -> float:
    return float(vector.norm())


def test_what_is_made_alike_has_one_identity_whether_or_not_it_is_there() -> None:
    one, two = chain(Book(), [], 3), chain(Book(), [], 3)
    one[1].value()
    assert [value.identity for value in one] == [value.identity for value in two]
    assert len({value.identity for value in one}) == 3


def test_identities_tell_factors_entries_and_functions_apart() -> None:
    book = Book()
    x, y = start(book), Deferred.known(torch.tensor([1.0, 3.0]), book)
    made = [
        x + y,
        x - y,
        y - x,
        2 * x,
        x / 2,
        combine([x, y, y], [1, 1, 1]),
        apply(norm, x),
        x.pick("a"),
        x.pick("b"),
    ]
    assert len({value.identity for value in (x, y, *made)}) == len(made) + 2
    assert (x + y).identity == (x + y).identity


def test_a_value_in_another_place_is_the_same_value() -> None:
    book = Book()
    [value] = chain(book, [], 1)
    twin = value.moved(value.value().clone())
    assert twin.identity == value.identity
    assert (twin + twin).identity == (value + value).identity


def test_a_book_counts_what_is_made_and_knows_what_is_alive() -> None:
    book = Book()
    values = chain(book, [], 3)
    with book.aside():
        measured = apply(norm, values[0])
    assert (book.made, len(book.alive)) == (3, 4)
    del measured, values[1:]
    gc.collect()
    assert len(book.alive) == 1


def test_a_repetition_binds_leaves_and_forgets() -> None:
    """Of four values, the third was there, the fourth was to be computed, and nobody held the others any more."""
    first = chain(Book(), [], 4)
    there, waiting = first[2].identity, first[3].identity
    past = Past(4, -1, {there: torch.tensor([8.0, 16.0])}, {waiting})
    ran: list[int] = []
    book = Book({}, past)
    again = chain(book, ran, 4)
    assert [value.is_gone for value in again] == [True, True, False, False]
    assert [value.done for value in again] == [False, False, True, False]
    assert again[3].value().tolist() == [16.0, 32.0]
    assert ran == [1]
    new = Deferred(Doubled(ran), {"of": again[3]})
    assert not new.is_gone
    assert new.value().tolist() == [32.0, 64.0]


def test_what_is_gone_cannot_be_computed_nor_anything_of_it() -> None:
    [gone] = chain(Book({}, Past(1, -1, {}, set())), [], 1)
    with pytest.raises(Mismatch, match="was not kept"):
        gone.value()
    with pytest.raises(Mismatch, match="of one that was not kept"):
        (gone + gone).value()


def test_numbers_that_were_read_are_read_again() -> None:
    written: dict[str, Any] = {}
    book = Book()
    book.write = written.__setitem__
    [value] = chain(book, [], 1)
    scores = apply(dict, Deferred.known({"loss": 0.5, "accuracy": torch.tensor(0.25)}, book))
    read = [scores.read(), scores.read("loss"), noted([value], "norm", lambda: norm(value.value()))]
    assert read == [{"loss": 0.5, "accuracy": 0.25}, 0.5, norm(torch.tensor([2.0, 4.0]))]
    again = Book(written, Past(2, -1, {}, set()))
    [value] = chain(again, [], 1)
    scores = apply(dict, Deferred.known({"loss": 0.5, "accuracy": torch.tensor(0.25)}, again))
    assert value.is_gone
    assert read == [scores.read(), scores.read("loss"), noted([value], "norm", lambda: norm(value.value()))]
    with pytest.raises(Mismatch, match="nobody has read before"):
        scores.read("accuracy")


def test_what_foreign_code_makes_is_what_it_was_when_it_is_repeated() -> None:
    """In a repetition, such code is given zeros; the identity of what it made then is in the journal."""
    written: dict[str, Any] = {}
    book = Book()
    book.write = written.__setitem__
    real = torch.tensor([3.0, 4.0])
    model = Deferred.lifted(real, book)
    trained = Deferred(Doubled([]), {"of": model})
    past = Past(2, -1, {model.identity: real}, {trained.identity})
    again = Deferred.lifted(torch.zeros(2), Book(written, past))
    assert again.identity == model.identity
    assert Deferred(Doubled([]), {"of": again}).value().tolist() == [6.0, 8.0]


def test_a_part_without_a_name_is_found_again_by_its_turn_and_told_of() -> None:
    def made(book: Book) -> list[bytes]:
        return [apply(lambda vector: vector + 1, start(book)).identity for _ in range(2)]

    one, two = Book(), Book()
    assert made(one) == made(two)
    assert len(set(made(Book()))) == 2
    assert one.unnamed.endswith("test_book has no name")


class Shelf(dict[bytes, Any]):
    """A store in memory."""

    put = dict.__setitem__


def test_a_store_saves_the_way_to_a_value() -> None:
    shelf, ran = Shelf(), list[int]()
    assert chain(Book(store=shelf), ran, 3)[2].value().tolist() == [8.0, 16.0]
    assert (ran, len(shelf)) == ([1, 1, 1], 3)
    del shelf[next(iter(shelf))]  # the first is missing, and the second is there
    assert chain(Book(store=shelf), ran, 2)[1].value().tolist() == [4.0, 8.0]
    assert ran == [1, 1, 1]


def test_what_is_made_to_measure_and_has_no_name_has_a_place_of_its_own() -> None:
    """Six values between two that count: a repetition must not take one's numbers for another's."""

    def measured(measures: str) -> list[bytes]:
        book = Book()
        book.measures = measures
        x = start(book)
        found = []
        for _ in range(2):
            with book.aside():
                found += [apply(lambda vector: vector, to=x).identity for _ in range(3)]
        return found

    once = measured("every round")
    assert len(set(once)) == 6
    assert measured("every round") == once
    assert not {*measured("every other round")} & {*once}
