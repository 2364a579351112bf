"""What the laws of the norms share: how a norm is drawn, and one called beside its reference.

layer_norm(x, weight, bias, *, eps)        x (...,M), weight (M), bias (M)
rms_norm(x, weight, *, eps)
"""

from __future__ import annotations

from qkverify.problem.byte_strategies import EDGES, stretched
from qkverify.properties.layers.layer_calls import epsilons, seeds, tokens_of
from qkverify.runs import exact_norms

BOTH = ("layer_norm", "rms_norm")
# Wider than what a block of threads reads at once, which is often a power of two up to 1024.
long = {"M": (33, 64, 129, 257, 1025, 4099), "L": EDGES}
shapes = stretched(long, M=(4, 2, 3, 1, 5, 8, 16), L=(3, 1, 2, 5, 7), B=(2, 1, 3))
norms = {"shape": shapes, "eps": epsilons, "axes": (3, 2, 3, 4), "seed": seeds}


def drawn(run, shape, axes, seed):
    """x of two, three or four axes and the weights, by the names of the operation's arguments."""
    rows = {2: (shape["L"],), 3: (shape["B"], shape["L"])}.get(axes, (2, shape["B"], shape["L"]))
    width, layer = shape["M"], run.implementation.operation == "layer_norm"
    arrays = {
        "x": tokens_of(run, *rows, width, seed=seed),
        "weight": tokens_of(run, width, seed=seed, other=1),
    }
    return {**arrays, "bias": tokens_of(run, width, seed=seed, other=2)} if layer else arrays


def normed(run, arrays, eps):
    """The norm with its bound, and the exact one."""
    exact = exact_norms.normed(run, *arrays.values(), **run.meant(eps=eps))
    got = run.call(*arrays.values(), shape=arrays["x"].shape, **run.given(eps=eps))
    return run.within(got, exact), exact.value


def gradients(run, arrays, upstream, eps):
    """Its gradients by argument, and the exact ones with their bounds."""
    exact = exact_norms.gradients(run, upstream, *arrays.values(), **run.meant(eps=eps))
    return run.call_gradients(arrays, upstream=upstream, **run.given(eps=eps)), exact
