"""A module as an encoder layer: self-attention, a feed-forward network and two norms."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product
from typing import Any

import torch

from qkverify.contract import Implementation
from qkverify.contract.modules.argument_roles import snake
from qkverify.contract.modules.builder import Builder
from qkverify.contract.modules.calling import KINDS, Calling, calling
from qkverify.contract.modules.encoder_layer import PADDING_AXES, EncoderModule, Padding, Places
from qkverify.contract.modules.target import ModuleTarget
from qkverify.errors import NothingVerified
from qkverify.probes.modules import multi_head, structure

OTHER_ACTIVATIONS = ("gelu", "silu", "swish", "mish", "glu")


def settled(
    implementation: Implementation, target: ModuleTarget, builder: Builder, sample: torch.nn.Module,
    sizes: Mapping[str, int], where: Places,
) -> Implementation:  # fmt: skip
    """The module as an implementation of encoder_layer. Raises NothingVerified where it cannot be called, or is another layer."""
    _relu(target, sample)
    plan, padding, said = _called(target, sample, sizes)
    built = tuple(name for name in ("norm_first", "eps") if name in getattr(builder.origin, "takes", ()))
    inner = sample.get_parameter(where.vectors["b_1"]).shape[0]
    if not builder.fixed and inner != sizes["inner"]:
        raise NothingVerified(
            f"{target.cls.__name__} has an inner width of its own, {inner} for tokens of {sizes['width']}, and encoder_layer is "
            f"verified with any\n  give an instance, in the file: layer = {target.cls.__name__}(...)"
        )
    function = EncoderModule(
        builder, plan, where, target.weights, built=built, padding=padding, heads=sizes["heads"] if builder.fixed else None,
        attribute=implementation.name.rpartition(":")[2],
    )  # fmt: skip
    plain = function.plain(sample, sizes["width"])
    limits = (
        {"H": (sizes["heads"],) * 2, "D": (sizes["head_size"],) * 2, "F": (inner,) * 2}
        if builder.fixed
        else {}
    )
    made = replace(
        implementation, operation="encoder_layer", parameters={name: name for name in function.options},
        offers=frozenset({*function.options, "gradients"}), size_limits=limits, probed=True,
    )  # fmt: skip
    functions = [dataclasses.replace(function, choice=choice) for choice in plain.open]
    chosen, right = multi_head.chosen(made, functions, {**sizes, "inner": inner})
    others = {**where.matrices, **where.vectors}
    own = ", ".join(f"{parameter} is {name}" for name, parameter in others.items())
    words = multi_head.of_weights(chosen.plain(sample, sizes["width"]), right, several=len(functions) > 1)
    remarks = (multi_head.of_building(target, builder, dict(sizes)), *words, own, *said)
    biases = any(number == 0 for number in chosen.plain(sample, sizes["width"]).constants.values())
    unreached = {"biases": biases, "masks": padding is None and bool(list(_readings(sample)))}
    unknown = tuple(name for name, present in unreached.items() if present)
    return replace(made, function=chosen, remarks=remarks, unknown=unknown)


def _relu(target: ModuleTarget, sample: torch.nn.Module) -> None:
    """Raise NothingVerified for a layer with another activation: that is another operation, and no mistake."""
    for part in sample.modules():
        named = [type(part).__name__, *(getattr(value, "__name__", "") for name, value in vars(part).items()
                                        if "activation" in name or snake(name) in ("act", "act_fn"))]  # fmt: skip
        for name in named:
            if any(word in name.lower() for word in OTHER_ACTIVATIONS):
                raise NothingVerified(
                    f"the feed-forward network of {target.cls.__name__} has {name}, and that of "
                    "encoder_layer relu: not verified\n  give an instance that is built with relu, or verify its attention alone"
                )


def _called(
    target: ModuleTarget, sample: torch.nn.Module, sizes: Mapping[str, int]
) -> tuple[Calling, Padding | None, list[str]]:
    """(how it is called, its mask of padding, what is said of both). Raises NothingVerified if no call comes back."""
    observed = structure.Observed(sample, sizes["width"])
    plan = calling(observed.module)
    with structure.quiet():
        try:
            plan = structure.layout(observed, structure.called(observed, plan))
        except Exception as error:
            raise multi_head.cannot_be_called(target, plan, sizes, error) from error
        said = multi_head.of_axes(plan)
        if structure.always_causal(observed, plan):
            raise NothingVerified(
                f"{target.cls.__name__} is an encoder layer that is always causal, and encoder_layer has no such option: not "
                "verified\n  verify its attention alone"
            )
        padding = _padding(observed, plan)
    said += [padding.words()] if padding else []
    return plan, padding, said


def _padding(observed: structure.Observed, plan: Calling) -> Padding | None:
    """The reading of a mask under which the last token, as padding, changes no other. If none does that, the plainest that is
    taken by a parameter named after padding: a module that ignores it is wrong. Else None."""
    taken: list[Padding] = []
    lengths = torch.full((structure.BATCH,), structure.LENGTH - 1)
    for padding in _readings(observed.module):

        def call(module: Any, padding: Padding = padding) -> Any:
            given = {padding.parameter: padding(lengths, observed.x)}
            return lambda *tokens, **keywords: module(*tokens, **{**keywords, **given})

        with contextlib.suppress(Exception):  # this reading is refused
            shown = structure.Observed(observed.module, observed.width)
            shown.module = call(shown.module)
            last, first = (shown.changes(plan, None, token) for token in (structure.LENGTH - 1, 0))
            if not last[:, :-1].any() and first[:, :-1].all():
                return padding
            taken += [padding] if "pad" in padding.parameter else []
    return taken[0] if taken else None


def _readings(module: torch.nn.Module) -> Iterator[Padding]:
    names = [name for name in inspect.signature(module.forward).parameters if "mask" in name or "pad" in name]
    names.sort(key=lambda name: "pad" not in name)
    for name, axes, kind in product(names, PADDING_AXES, KINDS):
        yield Padding(name, kind, axes)
