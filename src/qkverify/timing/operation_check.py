"""The inputs of a timed call of any operation, and the check of what it returns: fresh numbers and refusals as of attention.

Arrays of numbers, tokens, targets and positions change from call to call, as `fresh_inputs` says. What says where things lie
(lengths, starts of sequences, page tables) stays, for the lengths of a call are its work; a trial changes these too.

Two operations are given no arrays, only sizes (positional encoding, slopes of biases). Models keep such tables, so what an
implementation remembers of these is its own affair: of them only the result is judged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from qkverify.rounding import EXACT, Bounded
from qkverify.runs.run import Run
from qkverify.strategies.operation_cases import OperationCall, PreparedCall
from qkverify.strategies.operation_spec import OperationSpec
from qkverify.timing.fresh_inputs import FreshArrays, FreshCall
from qkverify.timing.output_check import check_kinds, same
from qkverify.timing.sampled_rows import margin

FEW = 2  # numbers in a column of weights, where a result is judged
# By the last letter of a weight's name, what its numbers are multiplied by: a decoder layer has three norms in a row, and each
# makes a bound several times as wide.
CALM = {"decoder_layer": dict.fromkeys("qk", 0.1) | dict.fromkeys("vo12", 0.3)}
FREE = ("tokens", "targets", "positions")  # integers that may stand in any order


class OperationInputs(FreshArrays):
    """The arrays of one cell of an operation, by the names that `OperationCall.arrays` gives them."""

    def __init__(self, run: Run, call: OperationCall) -> None:
        self._call = call
        arrays = call.arrays
        changing = {name for name, x in arrays.items() if x.dtype.kind not in "iub" or name in FREE}
        super().__init__(run, arrays, self._calls_on, changing=changing)

    @property
    def has_arrays(self) -> bool:
        return bool(self._rows)

    def trial(self, fresh: OperationCall) -> FreshCall:
        """The call at the place of the last one, after the numbers of `fresh` were written there."""
        before = self.call_of_last()
        call = self.write_last(fresh.arrays)
        kept = {name: x for name, x in fresh.arrays.items() if name not in fresh.form.written}
        return FreshCall(call, fresh, before, self.written_since(kept))

    def call_of_last(self) -> OperationCall:
        """The last call, in numbers of its own."""
        return self._call.but(self.last())

    def _calls_on(self, windows: Sequence[Mapping[str, Any]]) -> list[Callable[[], Any]]:
        return [PreparedCall(self._run, self._call, native=window).bare() for window in windows]


def thinned(operation: str, call: OperationCall, seed: int) -> OperationCall:
    """The call with few numbers in each column of its weights, as large as results of the usual size need; smaller ones in a
    decoder layer.

    A derived bound adds up the largest errors of all products: after some layers of full matrices of 512 rows it lies above the
    result itself, and would judge nothing.
    """
    numbers, calm = np.random.default_rng(seed), CALM.get(operation, {})

    def thin(name: str, matrix: np.ndarray) -> np.ndarray:
        rows, columns = matrix.shape
        few = np.zeros_like(matrix)
        at = np.stack([numbers.choice(rows, FEW, replace=False) for _ in range(columns)], axis=1)
        factor = (rows / FEW) ** 0.5 * calm.get(name[-1], 1.0)
        np.put_along_axis(few, at, (np.take_along_axis(matrix, at, 0) * factor).astype(matrix.dtype), 0)
        return few

    weights = {
        name: array
        for name, array in call.arrays.items()
        if "w_" in name.rpartition(".")[2] and array.ndim == 2 and array.shape[0] > FEW
    }
    return call.but({name: thin(name, array) for name, array in weights.items()})


Exact = Callable[[OperationCall], tuple[Bounded, ...]]


class OperationCheck:
    """How the result of an operation is read and judged; `problem` is an `OperationCall`, `exact` what it should return."""

    def __init__(self, run: Run, form: OperationSpec, exact: Exact) -> None:
        self._run, self._form, self._exact = run, form, exact

    def natives(self, output: Any) -> dict[str, np.ndarray]:
        return {name: np.asarray(self._run.framework.to_numpy(x)) for name, x in self._named(output).items()}

    def arrays(self, problem: OperationCall, output: Any) -> dict[str, np.ndarray]:
        check_kinds(self._run, self._named(output))
        return {name: np.array(array) for name, array in self.natives(output).items()}

    def margin(self, problem: OperationCall, output: Any) -> float | None:
        """As `ResultCheck.margin`; None where the bound would let anything pass. Raises ContractError for a wrong number or shape
        of arrays."""
        exact = self._exact(problem)
        arrays = self._run.parts(list(self._named(output).values()), [part.value.shape for part in exact])
        bounds = (self._run.within(array, part).errors for array, part in zip(arrays, exact, strict=True))
        judged = [Bounded(part.value, bound, EXACT) for part, bound in zip(exact, bounds, strict=True)]
        if any(part.value.size and margin(np.zeros(part.shape), part) <= 1 for part in judged):
            return None
        return max(margin(array, part) for array, part in zip(arrays, judged, strict=True))

    def check_finite(self, problem: OperationCall, arrays: Mapping[str, np.ndarray]) -> None:
        """Every number is judged, so that none can hide."""

    def kept(self, inputs: OperationInputs, output: Any) -> Callable[[], float | None]:
        """Takes the result of the last call, and gives what tells its margin later: the same numbers are given once more where
        others stand now, and only where another result comes back the reference is asked which one is right. (Of layers with full
        weights it cannot tell, nor can two calls of a kernel that adds in any order: a difference alone is no fault.)"""
        call = inputs.call_of_last()
        arrays = self.arrays(call, output)

        def margin_of_it() -> float | None:
            again = self.arrays(call, inputs.write_last(call.arrays)())
            if same(arrays, again):
                return 0.0
            native = tuple(self._run.framework.from_numpy(x, self._run.device) for x in arrays.values())
            return self.margin(call, native)

        return margin_of_it

    def _named(self, output: Any) -> dict[str, Any]:
        parts = output if isinstance(output, tuple) else (output,)
        if self._form.written:  # new caches may follow
            parts = parts[:1]
        return {f"output {i + 1}" if i else "output": part for i, part in enumerate(parts)}
