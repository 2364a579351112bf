"""The weights of encoder and decoder layers, and what is exact of both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from qkverify.rounding import Bounded
from qkverify.runs.run import Run
from qkverify.strategies.operation_spec import ROWS, Array, Given, Source, bounded, rounded

LAYER: Mapping[str, Sequence[Any]] = {
    **ROWS, "H": (2, 1, 3), "D": (1, 2, 3), "F": (1, 2, 5), "norm_first": (False, True), "eps": (1e-5, 1e-2, 1.0),
    "padded": (False, True)}  # fmt: skip


def layer_weights(
    width: int, inner: int, norms: int, matrix: Callable[..., Array], vector: Callable[..., Array]
) -> dict[str, Array]:
    """Of an encoder layer (two norms) or a decoder layer (three), each array made for its shape."""
    weights: dict[str, Array] = {}
    for prefix in ("", "cross_")[: norms - 1]:
        weights |= {prefix + name: matrix(width, width) for name in ("w_q", "w_k", "w_v", "w_o")}
    weights |= {
        "w_1": matrix(width, inner),
        "b_1": vector(inner),
        "w_2": matrix(inner, width),
        "b_2": vector(width),
    }
    for i in range(1, norms + 1):
        weights |= {f"gain_{i}": vector(width), f"shift_{i}": vector(width)}
    return weights


def weights_of(s: SimpleNamespace, new: Source, norms: int) -> dict[str, Array]:
    return layer_weights(s.H * s.D, s.F, norms, new.matrix, new)


def exact_of(layer: Callable[..., Any]) -> Callable[[Run, Given, Given], tuple[Bounded, ...]]:
    def exact(run: Run, given: Given, options: Given) -> tuple[Bounded, ...]:
        size = given["x"].shape[2] // options["heads"]
        told = {**options, "eps": rounded(run, options["eps"]), "scale": rounded(run, size**-0.5)}
        return (layer(*bounded(run, given).values(), **told),)

    return exact
