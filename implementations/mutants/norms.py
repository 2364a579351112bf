"""Layer norm and RMS norm: what is subtracted, what a token is divided by, where eps stands, what has a gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from qkverify.implementations.mutants.correct import norms
from qkverify.implementations.mutants.correct.planting import mutant

LAYER, RMS = "layer_norm", "rms_norm"
BLOCK = 1024  # features that one block of threads reads
Array = np.ndarray
WIDE: dict[str, Any] = {"arrays": "torch", "dtypes": ("float32", "float64"), "evidence": "inferred"}


def outside(square: Array, eps: float) -> Array:
    """As in code that computes a deviation first."""
    return np.sqrt(square) + square.dtype.type(eps)  # right: np.sqrt(square + eps)


@mutant("L060", operation=LAYER, evidence="inferred")
def eps_is_added_to_the_deviation(x: Array, weight: Array, bias: Array, *, eps: float = 1e-5) -> Array:
    """eps stands outside of the root."""
    return norms.layer_norm(x, weight, bias, eps=eps, root=outside)


@mutant("L061", operation=RMS, evidence="inferred")
def eps_is_added_to_the_root(x: Array, weight: Array, *, eps: float = 1e-5) -> Array:
    """eps stands outside of the root."""
    return norms.rms_norm(x, weight, eps=eps, root=outside)


@mutant("L062", operation=LAYER, evidence="inferred")
def deviation_is_that_of_a_sample(x: Array, weight: Array, bias: Array, *, eps: float = 1e-5) -> Array:
    """The sum of squares is divided by M - 1, as torch.std and torch.var do unless they are told otherwise."""

    def mean_square(row: Array) -> Array:
        return (row * row).sum(-1, keepdims=True) / max(row.shape[-1] - 1, 1)  # right: row.shape[-1]

    return norms.layer_norm(x, weight, bias, eps=eps, mean_square=mean_square)


@mutant("L063", operation=LAYER, evidence="inferred")
def statistics_are_those_of_all_tokens(x: Array, weight: Array, bias: Array, *, eps: float = 1e-5) -> Array:
    """Mean and variance are taken over the features of all tokens of an entry."""
    axes = (-2, -1)  # right: -1
    row = x - x.mean(axes, keepdims=True)
    square = (row * row).mean(axes, keepdims=True)
    return row / norms.root(square, eps) * weight + bias


@mutant("L064", operation=LAYER, evidence="inferred")
def mean_is_not_subtracted(x: Array, weight: Array, bias: Array, *, eps: float = 1e-5) -> Array:
    """RMS norm with a bias."""
    return norms.layer_norm(x, weight, bias, eps=eps, centred=lambda x: x)  # right: norms.centred


@mutant("L065", operation=LAYER, evidence="inferred")
def variance_may_be_negative(x: Array, weight: Array, bias: Array, *, eps: float = 1e-5) -> Array:
    """E[x^2] - E[x]^2 is not kept from falling below zero, and its root is NaN where the mean is large."""
    mean = x.mean(-1, keepdims=True)
    square = (x * x).mean(-1, keepdims=True) - mean * mean  # right: norms.mean_square(norms.centred(x))
    return (x - mean) / norms.root(square, eps) * weight + bias


@mutant("L066", operation=LAYER, evidence="inferred")
def bias_is_multiplied_too(x: Array, weight: Array, bias: Array, *, eps: float = 1e-5) -> Array:
    """The bias is added before the weight is multiplied."""
    ones, none = np.ones_like(weight), np.zeros_like(bias)
    return (norms.layer_norm(x, ones, none, eps=eps) + bias) * weight  # right: * weight + bias


@mutant("L067", operation=RMS, evidence="inferred")
def square_of_a_wide_token_is_that_of_its_first_block(x: Array, weight: Array, *, eps: float = 1e-5) -> Array:
    """A block of threads reads 1024 features, and a token may have more."""

    def mean_square(x: Array) -> Array:
        return (x[..., :BLOCK] ** 2).sum(-1, keepdims=True) / x.shape[-1]  # right: x ** 2

    return norms.rms_norm(x, weight, eps=eps, mean_square=mean_square)


@mutant("L068", operation=RMS, evidence="inferred")
def squares_are_summed_and_not_averaged(x: Array, weight: Array, *, eps: float = 1e-5) -> Array:
    """The root of the sum, as of a unit vector."""
    return norms.rms_norm(
        x, weight, eps=eps, mean_square=lambda x: (x * x).sum(-1, keepdims=True)
    )  # right: mean


@mutant("L069", operation=RMS, evidence="inferred")
def squares_are_those_of_the_batch(x: Array, weight: Array, *, eps: float = 1e-5) -> Array:
    """The token's own mean square is mixed with the mean over all tokens, as of a running average."""

    def mean_square(x: Array) -> Array:
        square = norms.mean_square(x)
        return square / 2 + square.mean() / 2  # right: square

    return norms.rms_norm(x, weight, eps=eps, mean_square=mean_square)


@mutant("L070", operation=LAYER, evidence="inferred")
def nan_is_taken_for_zero(x: Array, weight: Array, bias: Array, *, eps: float = 1e-5) -> Array:
    """What is no number is cleared before the statistics."""
    return norms.layer_norm(np.nan_to_num(x), weight, bias, eps=eps)  # right: x


@mutant("L071", operation=LAYER, evidence="inferred")
def eps_of_the_call_is_not_used(x: Array, weight: Array, bias: Array, *, eps: float = 1e-5) -> Array:
    """A constant stands in its place."""
    return norms.layer_norm(x, weight, bias, eps=1e-5)  # right: eps


@mutant("L072", operation=LAYER, **WIDE)
def statistics_are_constants(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float = 1e-5) -> Tensor:
    """No gradient flows through mean and variance."""
    variance, mean = torch.var_mean(x.detach(), -1, correction=0, keepdim=True)  # right: x
    return (x - mean) / (variance + eps).sqrt() * weight + bias


@mutant("L073", operation=RMS, **WIDE)
def root_is_a_constant(x: Tensor, weight: Tensor, *, eps: float = 1e-5) -> Tensor:
    """No gradient flows through the mean square."""
    square = x.detach().square().mean(-1, keepdim=True)  # right: x
    return x / (square + eps).sqrt() * weight
