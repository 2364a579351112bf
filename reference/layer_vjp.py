"""The gradients of a chain of sublayers, each with its residual path and its norm. Letters as in layers.py."""

from __future__ import annotations

from collections.abc import Callable

from qkverify.reference.attention import stored
from qkverify.reference.layers import Sublayer, Weights
from qkverify.reference.norms import layer_norm
from qkverify.reference.norms_vjp import Gradients, layer_norm_vjp
from qkverify.reference.sizes import Array

Pull = Callable[
    [Array, Array], Gradients
]  # of a sublayer: its input x and its upstream -> "x", and its weights


def layer_vjp(
    x: Array, weights: Weights, upstream: Array, *sublayers: tuple[Sublayer, Pull], norm_first: bool, eps: Array
) -> Gradients:  # fmt: skip
    """Of `layer`: sublayer after sublayer, the last first. Each comes with what gives its gradients."""
    gradients: Gradients = {}
    inputs, norms = [x], [{"gain": weights[f"gain_{i}"], "shift": weights[f"shift_{i}"], "eps": eps}
                          for i in range(1, len(sublayers) + 1)]  # fmt: skip
    for (sublayer, _), norm in zip(sublayers, norms, strict=True):
        x = inputs[-1]
        inputs.append(stored(x + sublayer(layer_norm(x, **norm))) if norm_first
                      else layer_norm(stored(x + sublayer(x)), **norm))  # fmt: skip
    for i, (sublayer, pull) in reversed(list(enumerate(sublayers))):
        x, norm = inputs[i], norms[i]
        if norm_first:
            branch = pull(layer_norm(x, **norm), upstream)
            normed = layer_norm_vjp(x, upstream=branch["x"], **norm)
            upstream = stored(upstream + normed["x"])  # (B,L,M)
        else:
            normed = layer_norm_vjp(stored(x + sublayer(x)), upstream=upstream, **norm)
            branch = pull(x, normed["x"])
            upstream = stored(normed["x"] + branch["x"])  # (B,L,M)
        gradients |= branch | {f"gain_{i + 1}": normed["gain"], f"shift_{i + 1}": normed["shift"]}
    return gradients | {"x": upstream}
