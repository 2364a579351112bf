"""What a mistake is, and what mistakes of several kinds are made of: other arguments for the reference, and its steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from qkverify.problem.attention_problem import Problem
from qkverify.reference.attention import attention, stored, with_sinks
from qkverify.reference.groups import per_query_head
from qkverify.reference.masks import visible
from qkverify.reference.scores import scores

Array = np.ndarray
TILES = (8, 16, 32, 64, 128)
Arguments = dict[str, Any]  # of the reference: query, key, value, upstream and the options, bounded
Edit = Callable[[Arguments, Problem], Arguments]
Compute = Callable[[Arguments, Problem], Any]
MASKING = ("causal", "window", "mask", "key_lengths")
NO_MASK: Mapping[str, Any] = {"mask": None, "causal": False, "window": None, "key_lengths": None}


@dataclass(frozen=True)
class Mistake:
    """A variant of the reference. `text` completes "The result equals ...".

    edit      the reference with other arguments: for outputs, log-sum-exps and gradients alike
    output, lse, gradients   a computation of its own, for one of them
    needs     options that must be in use, all of them, for the mistake to matter
    among     options of which one must be in use
    """

    text: str
    edit: Edit | None = None
    output: Compute | None = None
    lse: Compute | None = None
    gradients: Compute | None = None
    needs: tuple[str, ...] = ()
    among: tuple[str, ...] = ()

    def matters(self, p: Problem) -> bool:
        used = p.options.keys()
        return used >= set(self.needs) and (not self.among or bool(used & set(self.among)))


def but(**changes: Any) -> Edit:
    """Some options are taken for others."""
    return lambda a, p: {**a, **changes}


def by(name: str, change: Callable[[Any], Any]) -> Edit:
    """One argument is changed."""
    return lambda a, p: {**a, name: change(a[name])}


def first_for_all(x: Any, axis: int) -> Any:
    """The first slice along one of the four axes for all, as far as the array has that axis."""
    axis_of_x = axis - 4 + x.ndim
    return x if axis_of_x < 0 else np.take(x, [0] * x.shape[axis_of_x], axis_of_x)


def other_alignment(p: Problem) -> str:
    return "top-left" if p.causal_alignment == "bottom-right" else "bottom-right"


def seen(p: Problem, **changes: Any) -> Array:
    """bool (B,H,Q,K): what would be visible with some of the options changed."""
    s, options = p.sizes, {name: getattr(p, name) for name in (*MASKING, "causal_alignment")}
    allowed = visible(s["B"], s["Q"], s["K"], **{**options, **changes})
    return np.broadcast_to(allowed, (s["B"], s["H"], s["Q"], s["K"]))


def sees(shown: Callable[[Problem], Array]) -> Edit:
    """Other keys are visible than the options say."""
    return lambda a, p: {**a, **NO_MASK, "mask": shown(p)}


def rows(p: Problem) -> Array:
    """(Q,1)"""
    return np.arange(p.sizes["Q"])[:, None]


def columns(p: Problem) -> Array:
    """(K,)"""
    return np.arange(p.sizes["K"])


def ends(p: Problem) -> Array:
    """(B,1,1,1): the key lengths."""
    return np.reshape(np.asarray(p.key_lengths), (-1, 1, 1, 1))


def logits_of(a: Arguments, **changes: Any) -> Any:
    """The reference's scores, (B,H,Q,K)."""
    names = (*MASKING, "causal_alignment", "bias", "scale", "softcap", "alibi_slopes")
    a = {**a, **changes}
    return scores(a["query"], a["key"], **{name: a[name] for name in names if name in a})


def with_sink(a: Arguments) -> Any:
    """The reference's scores with those of the sinks beside them, (B,H,Q,K+1), or without where there are none."""
    return with_sinks(logits_of(a), a.get("sinks"))


def averaged(a: Arguments, weights: Any) -> Any:
    """The output for these weights, (B,H,Q,K)."""
    return stored(weights @ per_query_head(a["value"], a["query"].shape[1]))


def output_of(a: Arguments) -> Any:
    """The reference's output."""
    return attention(**{name: x for name, x in a.items() if name != "upstream"})
