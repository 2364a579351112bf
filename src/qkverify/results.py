"""The recorded form of a run: one JSON object a line, appended and flushed as it happens.

Every table, picture and sentence of a report is made from these records and from nothing else, so a page can
be made again from the file alone. A record's `type` says which of the classes below it is. Appending whole
lines means that a run which is killed leaves a readable file: at worst its last line is torn, and
`read(path, strict=False)` names that line and keeps the others.

JSON has no infinity and msgspec would write null, which means "no margin" here. An infinite margin is
therefore stored as the largest float64, and NaN (nothing can be said) as null.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, NamedTuple, TypeAlias, TypeVar, overload

import msgspec

from qkverify import foreign_text
from qkverify.migrations import MIGRATIONS, OtherFormat, format_of, migrated, refuse_unreadable

SCHEMA = 1  # when this grows, and what must grow with it: see `migrations`

Outcome = Literal[
    "passed", "failed", "finding", "not offered", "unavailable", "crashed", "timed out", "error"
]
Direction = Literal["forward", "backward", "forward+backward"]
Clock = Literal["host", "events", "thread"]
Cache = Literal["hot", "cold"]
Group = tuple[str, str, str, str]  # case, direction, device, dtype
Fact = str | int | float | None


class ResultsError(Exception):
    """A results file that cannot be read: which file, which line (counted from 1), and why."""

    def __init__(self, path: Path, line: int, why: str) -> None:
        super().__init__(f"{path}, line {line}: {why}")
        self.path, self.line, self.why = path, line, why

    @property
    def line_number(self) -> int:
        return self.line


class Fingerprint(msgspec.Struct, frozen=True):
    """Where a run took place: `identity` decides what it may be compared with, `state` is only recorded."""

    identity: dict[str, Fact]
    state: dict[str, Fact]


class RunStart(msgspec.Struct, frozen=True, kw_only=True, tag="run"):
    """The first record of a run. `started` is ISO 8601 in UTC; `command` is what repeats the run; `selection` says which laws
    were checked, where some were left out."""

    schema: int = SCHEMA
    qkverify: str
    started: str
    command: str
    profile: str
    seed: int | None = None
    fingerprint: Fingerprint
    selection: str = ""


class Semantic(msgspec.Struct, frozen=True):
    """One choice in which libraries legitimately differ, and how we know it."""

    value: str
    how: Literal["declared", "detected", "not applicable"]


class ImplementationInfo(msgspec.Struct, frozen=True, tag="implementation"):
    """What an implementation says of itself. `unavailable` maps a device to the reason; `unknown` are parameters that mean
    nothing to the contract."""

    name: str
    operation: str
    summary: str
    arrays: str
    file: str
    dtypes: list[str] = []
    devices: list[str] = []
    offers: list[str] = []
    not_offered: list[str] = []
    requires: list[str] = []
    semantics: dict[str, Semantic] = {}
    unavailable: dict[str, str] = {}
    unknown: list[str] = []


class Counterexample(msgspec.Struct, frozen=True):
    """The smallest failure found: `message` is the whole text a person sees, `replay` the id to repeat it.

    The fields after `script` say why the law failed (see `causes`); files from before they were noted leave them empty.

    diagnosis        the sentence after "looks like"
    exception, line  what the implementation raised ("ValueError: ...", in one line), and the line of its file that did
    raises_when      conditions that all calls which raised meet, and no call that returned, the simplest first
    value_wrong      the output (or result) of one of the problems is not the reference's, whatever the law is about
    gradient_wrong   the same of gradients
    numbers          how many numbers the arrays of the problems hold
    traits           what its calls have that a plain call has not (see `traits`); None in files from before it was noted
    """

    message: str
    problem: str
    got: str
    exact: str
    bound: str
    margin: float | None
    location: str
    replay: str
    script: str = ""
    diagnosis: str = ""
    exception: str = ""
    line: str = ""
    raises_when: list[str] = []
    value_wrong: bool = False
    gradient_wrong: bool = False
    numbers: int = 0
    traits: list[str] | None = None


class Message(msgspec.Struct, frozen=True):
    """What an implementation said so many times while it was called: `kind` is the class of a warning, or "stdout" or "stderr"
    for a printed line; `place` the file and line that warned. Numbers that differed from time to time stand as #."""

    kind: str
    text: str
    place: str = ""
    count: int = 1


class Tested(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a law put to the test: `calls` of the function, how many of them it `refused` and in which words first, and the
    examples in which its `results`, or its `gradients`, were compared with the reference's numbers (see `comparisons`)."""

    calls: int = 0
    refused: int = 0
    refusal: str = ""
    results: int = 0
    gradients: int = 0


class Verdict(msgspec.Struct, frozen=True, tag="verdict"):
    """One law held against one implementation, dtype and device. `margin` is the largest |error| / bound.

    `used` are the options (or "gradients") that its calls put to use, `tested` is what it put to the test: None of a law that
    was not tried, because the implementation does not offer what it needs. Files from before they were noted do not say.
    `messages` is what the implementation warned of and printed meanwhile.
    """

    law: str
    family: str
    sentence: str
    exact: bool
    implementation: str
    device: str
    dtype: str
    outcome: Outcome
    reason: str = ""
    examples: int = 0
    margin: float | None = None
    seconds: float = 0.0
    counterexample: Counterexample | None = None
    used: list[str] | None = None
    messages: list[Message] = []
    tested: Tested | None = None


class Mark(msgspec.Struct, frozen=True):
    """What is known against an implementation whose time it stands beside: a recorded finding, or laws that it breaks.

    `sentence` says what is wrong, `folder` where a finding is told in full. `bars` says whether the timed workload falls
    under it: then there is no time.
    """

    kind: Literal["finding", "broken", "not verified"]
    laws: list[str]
    sentence: str
    folder: str = ""
    bars: bool = False


class Timing(msgspec.Struct, frozen=True, tag="timing"):
    """One cell: `seconds[i]` is the time of one call, measured in round `rounds[i]` by process `processes[i]`.

    Rounds are numbered through over all processes; files from before there were several name no process. Round -1 is
    no round: what is far slower than the others is called once, by itself. In
    the `disturbed` rounds the device was held back (see Conditions). An untimed cell has no seconds, and a
    reason. `flops` and `bytes` are of one call; `peak_bytes` is the memory above the inputs at its highest,
    where it was measured. `marks` is what laws and findings say against the implementation.
    """

    case: str
    sizes: dict[str, int]
    causal: bool
    options: str
    implementation: str
    device: str
    dtype: str
    direction: Direction
    clock: Clock
    seconds: list[float]
    rounds: list[int]
    flops: int
    bytes: int
    peak_bytes: int | None = None
    margin: float | None = None
    verified: bool = False
    reason: str = ""
    processes: list[int] = []
    disturbed: list[int] = []
    cache: Cache = "hot"
    marks: list[Mark] = []

    @property
    def group(self) -> Group:
        """What was timed against each other."""
        return self.case, self.direction, self.device, self.dtype


class Ceiling(msgspec.Struct, frozen=True, tag="ceiling"):
    """What this device was seen to reach: `rate` in FLOP/s (matmul) or bytes/s (copy)."""

    device: str
    dtype: str
    what: Literal["matmul", "copy"]
    rate: float
    seconds: list[float] = []


class Control(msgspec.Struct, frozen=True, tag="control"):
    """The A/A control: one implementation timed under two names. A quiet machine gives a ratio near one."""

    case: str
    implementation: str
    device: str
    dtype: str
    ratio: float
    low: float
    high: float
    direction: Direction = "forward"
    processes: int = 1

    @property
    def group(self) -> Group:
        """The cells that were timed in the same rounds."""
        return self.case, self.direction, self.device, self.dtype


class Conditions(msgspec.Struct, frozen=True, tag="conditions", kw_only=True):
    """The device while one group was timed by one process: `disturbed` counts rounds by what held it back.

    Clock rates in MHz, temperature in degrees Celsius, power in watts, the load as the mean number of processes
    that wanted a core; None is what the device does not tell.
    """

    case: str
    direction: Direction
    device: str
    dtype: str
    process: int
    rounds: int
    disturbed: dict[str, int] = {}
    mhz_low: float | None = None
    mhz_high: float | None = None
    celsius: float | None = None
    watts: float | None = None
    load: float | None = None


class Accuracy(msgspec.Struct, frozen=True, tag="accuracy"):
    """Errors on ordinary numbers. `positive` is the share of errors above zero; `lean` the mean error away from zero in units
    of the last place, with its standard error; the ratios divide the root mean square and the largest error by those of a
    textbook that rounds every operation to the dtype."""

    implementation: str
    device: str
    dtype: str
    elements: int
    positive: float | None
    lean: float
    lean_error: float
    ratio: float | None
    worst_ratio: float | None


class Kill(msgspec.Struct, frozen=True):
    """One law broken on one planted bug: examples and seconds of that law alone."""

    law: str
    family: str
    examples: int
    seconds: float


class Planted(msgspec.Struct, frozen=True, tag="planted"):
    """What became of a mutant (a planted bug) or of a control (correct code), and what the first kill cost.

    `matrix` says whether the laws after the first that broke were checked as well. `examples` and `seconds`
    count from the first law on: to the kill, shrinking included, or all there were.
    """

    name: str
    kind: str
    operation: str
    dtype: str
    sentence: str
    threads: list[str] = []
    kills: list[Kill] = []
    matrix: bool = False
    examples: int = 0
    seconds: float = 0.0
    sizes: dict[str, int] = {}
    message: str = ""
    profile: str = ""


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


class TimingSummary(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="timing summary"):
    """A timed cell of an earlier run without its samples: the median of one call in seconds, and the interval in which it lies
    with 95 %, from so many samples; the rest as in Timing. Written by `history`."""

    case: str
    implementation: str
    device: str
    dtype: str
    direction: Direction
    median_seconds: float
    low_seconds: float
    high_seconds: float
    samples: int
    flops: int
    bytes: int
    clock: Clock = "host"
    peak_bytes: int | None = None
    margin: float | None = None


class Tally(msgspec.Struct, frozen=True, kw_only=True, tag="tally"):
    """The verdicts of an earlier run, counted by outcome, and the examples behind them. Written by `history`."""

    outcomes: dict[str, int]
    examples: int


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


Record: TypeAlias = (
    RunStart
    | ImplementationInfo
    | Verdict
    | Timing
    | Ceiling
    | Control
    | Conditions
    | Accuracy
    | Planted
    | Picture
    | Complexity
    | Travel
    | TimingSummary
    | Tally
    | Rounding
)
Kind = TypeVar("Kind")


class Reading(NamedTuple):
    """What could be read of a file, and what could not."""

    records: list[Record]
    problems: list[ResultsError]


_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Record] = msgspec.json.Decoder(Record)


def finite(margin: float | None) -> float | None:
    """A margin as JSON can hold it: infinity becomes the largest float64, NaN becomes None."""
    if margin is None or math.isnan(margin):
        return None
    return max(-sys.float_info.max, min(sys.float_info.max, float(margin)))


class Writer:
    """Appends records to `path` (its folder is made), each flushed before `append` returns.

    A file whose last line was torn is closed with a newline first, so that the next record stays whole.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        torn = _ends_torn(self.path)
        self._file: IO[bytes] = self.path.open("ab")
        if torn:
            self._file.write(b"\n")

    def append(self, record: Record) -> None:
        self._file.write(line_of(record))
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()


@overload
def read(path: str | Path, *, strict: Literal[True] = True) -> list[Record]: ...
@overload
def read(path: str | Path, *, strict: Literal[False]) -> Reading: ...


def read(path: str | Path, *, strict: bool = True) -> list[Record] | Reading:
    """Every record of the file, in order. A line that is no record raises ResultsError naming file and line.

    With `strict=False` bad lines are listed beside the records that could be read. A file that is not there still raises, with
    line 0, and so does one in a format that cannot be read: see `migrations`.
    """
    path = Path(path)
    reading, schema = Reading([], []), SCHEMA
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            schema, writer = format_of(line, schema)
            refuse_unreadable(schema, SCHEMA, writer, MIGRATIONS)
            reading.records.append(_decode(line, schema))
        except OtherFormat as error:
            raise ResultsError(path, number, str(error)) from error
        except ValueError as error:  # msgspec's errors and UnicodeDecodeError are ValueErrors
            problem = ResultsError(path, number, _why(error, torn=not line.endswith(b"\n")))
            if strict:
                raise problem from error
            reading.problems.append(problem)
    return reading.records if strict else reading


def line_of(record: Record) -> bytes:
    """The line that a record is, its end included."""
    record = _storable(record)
    try:
        return _encoder.encode(record) + b"\n"
    except (
        UnicodeEncodeError
    ):  # half of a surrogate pair, which UTF-8 cannot hold: in the path of a file, say
        return _encoder.encode(_escaped(msgspec.to_builtins(record))) + b"\n"


def verdict_of(line: str | bytes) -> Verdict:
    """The verdict of a line that `line_of` made in this version."""
    found = _decoder.decode(line)
    assert isinstance(found, Verdict)
    return found


def of_kind(records: Iterable[Record], kind: type[Kind]) -> list[Kind]:
    """The records of one class, in order: `of_kind(records, Timing)`."""
    return [record for record in records if isinstance(record, kind)]


def json_schema() -> dict[str, Any]:
    """The JSON schema (2020-12) of one line of a results file."""
    about = f"One line of a results file of qkverify, schema {SCHEMA}: the JSON of one record, of the kind that its type names."
    dialect = "https://json-schema.org/draft/2020-12/schema"
    return {
        "$schema": dialect,
        "title": "qkverify results",
        "description": about,
        **msgspec.json.schema(Record),
    }


def _escaped(value: Any) -> Any:
    """The same with every text in it escaped."""
    if isinstance(value, dict):
        return {foreign_text.escaped(key): _escaped(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [_escaped(x) for x in value]
    return foreign_text.escaped(value) if isinstance(value, str) else value


def _decode(line: bytes, schema: int) -> Record:
    if schema == SCHEMA:
        return _decoder.decode(line)
    return msgspec.convert(migrated(line, schema, SCHEMA, MIGRATIONS), type=Record)  # type: ignore[no-any-return]


def _why(error: Exception, *, torn: bool) -> str:
    if torn:
        return f"the line breaks off (the run was killed while writing it?): {error}"
    newer = isinstance(error, msgspec.ValidationError) and str(error).endswith("`$.type`")
    return f"{error}: no kind of record that this qkverify knows; a newer one may" if newer else str(error)


def _lines(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise ResultsError(path, 0, error.strerror or str(error)) from error


def _ends_torn(path: Path) -> bool:
    if not path.exists() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) != b"\n"


def _storable(record: Record) -> Record:
    """The record with margins that JSON can hold."""
    if not isinstance(record, Verdict | Timing | TimingSummary):
        return record
    changes: dict[str, object] = {"margin": finite(record.margin)}
    if isinstance(record, Verdict) and record.counterexample is not None:
        example = record.counterexample
        changes["counterexample"] = msgspec.structs.replace(example, margin=finite(example.margin))
    return msgspec.structs.replace(record, **changes)
