"""A module as SwiGLU: three matrices, called gate_proj, up_proj and down_proj or w1, w3 and w2, as in Llama."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch.func import functional_call

from qkverify.contract import Implementation
from qkverify.contract.modules.builder import Builder
from qkverify.contract.modules.target import ModuleTarget
from qkverify.contract.modules.weight_names import components
from qkverify.errors import NothingVerified, UnsupportedCase
from qkverify.probes.modules.other_operations import texts
from qkverify.probes.modules.without_weights import as_function

NAMES: Mapping[str, str] = {
    "gate_proj": "w_gate", "w_gate": "w_gate", "gate": "w_gate", "w1": "w_gate", "up_proj": "w_up", "w_up": "w_up", "up": "w_up",
    "w3": "w_up", "down_proj": "w_down", "w_down": "w_down", "down": "w_down", "w2": "w_down",
}  # fmt: skip
OTHER_ACTIVATIONS = re.compile("gelu|relu|mish|tanh")


def places(sample: torch.nn.Module) -> dict[str, str] | None:
    """Argument of the operation -> the parameter of a torch.nn.Linear; None for a module that has other parameters than these."""
    found: dict[str, str] = {}
    for name, parameter in sample.named_parameters():
        owner = sample.get_submodule(name.rpartition(".")[0])
        role = NAMES.get((components(name) or [""])[-1])
        if role is None or parameter.ndim != 2 or role in found or not isinstance(owner, torch.nn.Linear):
            return None
        found[role] = name
    return found if len(found) == 3 else None


def _silu(target: ModuleTarget, sample: torch.nn.Module) -> None:
    """Raise NothingVerified for a gate with another activation: that is another operation, and no mistake."""
    known = " ".join([*texts(sample), *(type(part).__name__.lower() for part in sample.modules())])
    other = OTHER_ACTIVATIONS.search(known)
    if other and not re.search("silu|swish|sigmoid", known):
        raise NothingVerified(
            f"the gate of {target.cls.__name__} has {other.group()}, and that of swiglu SiLU: not verified\n"
            "  give an instance that is built with SiLU"
        )


def settled(
    implementation: Implementation, target: ModuleTarget, builder: Builder, sample: torch.nn.Module,
    sizes: Mapping[str, Any], where: Mapping[str, str],
) -> Implementation:  # fmt: skip
    """The module as an implementation of swiglu. Raises NothingVerified where its inner width is its own."""
    _silu(target, sample)
    inner, width = sample.get_parameter(where["w_gate"]).shape
    if not builder.fixed and (inner, width) != (sizes["inner"], sizes["width"]):
        kind = target.cls.__name__
        raise NothingVerified(
            f"{kind} has a gate of {inner} for tokens of {width}, and {sizes['inner']} for {sizes['width']} was meant\n"
            f'  say which argument is the inner width, in the file: swiglu = qkverify.module({kind}, sizes={{"...": "inner"}}), '
            f"or give an instance: swiglu = {kind}(...)"
        )

    def swiglu(x: Any, w_gate: Any, w_up: Any, w_down: Any) -> Any:
        given = {"w_gate": w_gate, "w_up": w_up, "w_down": w_down}
        size = x.shape[-1]
        told = {"width": size, "inner": w_gate.shape[1], "heads": 1, "head_size": size, "causal": False}
        with builder.lent(told, x.dtype, x.device) as module:
            parameters = {where[name]: value.T.contiguous() for name, value in given.items()}
            for name, value in parameters.items():
                if value.shape != module.get_parameter(name).shape:
                    raise UnsupportedCase(f"{name} has shape {tuple(module.get_parameter(name).shape)}")
            return functional_call(module, parameters, (x,))

    said = [f"{parameter} is {name}, (out,in)" for name, parameter in where.items()]
    made = as_function(implementation, swiglu, *said, operation="swiglu", dtypes=implementation.dtypes)
    limits = {"H": (1, 1), "D": (width,) * 2, "M": (width,) * 2, "F": (inner,) * 2} if builder.fixed else {}
    return replace(made, size_limits=limits)
