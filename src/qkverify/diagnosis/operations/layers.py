"""Encoder and decoder layers with one step changed, and the mistakes that both can have.

A variant is `varied(step=...)`; the steps that can be replaced are the fields of `Steps`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from qkverify.diagnosis.operations.feed_forward import STEPS as OF_FEED_FORWARD
from qkverify.diagnosis.operations.kind import Array, Compute, Example, Mistakes, normal, rounded
from qkverify.diagnosis.operations.multi_head import STEPS as OF_ATTENTION
from qkverify.reference.attention import stored
from qkverify.reference.layers import Sublayer, feed_forward, layer_norm
from qkverify.reference.multi_head import multi_head_attention
from qkverify.runs import Run

ATTENTION, FEED = ("w_q", "w_k", "w_v", "w_o"), ("w_1", "b_1", "w_2", "b_2")
Weights = Mapping[str, Any]
Norm = Callable[..., Any]  # x, gain, shift, eps -> x


@dataclass(frozen=True)
class Around:
    """What one sublayer and its residual path are made of. `start` is what entered the layer, `i` counts from 1."""

    x: Any
    start: Any
    i: int
    norm: Sublayer
    sublayer: Sublayer


def after(a: Around) -> Any:
    """norm(x + sublayer(x))"""
    return a.norm(stored(a.x + a.sublayer(a.x)))


def before(a: Around) -> Any:
    """x + sublayer(norm(x))"""
    return stored(a.x + a.sublayer(a.norm(a.x)))


def same(x: Any) -> Any:
    return x


@dataclass(frozen=True)
class Steps:
    """The steps of a layer; each default is right.

    norm, last, first   the norm; a sublayer with its residual path where the norm comes last or first
    attend, own, cross  multi-head attention; what the options of self-attention and of attention to the memory become
    of, cross_prefix    the weights of self-attention and of attention to the memory
    source              keys and values of attention to the memory, from it and the decoder's own tokens
    feed, order         the feed-forward network; the sublayers in their order
    numbers             which gain and shift the norm of a number takes, of so many
    eps                 what becomes of it
    """

    norm: Norm = layer_norm
    last: Callable[[Around], Any] = after
    first: Callable[[Around], Any] = before
    attend: Compute = multi_head_attention
    own: Callable[[dict[str, Any], int], dict[str, Any]] = lambda options, length: options
    cross: Callable[[dict[str, Any], int], dict[str, Any]] = lambda options, length: options
    of: str = ""
    cross_prefix: str = "cross_"
    source: Callable[[Any, Any], Any] = lambda memory, x: memory
    feed: Compute = feed_forward
    order: Callable[[list[Any]], list[Any]] = lambda sublayers: sublayers
    numbers: Callable[[int, int], int] = lambda i, count: i
    eps: Callable[[Any], Any] = same
    flipped: bool = False  # the norm comes where it should not


def varied(**changes: Any) -> Compute:
    """An encoder layer (x, weights) or a decoder layer (x, memory, weights) with some steps changed."""
    s = Steps(**changes)

    def compute(x: Any, *rest: Any, heads: int, norm_first: bool = False, eps: Any = 1e-5, scale: Any = None,
                key_lengths: Any = None, memory_lengths: Any = None) -> Any:  # fmt: skip
        *memory, w = rest
        common, start = {"heads": heads, "scale": scale}, x
        own = s.own(
            {**common, "causal": True} if memory else {**common, "key_lengths": key_lengths}, x.shape[1]
        )
        chosen: list[Sublayer] = [lambda y: s.attend(y, *(w[s.of + n] for n in ATTENTION), **own)]
        for m in memory:
            cross = s.cross({**common, "key_lengths": memory_lengths}, m.shape[1])
            chosen.append(_attending(s, [w[s.cross_prefix + n] for n in ATTENTION], m, cross))
        chosen.append(lambda y: s.feed(y, *(w[n] for n in FEED)))
        step = s.first if norm_first != s.flipped else s.last
        for i, sublayer in enumerate(s.order(chosen), start=1):
            n = s.numbers(i, len(chosen))

            def norm(y: Any, n: int = n) -> Any:
                return s.norm(y, w[f"gain_{n}"], w[f"shift_{n}"], eps=s.eps(eps))

            x = step(Around(x, start, i, norm, sublayer))
        return x

    return compute


def _attending(s: Steps, weights: list[Any], memory: Any, options: dict[str, Any]) -> Sublayer:
    return lambda y: s.attend(y, *weights, context=s.source(memory, y), **options)


def normed(axes: Any = -1, *, centred: bool = True, fewer: int = 0, outside: bool = False,
           root: Callable[[Any], Any] = np.sqrt, gain: Callable[[Any], Any] = same,
           shift: Callable[[Any], Any] = same) -> Norm:  # fmt: skip
    """A layer norm over other axes, with another variance, or with eps at another place."""

    def norm(x: Any, g: Any, b: Any, *, eps: Any) -> Any:
        count = int(np.prod([x.shape[i] for i in np.atleast_1d(axes)]))
        away = x - np.sum(x, axis=axes, keepdims=True) / count if centred else x
        variance = np.sum(away * away, axis=axes, keepdims=True) / max(count - fewer, 1)
        deviation = root(variance) + eps if outside else root(variance + eps)
        return stored(away * (1.0 / deviation) * gain(g) + shift(b))

    return norm


def only(i: int, usual: Callable[[Around], Any], other: Callable[[Around], Any]) -> Callable[[Around], Any]:
    """Another way around the sublayer of one number."""
    return lambda a: other(a) if a.i == i else usual(a)


def alone(a: Around) -> Any:
    """norm(sublayer(x))"""
    return a.norm(a.sublayer(a.x))


def alone_after_norm(a: Around) -> Any:
    return stored(a.sublayer(a.norm(a.x)))


def branch_twice(a: Around) -> Any:
    """The branch has overwritten x before x is added."""
    branch = a.sublayer(a.x)
    return a.norm(stored(branch + branch))


def branch_twice_before(a: Around) -> Any:
    branch = a.sublayer(a.norm(a.x))
    return stored(branch + branch)


def from_norm(a: Around) -> Any:
    y = a.norm(a.x)
    return stored(y + a.sublayer(y))


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
    found = []
    for i, (batch, length, other, heads, size, inner) in enumerate(SIZES):
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
            found.append(Example(arguments, options, x.shape, told, judged=kept if padded else None))
    return found
