"""Which operation a module computes, and the sample of it that is looked at."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch

from qkverify import foreign_text
from qkverify.contract import Implementation
from qkverify.contract.modules import weight_names
from qkverify.contract.modules.argument_roles import ROLES, snake
from qkverify.contract.modules.builder import Builder, construct
from qkverify.contract.modules.constructor import Construction, construction
from qkverify.contract.modules.encoder_layer import places
from qkverify.contract.modules.target import OF_MODULES, ModuleTarget
from qkverify.errors import NothingVerified, UsageError
from qkverify.probes.modules import encoder_layer, gated, multi_head, norms, without_weights

SAMPLE = {"width": 12, "heads": 3, "head_size": 4, "inner": 7, "causal": False}  # different from one another


def settled(implementation: Implementation, target: ModuleTarget) -> Implementation:
    """The implementation of the operation that a module computes. Raises NothingVerified where it is none of those known."""
    builder, sample = _built(target)
    kind = without_weights.kind_of(target, sample)
    if target.of_function and kind is not without_weights.attention:
        raise UsageError(
            f"{implementation.name}: {', '.join(target.of_function)} cannot be said of a module that is more than a function of "
            f"query, key and value\n  what can be said of it: {', '.join(OF_MODULES)}"
        )
    if kind is not None:
        return kind(implementation, target, builder, sample)
    norm = norms.operation_of(target)
    if norm is not None:
        return norms.settled(implementation, target, builder, sample, norm)
    gate = gated.places(sample)
    if gate is not None:
        return gated.settled(implementation, target, builder, sample, SAMPLE, gate)
    letters = {
        letter for name, x in sample.named_parameters() if x.ndim > 1 for letter in weight_names.roles(name)
    }
    letters |= set(
        "".join(weight_names.numbered([name for name, x in sample.named_parameters() if x.ndim > 1]).values())
    )
    if not {"q", "k", "v"} <= letters and not target.weights:
        raise NothingVerified(_unknown(target, sample))
    sizes = _sizes(target, sample) if builder.fixed else dict(SAMPLE)
    where = places(sample)
    if where is not None:
        return encoder_layer.settled(implementation, target, builder, sample, sizes, where)
    return multi_head.settled(implementation, target, builder, sample, sizes)


def _unknown(target: ModuleTarget, sample: torch.nn.Module) -> str:
    """Of a module whose operation is none of those that can be told."""
    kind, name = target.cls.__name__, target.cls.__name__.lower()
    for word, what in REFUSED.items():
        if word in name:
            return f"{kind} is a torch.nn.Module, and {what}: not verified"
    matrices = ", ".join(f"{name} {tuple(x.shape)}" for name, x in sample.named_parameters() if x.ndim > 1)
    return (
        f"{kind} is a torch.nn.Module, and what it computes does not show: none of its parameters is called as the matrices of "
        f"query, key and value are\n  its matrices: {matrices or 'none'}\n"
        f"  if it is multi-head attention, say where they are: --weights NAME=q, or in the file: "
        f"attention = qkverify.module({kind}, "
        'weights={"...": "q"})\n  else verify a function that calls it; `qkverify list operations` explains each'
    )


REFUSED = {
    "embedding": "a table of embeddings alone is no operation of qkverify: `embedding` also scales, and adds positions",
    "rotary": "a rotary embedding is verified as a function, rotary(x, positions)",
}  # part of a class's name -> why it is refused


def _built(target: ModuleTarget) -> tuple[Builder, torch.nn.Module]:
    """(how modules of any sizes are made, one of them). Raises NothingVerified with what the constructor raised."""
    if isinstance(target.module, torch.nn.Module):
        return Builder(target.module), copy.deepcopy(target.module).eval()
    origin = construction(target.cls, target.sizes)
    sample = _constructed(origin, SAMPLE)
    if not origin.takes & {"width", "heads"} and origin.configuration is None:
        return Builder(sample), copy.deepcopy(sample)  # its sizes are its own
    return Builder(origin), sample


def _constructed(origin: Construction, sizes: Mapping[str, Any]) -> torch.nn.Module:
    try:
        return construct(origin, sizes).eval()
    except Exception as error:
        kind = origin.cls.__name__
        raise NothingVerified(
            f"{kind} is a class, and could not be built with what its arguments' names say: {foreign_text.of_error(error)}\n"
            f"  say what they are: --sizes NAME=WHAT, or in the file: "
            f"attention = qkverify.module({kind}, sizes={{...}}), or give an instance: "
            f"attention = {kind}(...)"
        ) from error


def _sizes(target: ModuleTarget, module: torch.nn.Module) -> dict[str, int]:
    """The sizes of an instance: its heads by an attribute, the others by the shapes of its weights."""
    heads = target.sizes.get("heads") or _heads(module)
    if heads is None:
        kind = target.cls.__name__
        raise NothingVerified(
            f"the number of heads of this {kind} stands in none of its attributes\n"
            f'  say it: --sizes heads=NUMBER, or in the file: attention = qkverify.module({kind.lower()}, sizes={{"heads": ...}})'
        )
    inner, width = _matrix(module)
    return {"width": width, "heads": heads, "head_size": inner // heads, "causal": False}


def _heads(module: torch.nn.Module) -> int | None:
    """What the module, or one in it, calls its number of heads."""
    for part in module.modules():
        for name, value in vars(part).items():
            if ROLES.get(snake(name)) == "heads" and isinstance(value, int) and not isinstance(value, bool):
                return value
    return None


def _matrix(module: torch.nn.Module) -> tuple[int, int]:
    """(H D, M) by the first matrix of queries."""
    for name, parameter in module.named_parameters():
        letters = weight_names.roles(name)
        if "q" in letters and parameter.ndim == 2:
            owner = module.get_submodule(name.rpartition(".")[0])
            rows, columns = parameter.shape
            out_first = isinstance(owner, torch.nn.Linear) or rows == len(letters) * columns
            out, width = (rows, columns) if out_first else (columns, rows)
            return out // len(letters), width
    return SAMPLE["width"], SAMPLE["width"]
