"""Every operation at its shortest signature: the required parameters, and no option that a law could ask for.

Whatever a law needs beyond that, it must not be the only one that sees a wrong result, a wrong gradient, or a result that
depends on whether gradients are recorded. The table of operations is iterated: a new one is covered, or fails here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase

from qkverify import probes
from qkverify.contract import Implementation, describe
from qkverify.contract.operations import DESCRIBED
from qkverify.errors import HarnessError, UnsupportedCase
from qkverify.strategies.operations import OPERATION_SPECS
from qkverify.verification.checking import Cell, applicable, law_book, prepare
from qkverify.verification.laws import Law

from ..exact_implementations import sources

EXAMPLES = 10  # of a law: fewer than those of the profile "quick"
SEED = 1
FRAMEWORKS = ("numpy", "torch")
DIFFERENTIABLE = [name for name in DESCRIBED if name == "attention" or OPERATION_SPECS[name].has_arrays]
Function = Callable[..., Any]


def required(operation: str) -> list[str]:
    """The keywords that a call cannot do without."""
    return [name for name, text in DESCRIBED[operation].options.items() if text == "required"]


def shortest(operation: str, function: Function, arrays: str, **declared: Any) -> Implementation:
    """An undeclared implementation whose signature shows the required parameters alone."""

    def called(*arguments: Any, **keywords: Any) -> Any:
        return function(*arguments, **keywords)

    kinds = inspect.Parameter
    parameters = [kinds(name, kinds.POSITIONAL_OR_KEYWORD) for name in DESCRIBED[operation].parameters]
    parameters += [kinds(name, kinds.KEYWORD_ONLY) for name in required(operation)]
    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    called.__name__ = function.__name__
    dtype = "float32" if "dtype" in DESCRIBED[operation].options else "float64"
    implementation = describe(called, operation=operation, arrays=arrays, dtypes=dtype, **declared)
    return probes.fitted(implementation)


def right(operation: str) -> Function:
    """In torch, with its gradients; of a table of numbers alone in NumPy."""
    function = sources()[operation].function

    def correct(*arguments: Any, **keywords: Any) -> Any:
        output = function(*arguments, **keywords)
        return torch.from_numpy(output) if isinstance(output, np.ndarray) else output

    return correct


def of_each(change: Callable[[Any], Any], returned: Any) -> Any:
    return tuple(map(change, returned)) if isinstance(returned, tuple) else change(returned)


def leaves(arguments: Any) -> Iterator[torch.Tensor]:
    """The arrays that have a gradient, those of a mapping among them, in order."""
    for x in arguments:
        if isinstance(x, Mapping):
            yield from leaves(x.values())
        elif isinstance(x, torch.Tensor) and x.is_floating_point():
            yield x


def detached(x: Any) -> Any:
    if isinstance(x, Mapping):
        return {name: detached(value) for name, value in x.items()}
    return x.detach() if isinstance(x, torch.Tensor) else x


def zeros(operation: str) -> Function:
    def zero(*arguments: Any, **keywords: Any) -> Any:
        return of_each(torch.zeros_like, right(operation)(*map(detached, arguments), **keywords))

    return zero


class Flat(torch.autograd.Function):
    """A value with a gradient of zero in every leaf."""

    @staticmethod
    def forward(context: Any, value: torch.Tensor, *every: torch.Tensor) -> torch.Tensor:
        context.save_for_backward(*every)
        return value.clone()

    @staticmethod
    def backward(context: Any, *upstream: torch.Tensor) -> Any:
        return None, *(torch.zeros_like(x) for x in context.saved_tensors)


def without_gradient(operation: str) -> Function:
    def flat(*arguments: Any, **keywords: Any) -> Any:
        every = list(leaves(arguments))
        output = right(operation)(*map(detached, arguments), **keywords)
        return of_each(lambda value: Flat.apply(value, *every), output)

    return flat


def in_numpy(function: Function) -> Function:
    """The function on NumPy arrays, whose memory it shares."""

    def native(x: Any) -> Any:
        if isinstance(x, Mapping):
            return {name: native(value) for name, value in x.items()}
        return torch.from_numpy(x) if isinstance(x, np.ndarray) else x

    def called(*arguments: Any, **keywords: Any) -> Any:
        return of_each(lambda x: x.numpy(), function(*map(native, arguments), **keywords))

    return called


def zero_gradients(operation: str) -> Function:
    """A vjp: zeros in the shape of every array that has a gradient."""
    count = len(DESCRIBED[operation].parameters)

    def pull(*arguments: Any, **keywords: Any) -> Any:
        tensors = [torch.from_numpy(x) if isinstance(x, np.ndarray) else
                   {name: torch.from_numpy(value) for name, value in x.items()} for x in arguments[:count]]  # fmt: skip
        return tuple(np.zeros(tuple(x.shape), x.numpy().dtype) for x in leaves(tensors))

    return pull


def broken(implementation: Implementation, laws: Callable[[Law], bool] = lambda law: True) -> str:
    """The first law that an implementation breaks, or nothing. Nothing is shrunk or explained."""
    cell = Cell(implementation, "cpu", implementation.dtypes[0], implementation.name)
    for law in applicable(law_book(), cell):
        run = prepare(cell)
        if not laws(law) or law.unfit(run):
            continue
        try:
            law.check(run, max_examples=EXAMPLES, seed=SEED, database=None, phases=(Phase.generate,))
        except UnsupportedCase:
            continue
        except HarnessError:
            raise
        except Exception:
            return law.name
    return ""


def about_gradients(law: Law) -> bool:
    return "gradients" in law.needs


def test_every_operation_has_a_right_function_here() -> None:
    assert set(DESCRIBED) <= set(sources())


@pytest.mark.parametrize("operation", DESCRIBED)
def test_right_code_holds(operation: str) -> None:
    assert broken(shortest(operation, right(operation), "torch")) == ""


@pytest.mark.parametrize("arrays", FRAMEWORKS)
@pytest.mark.parametrize("operation", DESCRIBED)
def test_zeros_are_broken(operation: str, arrays: str) -> None:
    function = zeros(operation)
    assert broken(shortest(operation, in_numpy(function) if arrays == "numpy" else function, arrays))


@pytest.mark.parametrize("operation", DIFFERENTIABLE)
def test_zero_gradients_are_broken_by_a_law_about_gradients(operation: str) -> None:
    assert broken(shortest(operation, without_gradient(operation), "torch"), about_gradients)


@pytest.mark.parametrize("operation", DIFFERENTIABLE)
def test_so_are_those_of_a_function_of_its_own(operation: str) -> None:
    function = in_numpy(right(operation))
    implementation = shortest(operation, function, "numpy", vjp=zero_gradients(operation))
    assert broken(implementation, about_gradients)


RECORDED: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "zero unless a gradient is asked for": lambda y: y if y.requires_grad else 0 * y,
    "zero if a gradient is asked for, which is right": lambda y: y - y.detach() if y.requires_grad else y,
    "zero where gradients are switched off": lambda y: y if torch.is_grad_enabled() else 0 * y,
    "zero in inference mode": lambda y: 0 * y if torch.is_inference_mode_enabled() else y,
}


@pytest.mark.parametrize("how", RECORDED)
@pytest.mark.parametrize("operation", DIFFERENTIABLE)
def test_results_that_depend_on_recording_are_broken(operation: str, how: str) -> None:
    def function(*arguments: Any, **keywords: Any) -> Any:
        return of_each(RECORDED[how], right(operation)(*arguments, **keywords))

    assert broken(shortest(operation, function, "torch"))
