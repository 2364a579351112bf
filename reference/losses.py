"""Cross entropy with smoothed labels: "Rethinking the Inception Architecture", section 7; "Attention is all
you need", section 5.4. Letters: N tokens, C classes.
"""

from __future__ import annotations

import numpy as np

from qkverify.reference.attention import stored
from qkverify.reference.sizes import Array
from qkverify.reference.softmax import log_sum_exp, softmax


def smoothed(targets: Array, classes: int, smoothing: Array) -> Array:
    """1 - smoothing for the target, and smoothing / C for each class, the target among them: (N) -> (N,C)."""
    chosen = np.where(np.arange(classes) == targets[:, None], 1.0, 0.0)     # (N,C)
    return chosen * (1.0 - smoothing) + smoothing / classes                 # (N,C)


def cross_entropy(scores: Array, targets: Array, *, smoothing: Array = 0.0) -> Array:
    """-sum_c t_c log softmax(s)_c with the smoothed target t: scores (N,C), targets (N) integers -> (N)."""
    logarithms = scores - log_sum_exp(scores)[:, None]                      # (N,C)
    target = smoothed(targets, scores.shape[-1], smoothing)                 # (N,C)
    return stored(-np.sum(target * logarithms, axis=-1))                    # (N)


def cross_entropy_vjp(scores: Array, targets: Array, upstream: Array, *, smoothing: Array = 0.0) -> Array:
    """The gradient of sum(upstream * cross_entropy) in the scores, upstream (N): (N,C).

    For each token it is softmax(s) - t: the target sums to 1, so that the log-sum-exp gives the softmax.
    """
    target = smoothed(targets, scores.shape[-1], smoothing)                 # (N,C)
    return stored((softmax(scores) - target) * upstream[:, None])           # (N,C)
