"""A module as multi-head attention: its call, its causality and its weights, settled by calls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from qkverify import foreign_text
from qkverify.contract import Implementation
from qkverify.contract.modules.builder import Builder
from qkverify.contract.modules.calling import Calling, calling
from qkverify.contract.modules.constructor import Construction
from qkverify.contract.modules.multi_head import MultiHeadModule
from qkverify.contract.modules.target import ModuleTarget
from qkverify.contract.modules.weights import Reading, reading
from qkverify.errors import NothingVerified, UsageError
from qkverify.probes.modules import structure
from qkverify.runs.run import Run
from qkverify.strategies.operation_cases import OPERATION_SPECS, OperationCall, PreparedCall, Source

WORDS = {
    "always": "it is always causal",
    "asked": "causal is asked for in each call",
    "built": "causal is an argument of its constructor",
}


def settled(
    implementation: Implementation,
    target: ModuleTarget,
    builder: Builder,
    sample: Any,
    sizes: Mapping[str, int],
) -> Implementation:
    """The module as an implementation of multi_head_attention. Raises UsageError where it is none, or cannot be called."""
    inner = sizes["heads"] * sizes["head_size"]
    plain = reading(sample, target.weights, inner)
    plan, causality, said = _called(target, sample, builder, sizes)
    heads = sizes["heads"] if builder.fixed else None
    attribute = implementation.name.rpartition(":")[2]
    functions = [
        MultiHeadModule(builder, plan, target.weights, choice, causality, heads, attribute)
        for choice in plain.open
    ]
    chosen, right = _chosen(implementation, functions, sizes)
    weights = _weights(chosen.reading(sample, sizes["heads"], inner), right, several=len(functions) > 1)
    parameters = {name: name for name in chosen.options}
    limits = {"H": (heads, heads), "D": (sizes["head_size"],) * 2} if heads else {}
    longest = structure.longest(structure.Observed(sample, sizes["width"]), plan)
    if longest < structure.LONG:
        limits["L"] = (1, longest)
        said.append(f"sequences of at most {longest} tokens: it raises an error for longer ones")
    return replace(
        implementation, function=chosen, operation="multi_head_attention", parameters=parameters,
        offers=frozenset({*parameters, "gradients"}), size_limits=limits, probed=True,
        remarks=(_built(target, builder, sizes), *weights, *said),
    )  # fmt: skip


def _called(
    target: ModuleTarget, sample: Any, builder: Builder, sizes: Mapping[str, int]
) -> tuple[Calling, str, list[str]]:
    """(how the module is called, whether it is causal, what is said of both). Raises NothingVerified if no call comes back."""
    observed = structure.Observed(sample, sizes["width"])
    plan = calling(observed.module)
    with structure.quiet():
        try:
            plan, masked = _needed_mask(observed, plan)
            plan = structure.layout(observed, structure.called(observed, plan))
        except UsageError:
            raise
        except Exception as error:
            raise NothingVerified(
                f"{target.cls.__name__} raises an error on the plainest call, {_shown(plan, sizes)}: "
                f"{foreign_text.of_error(error)}"
            ) from error
        said = [] if plan.batch_first else ["tokens are (L,B,M): it attends along the first axis"]
        if len(plan.tokens) > 1:
            said.append(
                f"{', '.join(plan.tokens)} are all given the tokens: self-attention is what is verified"
            )
        if plan.returns is not None:
            said.append(
                f"returns several parts: {plan.returns!r} is the output and is verified; the rest is not"
            )
        if "causal" in getattr(builder.origin, "takes", ()):
            return plan, "built", [*said, WORDS["built"]]
        if structure.always_causal(observed, plan):
            return plan, "always", [*said, WORDS["always"]]
        if plan.masks:
            plan, masked = structure.mask(observed, plan)
        elif plan.flag is None:
            return plan, "none", [*said, "it has no mask and is not causal"]
    if plan.mask is not None:
        said.append(f"{plan.mask.words()}; causal is given through it")
        said += (
            []
            if masked
            else ["no reading of its mask hides the future, so the plainest that it takes is verified"]
        )
    elif plan.masks:
        return (
            plan,
            "none",
            [*said, f"{', '.join(plan.masks)}: no mask of any known kind is taken, so it is not verified"],
        )
    return plan, "asked", said


def _needed_mask(observed: structure.Observed, plan: Calling) -> tuple[Calling, bool]:
    """With a mask where the module cannot be called without one."""
    if not plan.required_masks:
        return plan, True
    try:
        observed.output(replace(plan, returns=structure.called(observed, plan).returns), observed.x)
        return plan, True
    except Exception:  # None is no mask for it
        for batch_first in (True, False):
            tried, hides = structure.mask(observed, replace(plan, batch_first=batch_first))
            if tried.mask is not None:
                return replace(tried, batch_first=True), hides
        raise


def _shown(plan: Calling, sizes: Mapping[str, int]) -> str:
    shape = (structure.BATCH, structure.LENGTH, sizes["width"])
    return f"{', '.join(plan.tokens)} of shape {shape}"


def _chosen(
    implementation: Implementation, functions: list[MultiHeadModule], sizes: Mapping[str, int]
) -> tuple[MultiHeadModule, bool]:
    """The first reading of the weights under which the result is right, and whether there is one; else the plainest."""
    for function in functions:
        if all(_right(implementation, function, sizes, seed) for seed in (0, 1)):
            return function, True
    return functions[0], False


def _right(
    implementation: Implementation, function: MultiHeadModule, sizes: Mapping[str, int], seed: int
) -> bool:
    run = Run(
        replace(implementation, function=function, operation="multi_head_attention",
                parameters={name: name for name in function.options}, offers=frozenset(function.options)),
        dtype=implementation.dtypes[0],
    )  # fmt: skip
    return all(_holds(run, call) for call in _calls(run, function, sizes, seed))


def _calls(
    run: Run, function: MultiHeadModule, sizes: Mapping[str, int], seed: int
) -> Iterator[OperationCall]:
    form = OPERATION_SPECS["multi_head_attention"]
    for causal in {"none": (False,), "always": (True,)}.get(function.causality, (False, True)):
        drawn = SimpleNamespace(
            B=structure.BATCH,
            L=structure.LENGTH,
            H=sizes["heads"],
            D=sizes["head_size"],
            causal=causal,
            fill="normal",
            seed=seed,
        )
        arguments, options = form.draw(drawn, Source(np.dtype(run.numpy_dtype), drawn, 0))
        yield OperationCall(form, arguments, run.given(**options))


def _holds(run: Run, call: OperationCall) -> bool:
    try:
        with structure.quiet():
            results = PreparedCall(run, call).results()
    except Exception:  # this reading does not fit
        return False
    with np.errstate(invalid="ignore"):
        return all(
            bool((np.abs(got.astype(np.float64) - exact.value) <= run.within(got, exact).errors).all())
            for got, exact in zip(results, call.exact(run), strict=True)
        )


def _built(target: ModuleTarget, builder: Builder, sizes: Mapping[str, int]) -> str:
    if builder.fixed:
        return f"an instance of {target.cls.__name__}: {sizes['heads']} heads of size {sizes['head_size']}, evaluation mode"
    origin = builder.origin
    assert isinstance(origin, Construction)
    roles = {name: role for name, role in origin.roles.items() if role in sizes}
    told = ", ".join(f"{name} is the {_ROLES[role]}" for name, role in roles.items() if role in _ROLES)
    if origin.configuration:
        told = f"{told}, " if told else ""
        told += f"{origin.configuration} is a configuration whose fields are what their names say"
    return f"{target.cls.__name__} is built for the sizes of each problem, in evaluation mode, without dropout: {told}"


_ROLES = {
    "width": "width of a token",
    "heads": "number of heads",
    "head_size": "size of a head",
    "inner": "inner width",
}


def _weights(reading: Reading, right: bool, *, several: bool) -> list[str]:
    said = [
        "; ".join(piece.words() for piece in reading.pieces if not piece.head)
    ]  # the others are as the first one is
    if "o" not in reading.letters:
        said.append("it has no projection of its output, so w_o is applied to what it returns")
    zeros = [name for name, number in reading.constants.items() if number == 0]
    said += [f"{', '.join(zeros)}: zero in all calls, so not verified"] if zeros else []
    if several and not right:
        said.append("no reading of its weights gives the right result, so the plainest is verified")
    return said
