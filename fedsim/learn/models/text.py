"""Models whose inputs are whole numbers: words of a text, and pairs of users and items."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedsim.errors import MISSING, BadValue
from fedsim.learn.models.builtin import check_classes
from fedsim.parts import Count, NotNegative


def lstm(
    *,
    shape: tuple[int, ...],
    classes: int,
    target: tuple[int, ...] = (),
    words: Count | None = None,
    embedding: Count = 8,
    hidden: Count = 256,
    layers: Count = 2,
) -> nn.Module:
    """Return an LSTM over words or characters, by default that of the paper on federated averaging for Shakespeare.

    Args:
        shape: (T,), the length of a text; its words are numbered from 0.
        classes: how many there are.
        target: (T,) if each word has a label of its own, as in predicting the next ones; () if a text has one.
        words: how many different ones there are; None says as many as classes.
        embedding: numbers that stand for a word.
        hidden: units in a layer.
        layers: how many of them.

    Returns:
        A module from words [B, T] to logits [B, classes], or [B, classes, T]; 819,920 parameters for 80 classes.

    References:
        Hochreiter and Schmidhuber, Long short-term memory, Neural Computation 1997.
        McMahan et al., Communication-efficient learning of deep networks from decentralized data, AISTATS 2017.

    >>> model = lstm(shape=(5,), classes=80)
    >>> model(torch.zeros(3, 5, dtype=torch.long)).shape, sum(p.numel() for p in model.parameters())
    (torch.Size([3, 80]), 819920)
    """
    _check_text("lstm", shape, classes)
    part = nn.LSTM(embedding, hidden, layers, batch_first=True)
    return Recurrent(words or classes, embedding, part, classes, each=bool(target))


def gru(
    *,
    shape: tuple[int, ...],
    classes: int,
    target: tuple[int, ...] = (),
    words: Count | None = None,
    embedding: Count = 8,
    hidden: Count = 256,
    layers: Count = 1,
) -> nn.Module:
    """Return a network of gated recurrent units over words or characters.

    Args:
        shape: (T,), the length of a text; its words are numbered from 0.
        classes: how many there are.
        target: (T,) if each word has a label of its own; () if a text has one.
        words: how many different ones there are; None says as many as classes.
        embedding: numbers that stand for a word.
        hidden: units in a layer.
        layers: how many of them.

    Returns:
        A module from words [B, T] to logits [B, classes], or [B, classes, T].

    References:
        Cho et al., Learning phrase representations using RNN encoder-decoder, EMNLP 2014.

    >>> gru(shape=(5,), classes=4, target=(5,))(torch.zeros(3, 5, dtype=torch.long)).shape
    torch.Size([3, 4, 5])
    """
    _check_text("gru", shape, classes)
    part = nn.GRU(embedding, hidden, layers, batch_first=True)
    return Recurrent(words or classes, embedding, part, classes, each=bool(target))


def transformer(
    *,
    shape: tuple[int, ...],
    classes: int,
    target: tuple[int, ...] = (),
    words: Count | None = None,
    width: Count = 64,
    heads: Count = 4,
    layers: Count = 2,
    dropout: NotNegative = 0.0,
) -> nn.Module:
    """Return a small transformer; where each word has a label, no word sees those behind it.

    Args:
        shape: (T,), the length of a text; its words are numbered from 0.
        classes: how many there are.
        target: (T,) if each word has a label of its own; () if a text has one.
        words: how many different ones there are; None says as many as classes.
        width: numbers that stand for a word.
        heads: of attention; they divide the width.
        layers: how many of them.
        dropout: the share that is dropped in training.

    Returns:
        A module from words [B, T] to logits [B, classes], or [B, classes, T].

    Raises:
        BadValue: if the heads do not divide the width.

    References:
        Vaswani et al., Attention is all you need, NIPS 2017; layers are normalised first.

    >>> transformer(shape=(5,), classes=4)(torch.zeros(3, 5, dtype=torch.long)).shape
    torch.Size([3, 4])
    """
    _check_text("transformer", shape, classes)
    if width % heads:
        raise BadValue("heads", heads, f"must divide the width of {width}")
    return Transformer(
        words or classes, shape[0], width, (heads, layers), dropout, classes, each=bool(target)
    )


def matrix_factorisation(
    *,
    shape: tuple[int, ...],
    counts: tuple[int, ...] = (),
    users: Count | None = None,
    items: Count | None = None,
    factors: Count = 16,
) -> nn.Module:
    """Return the factorisation of a matrix of ratings, with biases; for regression.

    Args:
        shape: (2,), a user and an item, each numbered from 0.
        counts: how many users and items the data know of.
        users: how many there are; None takes the data's.
        items: how many there are; None takes the data's.
        factors: the numbers that stand for each of them.

    Returns:
        A module from pairs [B, 2] to ratings [B].

    Raises:
        BadValue: if samples are no pairs, or nobody says how many users and items there are.

    References:
        Koren, Bell, Volinsky, Matrix factorization techniques for recommender systems, Computer 2009.

    >>> matrix_factorisation(shape=(2,), users=3, items=5)(torch.tensor([[2, 4], [0, 0]])).shape
    torch.Size([2])
    """
    if shape != (2,):
        raise BadValue(
            "name", "matrix_factorisation", f"needs pairs of user and item, not samples of shape {shape}"
        )
    known = {"users": users, "items": items}
    found = {key: count or own for (key, count), own in zip(known.items(), counts or (0, 0), strict=True)}
    for key, count in found.items():
        if not count:
            raise BadValue(key, MISSING, "must be given, as the data do not say how many there are")
    return Factors(found["users"], found["items"], factors)


class Recurrent(nn.Module):
    """Words, a recurrent layer, and logits for the last word or for each.

    Args:
        words: how many different ones there are.
        embedding: numbers that stand for a word.
        part: the recurrent layer, batch first.
        classes: how many there are.
        each: whether every word has logits.
    """

    def __init__(self, words: int, embedding: int, part: nn.LSTM | nn.GRU, classes: int, each: bool) -> None:
        super().__init__()
        self.embedding, self.part, self.each = nn.Embedding(words, embedding), part, each
        self.last = nn.Linear(part.hidden_size, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, classes] or [B, classes, T] for words [B, T]."""
        states, _ = self.part(self.embedding(x))
        logits: Tensor = self.last(states if self.each else states[:, -1])
        return logits.transpose(1, 2) if self.each else logits


class Transformer(nn.Module):
    """Words with their places, layers of attention, and logits for the mean or for each word.

    Args:
        words: how many different ones there are.
        length: of a text.
        width: numbers that stand for a word.
        size: heads and layers.
        dropout: the share that is dropped in training.
        classes: how many there are.
        each: whether every word has logits.
    """

    def __init__(
        self,
        words: int,
        length: int,
        width: int,
        size: tuple[int, int],
        dropout: float,
        classes: int,
        each: bool,
    ) -> None:
        super().__init__()
        heads, layers = size
        self.embedding, self.places = nn.Embedding(words, width), nn.Embedding(length, width)
        one = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(one, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.last, self.each = nn.Linear(width, classes), each

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, classes] or [B, classes, T] for words [B, T]."""
        length = x.shape[1]
        known = self.embedding(x) + self.places(torch.arange(length, device=x.device))
        if not self.each:
            logits: Tensor = self.last(self.layers(known).mean(1))
            return logits
        behind = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        logits = self.last(self.layers(known, mask=behind))
        return logits.transpose(1, 2)


class Factors(nn.Module):
    """A rating from what stands for user and item.

    Args:
        users: how many there are.
        items: how many there are.
        factors: the numbers that stand for each of them.
    """

    def __init__(self, users: int, items: int, factors: int) -> None:
        super().__init__()
        self.users, self.items = (nn.Embedding(count, factors) for count in (users, items))
        self.biases = nn.ModuleList(nn.Embedding(count, 1) for count in (users, items))
        self.mean = nn.Parameter(torch.zeros(()))
        for part in (self.users, self.items):
            nn.init.normal_(part.weight, std=0.1)
        for bias in self.biases:
            nn.init.zeros_(bias.weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Return ratings [B] for pairs [B, 2]."""
        user, item = x.unbind(1)
        shift = self.biases[0](user) + self.biases[1](item)
        rating: Tensor = (self.users(user) * self.items(item)).sum(1) + shift.squeeze(1) + self.mean
        return rating


def _check_text(name: str, shape: tuple[int, ...], classes: int) -> None:
    check_classes(name, classes)
    if len(shape) != 1:
        raise BadValue("name", name, f"needs texts of T words, not samples of shape {shape}")
