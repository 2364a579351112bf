"""A module as multi-head attention: its call, its causality and its weights, settled by calls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np
import torch

from qkverify import foreign_text
from qkverify.contract import Implementation
from qkverify.contract.modules.builder import Builder
from qkverify.contract.modules.calling import Calling, calling
from qkverify.contract.modules.constructor import Construction
from qkverify.contract.modules.encoder_layer import EncoderModule
from qkverify.contract.modules.multi_head import MultiHeadModule
from qkverify.contract.modules.target import ModuleTarget
from qkverify.contract.modules.weights import Reading, reading
from qkverify.contract.operations import DESCRIBED
from qkverify.errors import NothingVerified, UnsupportedCase, UsageError
from qkverify.probes.modules import structure
from qkverify.probes.modules.other_operations import step_of
from qkverify.runs.run import Run
from qkverify.strategies.operation_cases import OperationCall, PreparedCall
from qkverify.strategies.operation_spec import Source
from qkverify.strategies.operations import OPERATION_SPECS

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
    limits = {"H": (heads, heads), "D": (sizes["head_size"],) * 2} if heads else {}
    limits |= {"causal": (True, True)} if causality == "always" else {}
    longest = structure.longest(structure.Observed(sample, sizes["width"]), plan)
    if longest < structure.LONG:
        limits["L"] = (1, longest)
        said.append(f"sequences of at most {longest} tokens: it raises an error for longer ones")
    parameters = {name: name for name in functions[0].options}
    made = replace(
        implementation, operation="multi_head_attention", parameters=parameters, size_limits=limits, probed=True,
        offers=frozenset({*parameters, "gradients"}),
    )  # fmt: skip
    _check_shapes(target, sample, functions[0], sizes)
    function, right = chosen(made, functions, sizes)
    if not right:
        _refuse_another(replace(made, function=function), target, sample, sizes)
    weights = of_weights(function.reading(sample, sizes["heads"], inner), right, several=len(functions) > 1)
    return replace(
        made, function=function, unknown=_unreached(function, reading(sample, target.weights, inner)),
        remarks=(of_building(target, builder, sizes), *weights, *said),
    )  # fmt: skip


def _unreached(function: MultiHeadModule, read: Reading) -> tuple[str, ...]:
    """What no law can reach, as `unknown_parameters.OF_MODULES` names it."""
    parts = {
        "biases": any(number == 0 for number in read.constants.values()),
        "cross-attention": len(function.calling.tokens) > 1,
        "other masks": bool(function.calling.masks),
    }
    return tuple(name for name, present in parts.items() if present)


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
            raise cannot_be_called(target, plan, sizes, error) from error
        said = of_axes(plan)
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
        else:
            said.append(f"causal is given by its parameter {plan.flag}")
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


def cannot_be_called(
    target: ModuleTarget, plan: Calling, sizes: Mapping[str, int], error: Exception
) -> NothingVerified:
    """What is said of a module whose plainest call raises this error."""
    shape = (structure.BATCH, structure.LENGTH, sizes["width"])
    return NothingVerified(
        f"{target.cls.__name__} raises an error on the plainest call, {', '.join(plan.tokens)} of shape {shape}: "
        f"{foreign_text.of_error(error)}"
    )


def of_axes(plan: Calling) -> list[str]:
    """What is said of the order of axes, if anything is."""
    return [] if plan.batch_first else ["tokens are (L,B,M): it attends along the first axis"]


Function = TypeVar("Function", MultiHeadModule, EncoderModule)


def chosen(
    implementation: Implementation, functions: Sequence[Function], sizes: Mapping[str, int]
) -> tuple[Function, bool]:
    """The first reading of the weights under which the result is right, and whether there is one; else the plainest.

    `implementation` says which operation and options these are.
    """
    for function in functions:
        if all(_right(replace(implementation, function=function), sizes, seed) for seed in (0, 1)):
            return function, True
    return functions[0], False


def _right(implementation: Implementation, sizes: Mapping[str, int], seed: int) -> bool:
    run = Run(implementation, dtype=implementation.dtypes[0])
    return all(_holds(run, call) for call in _calls(run, sizes, seed))


def _calls(run: Run, sizes: Mapping[str, int], seed: int) -> Iterator[OperationCall]:
    form = OPERATION_SPECS[run.implementation.operation]
    causality = getattr(run.implementation.function, "causality", "none")
    for causal in {"none": (False,), "always": (True,)}.get(causality, (False, True)):
        drawn = SimpleNamespace(
            B=structure.BATCH, L=structure.LENGTH, H=sizes["heads"], D=sizes["head_size"], F=sizes.get("inner", 1),
            causal=causal, padded=False, norm_first=False, eps=1e-5, fill="normal", seed=seed,
        )  # fmt: skip
        arguments, options = form.draw(drawn, Source(np.dtype(run.numpy_dtype), drawn, 0))
        yield OperationCall(form, arguments, run.given(**options))


def _holds(run: Run, call: OperationCall, *, added: str = "") -> bool:
    """Whether a call gives the right result, whatever it means by options that it does not take; with `added`, that and this
    argument."""
    try:
        with structure.quiet():
            results = PreparedCall(run, call).results()
    except Exception:  # this reading does not fit
        return False
    if added:
        results = [got - call.arguments[added] for got in results]
    defaults = DESCRIBED[run.implementation.operation].defaults
    for values in product(*defaults.values()):
        meant = {**dict(zip(defaults, values, strict=True)), **call.options}
        with np.errstate(invalid="ignore"):
            if all(
                bool((np.abs(got.astype(np.float64) - exact.value) <= run.within(got, exact).errors).all())
                for got, exact in zip(results, call.form.exact(run, call.arguments, meant), strict=True)
            ):
                return True
    return False


def _check_shapes(
    target: ModuleTarget, sample: Any, function: MultiHeadModule, sizes: Mapping[str, int]
) -> None:
    """Raise NothingVerified where the matrices of the contract do not have the shapes of the module's."""
    width, inner = sizes["width"], sizes["heads"] * sizes["head_size"]
    weights = {letter: torch.zeros(width, inner) for letter in "qkv"} | {"o": torch.zeros(inner, width)}
    try:
        function.reading(sample, sizes["heads"], inner).placed(sample, weights, sizes["heads"])
    except UnsupportedCase as error:
        raise NothingVerified(
            f"{target.cls.__name__} is not multi-head attention with a matrix for all heads together: {error}\n"
            f"  it was looked at with {sizes['heads']} heads of size {sizes['head_size']} and tokens of {width}; if these are "
            f"not its sizes, say which are: attention = qkverify.module({target.cls.__name__}, sizes={{...}})"
        ) from error


def _refuse_another(
    made: Implementation, target: ModuleTarget, sample: Any, sizes: Mapping[str, int]
) -> None:
    """Raise NothingVerified for what is wrong as multi-head attention because it is something else."""
    kind, way = target.cls.__name__, "verify a function, or the part of it that is attention alone"
    if step := step_of(sample):
        raise NothingVerified(
            f"{kind} has {step}, which multi_head_attention has no option for: not verified as it stands\n  {way}"
        )
    run = Run(made, dtype=made.dtypes[0])
    if all(_holds(run, call, added="x") for call in _calls(run, sizes, 0)):
        raise NothingVerified(
            f"{kind} adds its input to the result, which is more than attention: not verified\n  {way}"
        )


def of_building(target: ModuleTarget, builder: Builder, sizes: Mapping[str, int]) -> str:
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


def of_weights(reading: Reading, right: bool, *, several: bool) -> list[str]:
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
