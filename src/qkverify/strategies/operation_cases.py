"""One call of any operation but attention, as data: how an example is drawn, and what it should return.

    call = example(run, drawn)         the arrays, numbers and keywords of one call; `drawn` are plain numbers from `calls()`
    held = PreparedCall(run, call)             the same on native arrays that stay: called again, overwritten, read back
    call.exact(run)                    what it should return, with the bounds of the run's precision

`strategies/operations/` says for each operation what its sizes are drawn from, how its arguments follow from them, and which
part of the reference it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from qkverify.contract.operations import DESCRIBED
from qkverify.errors import HarnessError
from qkverify.problem.attention_problem import LAYOUTS
from qkverify.problem.byte_strategies import Choices, Recipe, limited, strategy
from qkverify.rounding import Bounded
from qkverify.runs.accepted_heads import accepted
from qkverify.runs.run import Run, active
from qkverify.strategies.operation_spec import Array, Given, OperationSpec, Source, each_leaf
from qkverify.strategies.operations import OPERATION_SPECS


@dataclass(frozen=True, eq=False)
class OperationCall:
    """One call: `arguments` in the function's order, `options` by keyword, all NumPy, in the dtype under test."""

    form: OperationSpec
    arguments: Given
    options: Given

    @cached_property
    def arrays(self) -> dict[str, Array]:
        """Every array by its name; those of a mapping as "weights.w_q"."""
        by_name: dict[str, Array] = {}
        each_leaf({**self.arguments, **self.options}, lambda name, x: by_name.setdefault(name, x))
        return {name: x for name, x in by_name.items() if isinstance(x, np.ndarray)}

    def but(self, changes: Mapping[str, Array]) -> OperationCall:
        """The same call with other arrays under some of their names."""
        swapped = (
            each_leaf(part, lambda name, x: changes.get(name, x)) for part in (self.arguments, self.options)
        )
        return OperationCall(self.form, *swapped)

    def exact(self, run: Run) -> tuple[Bounded, ...]:
        """What it should return, part by part, with the bound of a right implementation."""
        return self.form.exact(run, self.arguments, run.meant(**self.options))


class PreparedCall:
    """A call on native arrays of its own, or on those `native` ones that are given; they stay the same objects."""

    def __init__(
        self,
        run: Run,
        call: OperationCall,
        layouts: Mapping[str, str] | None = None,
        native: Mapping[str, Any] | None = None,
    ) -> None:
        self.run, self.call, self.native = run, call, dict(native or {})

        def lent(name: str, x: Any) -> Any:
            if not isinstance(x, np.ndarray) or name in self.native:
                return self.native.get(name, x)
            placed = LAYOUTS[(layouts or {}).get(name, "contiguous")](x.copy())
            self.native[name] = run.framework.from_numpy(placed, run.device)
            return self.native[name]

        self.arguments, self.options = each_leaf(call.arguments, lent), each_leaf(call.options, lent)

    def __call__(self) -> tuple[Any, ...]:
        """The parts of the result as the function returned them, native, their shapes checked by `numbers`."""
        return self.parts(self.run.invoke(tuple(self.arguments.values()), self.options))

    def bare(self) -> Callable[[], Any]:
        """The function on these arguments as a call without any: for timing, with nothing of the harness inside."""
        return self.run.function_call(tuple(self.arguments.values()), self.options)

    def parts(self, returned: Any) -> tuple[Any, ...]:
        """The parts of the result, of what a function returned."""
        if not isinstance(returned, tuple):
            return (returned,)
        return returned[:1] if self.call.form.written else returned  # new caches may follow

    def results(self) -> list[Array]:
        """Called: each part of the result as NumPy."""
        return self.numbers(self())

    def numbers(self, returned: tuple[Any, ...]) -> list[Array]:
        """Copies of what was returned. Raises ContractError where the shapes are not those of the operation."""
        return self.run.parts(returned, [part.value.shape for part in self.call.exact(self.run)])

    def gradients(self, upstream: tuple[Any, ...]) -> list[Array] | None:
        """Both passes, for a native gradient from above for each part of the result.

        Returns the parts of the result as they were while gradients were recorded; None if the function has a vjp of its own.
        Raises UnsupportedCase for a function of servers whose result has no gradient at all.
        """
        framework, pull = self.run.framework, self.run.implementation.vjp
        if pull is not None:
            self.run.invoke((*self.arguments.values(), *upstream), self.options, function=pull)
            return None

        def function(**leaves: Any) -> Any:
            given = each_leaf(self.arguments, lambda name, x: leaves.get(name, x))
            returned = self.run.invoke(tuple(given.values()), self.options)
            self.run.check_differentiated(returned)
            return self.parts(returned)

        floating = {name for name, x in self.call.arrays.items() if x.dtype.kind not in "iub"}
        leaves = {name: self.native[name] for name in floating if name not in self.call.form.written}
        return self.numbers(framework.vjp(function, leaves, upstream)[0])

    def now(self) -> OperationCall:
        """The call with what its arrays hold now."""
        return self.call.but({n: np.array(self.run.framework.to_numpy(x)) for n, x in self.native.items()})


FILL: Mapping[str, Sequence[Any]] = {"fill": ("whole", "normal", "normal"), "seed": range(1000)}
BARE: Mapping[str, Sequence[Any]] = {
    "bare": (False, False, True)
}  # whether every keyword is left out that can be
PLACES = {
    str(i): 3 for i in range(max(len({**form.sizes, **FILL, **BARE}) for form in OPERATION_SPECS.values()))
}


def calls() -> st.SearchStrategy[dict[str, Any]]:
    """The sizes, switches and seed of a call of the operation that is checked: plain numbers, which a replay file can hold."""

    def make(choices: Choices) -> dict[str, Any]:
        run = active()
        if run is None:
            raise HarnessError("calls are drawn for an operation: while a run is checked")
        pools = {**FILL, **OPERATION_SPECS[run.implementation.operation].sizes, **BARE}
        if run.implementation.operation == "alibi_slopes":
            pools["H"] = [n for n in pools["H"] if accepted(run, n)]
        return {
            name: choices.pick(str(i), limited(name, pool)) for i, (name, pool) in enumerate(pools.items())
        }

    return strategy(Recipe(PLACES, make))


def example(run: Run, drawn: Mapping[str, Any], turn: int = 0) -> OperationCall:
    """The call that was drawn; in another `turn` one of the same sizes with other numbers.

    Keywords that the function does not take are left out; the reference is told what it means without them.
    """
    operation = run.implementation.operation
    form, described = OPERATION_SPECS[operation], DESCRIBED[operation].options
    sizes = SimpleNamespace(**drawn)
    arguments, options = form.draw(sizes, Source(np.dtype(run.numpy_dtype), sizes, turn))
    # The dtype of an encoding is that of the cell. Whether causal is on by default is no choice: it is passed, either way.
    needed = ("dtype", "causal")
    kept = {n: x for n, x in options.items() if described.get(n) == "required" or n in needed}
    return OperationCall(form, arguments, run.given(**(kept if drawn.get("bare") else options)))
