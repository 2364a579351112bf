"""Plain calls: one problem without options, and what came back of it."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from qkverify.contract import Implementation, part_of
from qkverify.contract.axes import to_contract
from qkverify.problem.attention_problem import Problem
from qkverify.runs import watch
from qkverify.runs.run import Run

Sizes = Mapping[str, int]


@dataclass(frozen=True)
class Attempt:
    """One call: `error` is what it raised, else `returned` what it gave, in the axes of the function."""

    implementation: Implementation
    problem: Problem
    device: str
    dtype: str
    returned: Any = None
    error: BaseException | None = None

    @property
    def part(self) -> tuple[int | str | None, Any] | None:
        """The first part of the result that is an array of the function's framework and has the shape of the output; of a
        function that says which part is the output, that one."""
        s, layout = self.problem.sizes, self.implementation.layout
        shape = (s["B"], s["H"], s["Q"], s["E"])
        for which, array in _parts(self.returned, self.implementation.returns):
            if _framework(array) != self.implementation.arrays or len(array.shape) != len(layout):
                continue
            if tuple(to_contract(array, layout).shape) == shape:
                return which, array
        return None

    @property
    def right(self) -> bool:
        """Whether that part holds to the bounds of its dtype."""
        with watch.call():
            return self.part is not None and self._within_bounds()

    def _within_bounds(self) -> bool:
        assert self.part is not None
        run = Run(self.implementation, self.device, self.dtype)
        exact = run.bound(self.problem)[0]
        got = to_contract(run.framework.to_numpy(self.part[1]), self.implementation.layout)
        with np.errstate(invalid="ignore"):
            return bool((np.abs(got.astype(np.float64) - exact.value) <= exact.errors).all())

    @property
    def dtype_of_result(self) -> str:
        assert self.part is not None
        return str(Run(self.implementation, self.device, self.dtype).framework.dtype_of(self.part[1]))


def attend(implementation: Implementation, problem: Problem, dtype: str, device: str = "cpu",
           further: Mapping[str, Any] = MappingProxyType({})) -> Attempt:  # fmt: skip
    """Call the function on a problem. Whatever it raises is part of the answer; `further` as of `call`."""
    run = Run(replace(implementation, returns=None), device, dtype)
    with warnings.catch_warnings(), np.errstate(all="ignore"), run.framework.restored():
        warnings.simplefilter("ignore")
        try:
            returned = run.native_call(problem, **further)
        except Exception as error:
            return Attempt(implementation, problem, device, dtype, error=error)
    return Attempt(implementation, problem, device, dtype, returned)


def call(implementation: Implementation, sizes: Sizes, dtype: str, device: str = "cpu", seed: int = 0,
         further: Mapping[str, Any] = MappingProxyType({}), **options: Any) -> Attempt:  # fmt: skip
    """Call the function on standard normal numbers of these sizes, with what it always has.

    `options` are those of a problem, `further` others (`contract.FURTHER`).
    """
    options = {**dict.fromkeys(implementation.always, True), **options}
    run = Run(implementation, device, dtype)
    return attend(implementation, problem_of(run, sizes, seed, **options), dtype, device, further)


def problem_of(run: Run, sizes: Sizes, seed: int = 0, **options: Any) -> Problem:
    """Standard normal numbers. The same for the same sizes and seed."""
    rng, s = np.random.default_rng(seed), sizes
    shapes = {"query": (s["B"], s["H"], s["Q"], s["D"]), "key": (s["B"], s["G"], s["K"], s["D"]),
              "value": (s["B"], s["G"], s["K"], s["E"])}  # fmt: skip
    arrays: dict[str, Any] = {
        name: rng.standard_normal(shape).astype(run.numpy_dtype) for name, shape in shapes.items()
    }
    return Problem(**arrays, **options)


def _parts(returned: Any, said: int | str | None) -> Iterator[tuple[int | str | None, Any]]:
    """Every array of a result, and how it is taken out of it; only the one that is said."""
    if said is not None:
        with contextlib.suppress(LookupError, AttributeError, TypeError):
            array = part_of(returned, said)
            if hasattr(array, "shape"):
                yield said, array
        return
    if hasattr(returned, "shape"):
        yield None, returned
        return
    names: list[int | str] = []
    if isinstance(returned, Mapping):
        names = [name for name in returned if isinstance(name, str)]
    elif isinstance(returned, tuple | list):
        names = list(range(len(returned)))
    elif dataclasses.is_dataclass(returned):
        names = [field.name for field in dataclasses.fields(returned)]
    for name in names:
        array = part_of(returned, name)
        if hasattr(array, "shape"):
            yield name, array


def _framework(array: Any) -> str:
    root = type(array).__module__.partition(".")[0]
    return {"jaxlib": "jax"}.get(root, root)
