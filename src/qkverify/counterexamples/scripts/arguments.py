"""The arrays that a call is given, as lines of a script: their numbers, and their places in memory."""

from __future__ import annotations

import base64
import itertools
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from qkverify.contract import mask_forms
from qkverify.contract.axes import LAYOUTS, WORDS, option_to_function
from qkverify.counterexamples.scripts.calls import plain
from qkverify.counterexamples.scripts.dialects import NUMBERS, REORDERED, layout_lines
from qkverify.counterexamples.scripts.numbers import (
    WIDTH,
    constant,
    dtype_text,
    filled,
    made,
    nearly_constant,
    spelled,
)
from qkverify.counterexamples.scripts.recorder import Array, arrays_of
from qkverify.problem.attention_problem import PRINTED, Problem
from qkverify.runs.run import Run

Names = Mapping[str, str]  # what a script calls the arrays of a second problem


class Arguments:
    """Lines for arrays in the framework of a run. `imports` and `helpers()` are what the lines so far need."""

    def __init__(self, run: Run, *, upstream: bool) -> None:
        self.run, self.upstream, self.framework = run, upstream, run.implementation.arrays
        self.imports = {"import numpy as np"} | {f"import {n}" for n in (self.framework,) if n != "numpy"}
        self.layouts: set[str] = set()
        self.reordered = False
        self.moved = False  # whether an array of complex numbers takes the place of one of them

    def helpers(self) -> list[str]:
        """The functions that the other lines call."""
        complex_ones = "x if isinstance(x, np.ndarray) and x.dtype == complex else " if self.moved else ""
        lines = ["", "def numbers(x):", f"    return {complex_ones}{NUMBERS[self.framework]}", "", ""]
        if self.reordered:
            lines += ["def reordered(x, axes):  # the same array, with its axes in this order in memory",
                      f"    return {REORDERED[self.framework]}", "", ""]  # fmt: skip
        for layout in sorted(self.layouts):
            lines += [f"def {layout.replace(' ', '_')}(x):", *layout_lines(layout, self.framework), "", ""]
        return lines

    def values(self, named: Iterable[tuple[str, Any]]) -> list[str]:
        """Arrays, mappings of arrays and plain values under their names."""
        lines: list[str] = []
        for name, value in named:
            if isinstance(value, Mapping):
                pairs = ", ".join(f'"{n}": {n}' for n in value)
                lines += [*self.values(value.items()), f"{name} = {{{pairs}}}"]
                continue
            array = isinstance(value, np.ndarray)
            lines += self._array(name, value) if array else [f"{name} = {plain(value)!r}"]
        return lines

    def of(self, problem: Problem, names: Names | None = None) -> list[str]:
        """The arrays of a problem; with `names`, only those, under these names."""
        return self.values((alias, array) for _, alias, array in self._used(problem, names))

    def laid_out(self, problem: Problem, names: Names | None = None) -> list[str]:
        """Lines that bring the arrays into the function's order of axes and into their places in memory."""
        lines = ["torch.set_grad_enabled(False)  # as in inference"] if problem.mode else []
        axes = self.run.implementation.layout
        turned = LAYOUTS[axes][0]
        for name, alias, array in self._used(problem, names):
            if name in ("mask", "bias") and self.run.implementation.mask_form:
                lines += self._in_form(name, alias, array, problem)
                continue
            text = alias
            if turned and name in ("query", "key", "value", "upstream"):
                text = f"{text}{turned}"
            if name in ("mask", "bias") and option_to_function(array, axes).shape != array.shape:
                text = f"{text}.reshape({option_to_function(array, axes).shape})"
            layout, order = self._layout(problem, name, array), self._order(problem, name, array)
            if order and not turned:
                self.reordered, text = True, f"reordered({text}, {order})"
            if layout:
                self.layouts.add(layout)
                text = f"{layout.replace(' ', '_')}({text})"
            comment = f"  # {WORDS[axes]}" if text == alias + turned and text != alias else ""
            lines += [f"{alias} = {text}{comment}"] if text != alias else []
        return lines

    def _in_form(self, name: str, alias: str, array: Array, problem: Problem) -> list[str]:
        """Lines for a mask or bias that the function takes in another form than the contract's."""
        taken = self.run.option_as_taken(name, array, problem.sizes)
        first, *rest = self._array(alias, taken)
        said = f"  # as it is taken: {mask_forms.words(self.run.implementation.mask_form)}"
        return [first + ("" if rest else said), *rest] if name == "mask" else [first, *rest]

    def seen_as(self, layouts: Names) -> list[str]:
        """Lines that bring arrays into their places in memory, by the names of their layouts."""
        if self.framework == "jax":
            return []
        self.layouts |= set(layouts.values())
        return [f"{name} = {layout.replace(' ', '_')}({name})" for name, layout in layouts.items()]

    def _used(self, problem: Problem, names: Names | None) -> Iterator[tuple[str, str, Array]]:
        """(field, name in the script, array)"""
        for name, array in arrays_of(problem).items():
            if (names is None or name in names) and (name != "upstream" or self.upstream):
                yield name, (names or {}).get(name, name), array

    def _array(self, name: str, array: Array) -> list[str]:
        """Lines that make the array, exactly."""
        array = np.asarray(array)
        if self.framework == "torch" and (array.size <= PRINTED or constant(array)):
            where = ", device=DEVICE" if self.run.device != "cpu" else ""
            return made(name, array, "torch.tensor({}, dtype=torch.{}" + where + ")",
                         "torch.full({}, {}, dtype=torch.{}" + where + ")")  # fmt: skip
        lines = self._numpy(name, array)
        if self.framework == "jax":
            return [*lines, f"{name} = jax.device_put({name}, DEVICE)"]
        if self.framework == "torch":
            wide = ".to(torch.bfloat16)" if array.dtype.name == "bfloat16" else ""
            where = ".to(DEVICE)" if self.run.device != "cpu" else ""
            return [*lines, f"{name} = torch.from_numpy({name}){wide}{where}"]
        return lines

    def _numpy(self, name: str, array: Array) -> list[str]:
        """Lines that make a NumPy array; bfloat16 in float32 where torch takes it over."""
        if array.dtype.name == "bfloat16" and self.framework == "torch":
            array = array.astype(np.float32)
        if array.dtype.name == "bfloat16":
            self.imports.add("import ml_dtypes")
        dtype = dtype_text(array)
        if array.size <= PRINTED or constant(array):
            return made(name, array, "np.array({}, {})", "np.full({}, {}, {})", dtype)
        usual, few = nearly_constant(array)
        if few is not None:
            values = ", ".join(spelled(x, array.dtype) for x in array.reshape(-1)[few])
            return [f"{name} = np.full({array.shape}, {spelled(usual, array.dtype)}, {dtype})",
                    *filled(f"{name}.flat[[", map(str, few), f"]] = [{values}]")]  # fmt: skip
        self.imports |= {"import base64", "import zlib"}
        packed = base64.b64encode(zlib.compress(array.tobytes(), 9)).decode()
        pieces = [f'    "{packed[i : i + WIDTH - 6]}"' for i in range(0, len(packed), WIDTH - 6)]
        return [f"{name}_bytes = (", *pieces, ")",
                f"{name} = np.frombuffer(zlib.decompress(base64.b64decode({name}_bytes)), {dtype})"
                f".reshape({array.shape}).copy()"]  # fmt: skip

    def _layout(self, problem: Problem, name: str, array: Array) -> str:
        """The memory layout that a script must make, or nothing: if one is declared."""
        given = problem.layouts.get(name, "contiguous")
        small = array.ndim < 2 and given not in ("offset", "every second", "backward")
        if given == "overlapping rows" and self.run.implementation.layout != "BHLD":
            return ""
        if given == "backward" and self.framework == "torch":  # a tensor has no negative strides
            return ""
        if given == "batch of stride zero" and self.run.implementation.layout[0] != "B":
            return ""
        skipped = self.framework == "jax" or not array.size or small or given == "contiguous"
        return "" if skipped or (given == "heads after length" and array.ndim != 4) else given

    def _order(self, problem: Problem, name: str, array: Array) -> tuple[int, ...]:
        """The order of the axes in memory where none is declared and it is not their own, else nothing."""
        if self.framework == "jax" or name in problem.layouts or not array.size or array.flags.c_contiguous:
            return ()
        orders = itertools.permutations(range(array.ndim))
        return next((order for order in orders if array.transpose(order).flags.c_contiguous), ())
