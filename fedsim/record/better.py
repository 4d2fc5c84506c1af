"""What is better the more of it there is, told from a metric's name: the same for records and for studies."""

from __future__ import annotations

import re

SHARES = {"accuracy", "acc", "top", "f1", "precision", "recall", "sensitivity", "specificity"}
AREAS = {"auc", "auroc", "auprc"}
LIKENESSES = {"r2", "iou", "jaccard", "dice", "bleu", "rouge", "psnr", "ssim"}

RISING = SHARES | AREAS | LIKENESSES
"""Words of which one is in the name, ``top`` also with a number behind it."""

FALLING = {"loss", "error", "distance", "gini"}
"""Words of which none may be in it."""


def rises(metric: str) -> bool:
    """Tell whether more of a metric is better; where its name does not say so, less is.

    >>> [rises(name) for name in ("client_accuracy_worst_decile", "macro_f1", "top_k_3", "top5", "r2_score")]
    [True, True, True, True, True]
    >>> [rises(name) for name in ("loss", "mse", "perplexity", "personal_accuracy_gini", "accuracy_loss", "drift")]
    [False, False, False, False, False, False]
    """
    words = {re.sub(r"^top\d+$", "top", word) for word in re.split(r"[^a-z0-9]+", metric.lower())}
    return bool(words & RISING) and not words & FALLING
