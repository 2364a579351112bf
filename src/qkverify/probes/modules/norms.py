"""A module as layer norm or RMS norm: its class's name says which of the two, its parameters' names which weight each is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch.func import functional_call

from qkverify.contract import Implementation
from qkverify.contract.modules.argument_roles import snake
from qkverify.contract.modules.builder import Builder
from qkverify.contract.modules.target import ModuleTarget
from qkverify.contract.operations import DESCRIBED
from qkverify.contract.options import OPERATIONS
from qkverify.contract.signatures import named_after
from qkverify.errors import NothingVerified, UnsupportedCase
from qkverify.probes.modules.without_weights import as_function

OPERATION_OF = ("layer_norm", "rms_norm")
FURTHER = {
    "a_2": "weight",
    "alpha": "weight",
    "b_2": "bias",
}  # of The Annotated Transformer, and of its followers


def operation_of(target: ModuleTarget) -> str | None:
    """The norm that a class is called after, or that the user says it is; None for any other module."""
    if target.operation is not None:
        return target.operation if target.operation in OPERATION_OF else None
    return next((norm for norm in OPERATION_OF if named_after(target.cls.__name__, norm)), None)


def settled(
    implementation: Implementation, target: ModuleTarget, builder: Builder, sample: torch.nn.Module, operation: str
) -> Implementation:  # fmt: skip
    """The module as an implementation of its norm. Raises NothingVerified where its parameters are others than the norm's."""
    places = _places(target, sample, operation)
    width = sample.get_parameter(places["weight"]).shape[0]
    function = _function(builder, places, width)
    said = [f"{parameter} is the {name}" for name, parameter in places.items()]
    said += [f"an instance of {target.cls.__name__} for {width} features"] if builder.fixed else []
    made = as_function(implementation, function, *said, operation=operation, dtypes=implementation.dtypes)
    return replace(made, size_limits={"M": (width, width)} if builder.fixed else {})


def _places(target: ModuleTarget, sample: torch.nn.Module, operation: str) -> dict[str, str]:
    """Argument of the operation -> the module's parameter, of one axis."""
    wanted, spellings = OPERATIONS[operation][1:], DESCRIBED[operation].spellings
    roles = {other: name for name in wanted for other in (name, *spellings[name])} | FURTHER
    parameters = dict(sample.named_parameters())
    found = {
        target.weights.get(name) or roles.get(snake(name.rpartition(".")[2])): name
        for name, x in parameters.items()
        if x.ndim == 1
    }
    if len(found) != len(parameters) or found.keys() != set(wanted):
        shown = ", ".join(f"{name} {tuple(x.shape)}" for name, x in parameters.items()) or "none"
        raise NothingVerified(
            f"{target.cls.__name__} is called after {operation}, whose weights are {' and '.join(wanted)}, one axis each, and "
            f"its parameters are: {shown}\n  verify a function that calls it: "
            f"def {operation}({', '.join(OPERATIONS[operation])}, *, eps=...): return ..."
        )
    return {name: found[name] for name in wanted}


def _function(builder: Builder, places: Mapping[str, str], width: int) -> Callable[..., Any]:
    """The norm of x by a module that the weights of a call are put into, with the options that the class is built with."""

    def called(x: Any, weights: Mapping[str, Any], **built: float | None) -> Any:
        size = x.shape[-1]
        if builder.fixed and size != width:
            raise UnsupportedCase(f"the instance is for {width} features")
        told = {name: number for name, number in built.items() if number is not None}
        sizes = {"width": size, "heads": 1, "head_size": size, "causal": False, **told}
        with builder.lent(sizes, x.dtype, x.device) as module:
            return functional_call(module, {places[name]: value for name, value in weights.items()}, (x,))

    def layer_norm(x: Any, weight: Any, bias: Any) -> Any:
        return called(x, {"weight": weight, "bias": bias})

    def layer_norm_with_eps(x: Any, weight: Any, bias: Any, *, eps: float | None = None) -> Any:
        return called(x, {"weight": weight, "bias": bias}, eps=eps)

    def rms_norm(x: Any, weight: Any) -> Any:
        return called(x, {"weight": weight})

    def rms_norm_with_eps(x: Any, weight: Any, *, eps: float | None = None) -> Any:
        return called(x, {"weight": weight}, eps=eps)

    takes_eps = "eps" in getattr(builder.origin, "takes", ())
    by_eps = {False: (rms_norm, layer_norm), True: (rms_norm_with_eps, layer_norm_with_eps)}
    return by_eps[takes_eps]["bias" in places]
