"""Modules that have no weights of their own: softmax, a loss, attention itself, an encoding of positions."""

from __future__ import annotations

import contextlib
import copy
import inspect
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from qkverify.contract import Implementation, describe
from qkverify.contract.modules.builder import LONGEST, Builder
from qkverify.contract.modules.calling import calling
from qkverify.contract.modules.target import ModuleTarget
from qkverify.errors import UnsupportedCase, UsageError

Settled = Callable[[Implementation, ModuleTarget, Builder, torch.nn.Module], Implementation]
EVALUATED = "in evaluation mode"


def kind_of(target: ModuleTarget, sample: torch.nn.Module) -> Settled | None:
    """How a module without weights is settled, by its class, its name and its signature; None where it is none of these."""
    name = target.cls.__name__.lower()
    if isinstance(sample, torch.nn.CrossEntropyLoss):
        return cross_entropy
    if any(True for _ in sample.parameters()):
        return None
    if "softmax" in name and "log" not in name:
        return softmax
    if re.search(r"position|sinusoid", name) and "rotary" not in name:
        return positional_encoding
    with contextlib.suppress(UsageError):
        if [token[0].lower() for token in calling(sample).tokens] == ["q", "k", "v"]:
            return attention
    return None


def as_function(
    implementation: Implementation, function: Any, *remarks: str, **declared: Any
) -> Implementation:
    """The implementation with another function, described by its signature."""
    if inspect.isfunction(function):
        function.__name__ = function.__qualname__ = implementation.name.rpartition(":")[
            2
        ]  # as its file calls it
    made = describe(function, **{"arrays": "torch", **declared})
    return replace(
        made,
        name=implementation.name,
        file=implementation.file,
        summary=implementation.summary,
        remarks=remarks,
    )


def softmax(
    implementation: Implementation, target: ModuleTarget, builder: Builder, sample: torch.nn.Module
) -> Implementation:
    """softmax(scores) by a module of one axis."""
    if isinstance(target.module, type) and getattr(sample, "dim", 0) is None:
        sample.dim = -1  # type: ignore[assignment]  # torch.nn.Softmax() itself leaves the axis open
    axis = getattr(sample, "dim", None)

    def function(scores: Any) -> Any:
        if isinstance(axis, int) and axis not in (-1, scores.ndim - 1):
            raise UnsupportedCase(f"its axis is {axis}, and the last one is asked for")
        return sample(scores)

    return as_function(
        implementation, function, f"{target.cls.__name__} over axis {axis}, {EVALUATED}", operation="softmax"
    )


def attention(
    implementation: Implementation, target: ModuleTarget, builder: Builder, sample: torch.nn.Module
) -> Implementation:
    """attention(query, key, value, ...) by a module without weights: then it is a function like any other."""
    said = f"{target.cls.__name__} has no weights: its call is verified as attention, {EVALUATED}"
    words = {"operation": "attention", **target.of_function}
    made = as_function(implementation, sample, said, **words)
    return replace(made, probed=False, adapters=target.of_function)


def cross_entropy(
    implementation: Implementation, target: ModuleTarget, builder: Builder, sample: torch.nn.Module
) -> Implementation:
    """cross_entropy(scores, targets, smoothing) by torch's loss, token by token."""
    assert isinstance(sample, torch.nn.CrossEntropyLoss)
    if sample.weight is not None:
        raise UsageError(
            f"{target.cls.__name__} weighs its classes, which cross_entropy has no option for: not verified"
        )
    loss, own = copy.deepcopy(sample), float(sample.label_smoothing)
    loss.reduction = "none"
    fixed = isinstance(target.module, torch.nn.Module)

    def function(scores: Any, targets: Any, *, smoothing: float | None = None) -> Any:
        if fixed and smoothing != own:
            raise UnsupportedCase(f"its label_smoothing is {own}")
        module = copy.copy(loss)
        module.label_smoothing = own if smoothing is None else smoothing
        return module(scores, targets)

    said = [
        f"{target.cls.__name__} is called with reduction='none': what is done with the losses of all tokens is not verified"
    ]
    said += [f"its label_smoothing is {own}, and no other is verified"] if fixed else []
    if fixed and own == 0.0:
        return as_function(implementation, lambda scores, targets: function(scores, targets), *said, operation="cross_entropy",
                   dtypes=implementation.dtypes)  # fmt: skip
    return as_function(
        implementation, function, *said, operation="cross_entropy", dtypes=implementation.dtypes
    )


def positional_encoding(
    implementation: Implementation, target: ModuleTarget, builder: Builder, sample: torch.nn.Module
) -> Implementation:
    """positional_encoding(length, dim) by a module that adds it to tokens: it is given zeros."""
    width = 12
    with torch.no_grad():
        batch_first = _repeats(sample, (2, 5, width))

    def function(length: int, dim: int) -> Any:
        shape = (1, length, dim) if batch_first else (length, 1, dim)
        sizes = {"width": dim, "heads": 1, "head_size": dim, "length": max(length, LONGEST), "causal": False}
        with builder.lent(sizes, torch.float32, "cpu") as module, torch.no_grad():
            rows = max((size for x in module.buffers() for size in x.shape), default=length)
            if length > rows:
                raise UnsupportedCase(f"its table has {rows} rows")
            added = module(torch.zeros(shape))
        return added.reshape(length, dim) if added.numel() == length * dim else added

    said = [
        f"{target.cls.__name__} is given zeros: what it adds to tokens {'(B,L,M)' if batch_first else '(L,B,M)'} is verified"
    ]
    return as_function(implementation, function, *said, operation="positional_encoding", dtypes=("float32",))


def _repeats(sample: torch.nn.Module, shape: tuple[int, int, int]) -> bool:
    """Whether the first axis is the batch: what is added along it is the same."""
    added = sample(torch.zeros(shape))
    if added.shape[:2] != shape[:2]:
        return True
    return bool((added[0] == added[1]).all()) or not bool((added[:, 0] == added[:, 1]).all())
