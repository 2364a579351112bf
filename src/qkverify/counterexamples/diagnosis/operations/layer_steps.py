"""Encoder and decoder layers with one step changed: a variant is `varied(step=...)`, the steps are the fields of `Steps`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from qkverify.counterexamples.diagnosis.operations.kind import Compute
from qkverify.reference.attention import stored
from qkverify.reference.layers import Sublayer, feed_forward
from qkverify.reference.multi_head import multi_head_attention
from qkverify.reference.norms import layer_norm

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
        self_options = s.own(
            {**common, "causal": True} if memory else {**common, "key_lengths": key_lengths}, x.shape[1]
        )
        chosen: list[Sublayer] = [lambda y: s.attend(y, *(w[s.of + n] for n in ATTENTION), **self_options)]
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
