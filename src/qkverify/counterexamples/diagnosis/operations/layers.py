"""The mistakes that encoder and decoder layers have in common, and examples of both."""

from __future__ import annotations

from typing import Any

import numpy as np

from qkverify.counterexamples.diagnosis.operations.feed_forward import STEPS as OF_FEED_FORWARD
from qkverify.counterexamples.diagnosis.operations.kind import Array, Example, Mistakes, normal, rounded
from qkverify.counterexamples.diagnosis.operations.layer_steps import (
    ATTENTION,
    after,
    alone,
    alone_after_norm,
    before,
    branch_twice,
    branch_twice_before,
    from_norm,
    normed,
    only,
    same,
    varied,
)
from qkverify.counterexamples.diagnosis.operations.multi_head_attention import STEPS as OF_ATTENTION
from qkverify.reference.attention import stored
from qkverify.runs.run import Run

NORMS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("whose norms take mean and variance over the tokens instead of the features", {"norm": normed(1)}),
    ("whose norms take mean and variance over all tokens and features of a sequence", {"norm": normed((1, 2))}),
    ("whose norms take mean and variance over the batch instead of the features", {"norm": normed(0)}),
    ("whose norms add eps to the deviation, outside of the root", {"norm": normed(outside=True)}),
    ("whose norms divide the squares by one feature less (unbiased variance)", {"norm": normed(fewer=1)}),
    ("whose norms take the unbiased deviation and add eps outside of the root", {"norm": normed(fewer=1, outside=True)}),
    ("whose norms do not subtract the mean (a root mean square norm)", {"norm": normed(centred=False)}),
    ("whose norms divide by the variance instead of its root", {"norm": normed(root=same)}),
    ("whose norms have the eps 1e-5, whatever was given", {"eps": lambda eps: 0.0 * eps + 1e-5}),
    ("whose norms have the square of eps", {"eps": lambda eps: eps * eps}),
    ("whose norms have no gain", {"norm": normed(gain=lambda g: 0.0 * g + 1.0)}),
    ("whose norms have no shift", {"norm": normed(shift=lambda b: 0.0 * b)}),
    ("whose norms have neither gain nor shift", {"norm": normed(gain=lambda g: 0.0 * g + 1.0, shift=lambda b: 0.0 * b)}),
    ("whose norms have the gain 1 + gain", {"norm": normed(gain=lambda g: 1.0 + g)}),
    ("whose norms all have gain and shift of the first one", {"numbers": lambda i, count: 1}),
    ("whose norms have gains and shifts in reverse", {"numbers": lambda i, count: count + 1 - i}),
)  # fmt: skip

PATHS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("with its norms at the other place: before the sublayers instead of after them, or the other way round", {"flipped": True}),
    ("whose norms are applied to what a sublayer gives and not to the sum",
     {"last": lambda a: stored(a.x + a.norm(a.sublayer(a.x)))}),
    ("without norms", {"last": lambda a: stored(a.x + a.sublayer(a.x)), "first": lambda a: stored(a.x + a.sublayer(a.x))}),
    ("without residual paths", {"last": alone, "first": alone_after_norm}),
    ("without the residual path of its first sublayer",
     {"last": only(1, after, alone), "first": only(1, before, alone_after_norm)}),
    ("whose first sublayer is added to itself: the input is overwritten before it is added",
     {"last": only(1, after, branch_twice), "first": only(1, before, branch_twice_before)}),
    ("whose later residual paths all start at the layer's input",
     {"last": lambda a: a.norm(stored(a.start + a.sublayer(a.x))), "first": lambda a: stored(a.start + a.sublayer(a.norm(a.x)))}),
    ("whose residual paths start behind the norms instead of before them", {"first": from_norm}),
    ("with norms both before and after each sublayer",
     {"last": lambda a: a.norm(stored(a.x + a.sublayer(a.norm(a.x)))), "first": lambda a: a.norm(before(a))}),
)  # fmt: skip

SHARED: Mistakes = (
    *((text, varied(**changes)) for text, changes in (*NORMS, *PATHS)),
    *((f"whose attention is one {text}", varied(attend=compute)) for text, compute in OF_ATTENTION),
    *((f"whose feed-forward network is one {text}", varied(feed=compute)) for text, compute in OF_FEED_FORWARD),
    ("whose feed-forward network comes first", varied(order=lambda sublayers: [sublayers[-1], *sublayers[:-1]])),
    ("without its feed-forward network", varied(order=lambda sublayers: sublayers[:-1])),
)  # fmt: skip

SIZES = (  # B, L, K, H, D, F: all different
    (2, 5, 3, 2, 3, 7), (3, 4, 7, 2, 1, 9), (1, 6, 2, 1, 4, 5), (2, 3, 5, 4, 2, 6), (3, 7, 4, 3, 2, 5), (2, 1, 4, 2, 3, 3),
)  # fmt: skip


def weights(run: Run, seed: int, width: int, inner: int, norms: int) -> dict[str, Array]:
    """The weights of an encoder layer (two norms) or a decoder layer (three)."""
    shapes: dict[str, tuple[int, ...]] = {
        p + n: (width, width) for p in ("", "cross_")[: norms - 1] for n in ATTENTION
    }
    shapes |= {"w_1": (width, inner), "b_1": (inner,), "w_2": (inner, width), "b_2": (width,)}
    shapes |= {f"{name}_{i}": (width,) for i in range(1, norms + 1) for name in ("gain", "shift")}
    return {n: normal(run, 100 * seed + i, *s, times=s[0] ** -0.5 if len(s) > 1 else 1.0)
            for i, (n, s) in enumerate(shapes.items())}  # fmt: skip


def examples(run: Run, lengths: str, *, decoder: bool) -> list[Example]:
    """Layers of several sizes, the norm last and first, with and without padding, whose results are not judged."""
    cases = []
    clamped = run.implementation.clamped
    for i, (batch, drawn, other, *rest) in enumerate(SIZES):
        length, heads, size, inner = (
            clamped(letter, n) for letter, n in zip("LHDF", (drawn, *rest), strict=True)
        )
        width, rng = heads * size, np.random.default_rng(i)
        x, memory = (normal(run, 50 + 2 * i + j, batch, n, width) for j, n in enumerate((length, other)))
        arguments = (x, *([memory] if decoder else []), weights(run, i, width, inner, 2 + decoder))
        ends = rng.integers(1, (other if decoder else length) + 1, batch).astype(np.int32)
        kept = None if decoder else np.broadcast_to((np.arange(length) < ends[:, None])[..., None], x.shape)
        told = {"scale": rounded(run, size**-0.5)}
        for j, (padded, first) in enumerate([(False, False), (False, True), (True, False), (True, True)]):
            if (padded and not run.offers_parameter(lengths)) or (
                first and not run.offers_parameter("norm_first")
            ):
                continue
            options: dict[str, Any] = {
                "heads": heads,
                "eps": (1e-5, 1.0, 0.1)[(i + j) % 3],
                "norm_first": first,
            }
            options |= {lengths: ends} if padded else {}
            cases.append(Example(arguments, options, x.shape, told, judged=kept if padded else None))
    return cases
