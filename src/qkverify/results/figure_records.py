"""What a page draws: pictures, growth with length, how a device rounds."""

from __future__ import annotations

from typing import Literal

import msgspec

from qkverify.results.timing_records import Clock

PictureKind = Literal["signed", "weights", "visible", "lines"]


class Picture(msgspec.Struct, frozen=True, kw_only=True, tag="picture"):
    """A picture of the sources as numbers: `values[row][column]`, NaN as null, coloured in full at `limit`.

    "lines" draws each row over the numbers that the columns are named by. `finding` says in words what is to be seen,
    `made_by` whose numbers they are. Without values, `reason` says why there is nothing to draw.
    """

    name: str
    group: str
    kind: PictureKind
    title: str
    finding: str = ""
    source: str = ""
    rows: list[str] = []
    columns: list[str] = []
    row_axis: str = ""
    column_axis: str = ""
    values: list[list[float | None]] = []
    limit: float = 1.0
    made_by: list[str] = []
    reason: str = ""


class Complexity(msgspec.Struct, frozen=True, kw_only=True, tag="complexity"):
    """How the time of a type of layer grows with one variable: in theory as variable^theory.

    `seconds[i]` are the times of one call at `sizes[i]`, measured in rounds `rounds[i]`; `multiply_adds[i]` was counted on that
    call. `fixed` are the other variables. `formula` is the leading term of all of them, `factor` its constant. `threads` is None
    where the number could not be set. Without samples, `reason` says why.
    """

    layer: str
    formula: str
    factor: int
    variable: str
    theory: int
    implementation: str
    device: str
    dtype: str
    clock: Clock
    threads: int | None
    fixed: dict[str, int]
    sizes: list[int]
    multiply_adds: list[int]
    seconds: list[list[float]]
    rounds: list[list[int]]
    margin: float | None = None
    reason: str = ""


class Travel(msgspec.Struct, frozen=True, kw_only=True, tag="travel"):
    """How long a signal travels in a type of layer, at several lengths: `steps[i]` products of one layer wait for one another at
    `lengths[i]`, and `path[i]` lie between the first input and the last output, through `layers[i]` layers. `steps_theory` and
    `path_theory` are orders, as the source writes them; without a path theory has none."""

    layer: str
    source: str
    steps_theory: str
    path_theory: str
    fixed: dict[str, int]
    lengths: list[int]
    steps: list[int]
    path: list[int]
    layers: list[int]


class Rounding(msgspec.Struct, frozen=True, tag="rounding"):
    """How one matrix product and exp of a device round; see `precision_probes`. A probe that failed has a reason alone.

    Bits are of the fraction; `block` is how many products are added at once, None where partial sums are;
    `exp_units` is the largest error of exp in unit roundoffs, `exp_own` what the argument's rounding does not explain.
    """

    unit: str
    device: str
    operand_bits: int | None = None
    operand_rounding: str = ""
    accumulator_bits: int | None = None
    accumulator_rounding: str = ""
    block: int | None = None
    subnormal_operands: bool | None = None
    subnormal_results: bool | None = None
    exp_units: float | None = None
    exp_own: float | None = None
    departures: list[str] = []
    reason: str = ""
