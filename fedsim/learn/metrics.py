"""What can be measured beside the loss: functions of all outputs on the held-out data and their targets.

One that does not fit outputs and targets raises a ValueError that says what it needs.
"""

from __future__ import annotations

import torch
from sklearn.metrics import f1_score, roc_auc_score
from torch import Tensor

from fedsim.learn.losses import cross_entropy


def accuracy(outputs: Tensor, y: Tensor, *, ignore_index: int = -100) -> float:
    """Return the share of targets that are met by the largest logit.

    Args:
        outputs: logits [N, classes, …].
        y: labels [N, …].
        ignore_index: the label of padding; by default that of the loss.
    """
    return top_k(outputs, y, k=1, ignore_index=ignore_index)


def top_k(outputs: Tensor, y: Tensor, *, k: int = 5, ignore_index: int = -100) -> float:
    """Return the share of labels that are among the k largest logits; padding counts nothing.

    Args:
        outputs: logits [N, classes, …].
        y: labels [N, …].
        k: how many logits count.
        ignore_index: the label of padding; by default that of the loss.

    >>> top_k(torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]]), torch.tensor([1, 2]), k=2)
    0.5
    """
    if not _labelled(outputs, y) or not 0 < k < outputs.shape[1]:
        raise ValueError(f"needs more than {k} classes and a label for each output")
    counts = y != ignore_index
    right = (outputs.topk(k, 1).indices == y[:, None]).any(1) & counts
    return float(right.sum().double() / counts.sum().clamp(min=1))


def macro_f1(outputs: Tensor, y: Tensor, *, ignore_index: int = -100) -> float:
    """Return the mean of the classes' F1 scores, of scikit-learn, over the classes that are said or right.

    Args:
        outputs: logits [N, classes, …].
        y: labels [N, …].
        ignore_index: the label of padding; by default that of the loss.
    """
    if not _labelled(outputs, y):
        raise ValueError("needs classes, and a label for each output")
    counts = y != ignore_index
    said, right = (values[counts].cpu().numpy() for values in (outputs.argmax(1), y))
    return float(f1_score(right, said, average="macro", zero_division=0))


def auc(outputs: Tensor, y: Tensor, *, ignore_index: int = -100) -> float:
    """Return the area under the receiver operating characteristic, of scikit-learn; the mean over several labels.

    Args:
        outputs: logits [N, classes, …] of labels [N, …], each class against the rest; or logits [N, …] of targets that
            are 0 or 1.
        y: labels [N, …], or 0 and 1 [N, …].
        ignore_index: the label of padding; by default that of the loss.

    >>> logits = torch.tensor([[[2.0, 0.0, 0.0], [0.0, 1.0, 9.0]]])
    >>> auc(logits, torch.tensor([[0, 1, -100]]))
    1.0
    """
    if y.is_floating_point():
        if outputs.shape != y.shape:
            raise ValueError("needs one number for each target")
        right, score = y.reshape(len(y), -1), outputs.reshape(len(y), -1)
    else:
        if not _labelled(outputs, y):
            raise ValueError("needs classes, and a label for each output")
        counts = y != ignore_index
        labels = y[counts]
        there = torch.bincount(labels).nonzero()[:, 0]
        right, score = labels[:, None] == there, outputs.movedim(1, -1)[counts].softmax(1)[:, there]
    both = (right > 0).any(0) & (right == 0).any(0)
    if not bool(both.any()) or not bool(((right == 0) | (right == 1)).all()):
        raise ValueError("needs targets of 0 and 1, and some of both")
    return float(roc_auc_score(right[:, both].cpu().numpy(), score[:, both].cpu().numpy()))


def perplexity(outputs: Tensor, y: Tensor, *, ignore_index: int = -100) -> float:
    """Return e to the mean cross entropy.

    Args:
        outputs: logits [N, classes, …].
        y: labels [N, …].
        ignore_index: the label of padding; by default that of the loss.

    >>> f"{perplexity(torch.zeros(2, 7), torch.tensor([0, 6])):.3f}"
    '7.000'
    """
    if y.is_floating_point():
        raise ValueError("needs labels")
    losses = cross_entropy(outputs.double(), y, ignore_index=ignore_index)
    return float((losses.sum() / (y != ignore_index).sum()).exp())


def mse(outputs: Tensor, y: Tensor) -> float:
    """Return the mean squared distance."""
    return float(_apart(outputs, y).square().mean())


def mae(outputs: Tensor, y: Tensor) -> float:
    """Return the mean distance."""
    return float(_apart(outputs, y).abs().mean())


def _labelled(outputs: Tensor, y: Tensor) -> bool:
    """Tell whether outputs are logits, and there is a label for each."""
    return outputs.dim() > 1 and not y.is_floating_point() and outputs[:, 0].shape == y.shape


def _apart(outputs: Tensor, y: Tensor) -> Tensor:
    if outputs.shape != y.shape:
        raise ValueError("needs one number for each target")
    return outputs.double() - y.double()
