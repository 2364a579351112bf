"""The recorded form of a run: one JSON object a line, appended and flushed as it happens.

Every table, picture and sentence of a report is made from these records and from nothing else, so a page can
be made again from the file alone. A record's `type` says which of the classes below it is. Appending whole
lines means that a run which is killed leaves a readable file: at worst its last line is torn, and
`read(path, strict=False)` names that line and keeps the others.

JSON has no infinity and msgspec would write null, which means "no margin" here. An infinite margin is
therefore stored as the largest float64, and NaN (nothing can be said) as null.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, NamedTuple, TypeAlias, TypeVar, overload

import msgspec

from qkverify import foreign_text
from qkverify.results.figure_records import Complexity, Picture, Rounding, Travel
from qkverify.results.migrations import MIGRATIONS, OtherFormat, format_of, migrated, refuse_unreadable
from qkverify.results.plausibility import refuse_implausible
from qkverify.results.run_records import SCHEMA, RunStart
from qkverify.results.timing_records import (
    Accuracy,
    Ceiling,
    Conditions,
    Control,
    OperationTiming,
    Timing,
    TimingSummary,
)
from qkverify.results.verdict_records import ImplementationInfo, Planted, Tally, Verdict


class ResultsError(Exception):
    """A results file that cannot be read or written: which file, which line (counted from 1; 0 is the whole file), and why."""

    def __init__(self, path: Path, line: int, why: str) -> None:
        super().__init__(f"{path}, line {line}: {why}" if line else f"{path}: {why}")
        self.path, self.line, self.why = path, line, why

    @property
    def line_number(self) -> int:
        return self.line


Record: TypeAlias = (
    RunStart
    | ImplementationInfo
    | Verdict
    | Timing
    | OperationTiming
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
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            torn = _ends_torn(self.path)
            self._file: IO[bytes] = self.path.open("ab")
        except OSError as error:
            raise ResultsError(self.path, 0, f"cannot be written: {error.strerror or error}") from error
        if torn:
            self._file.write(b"\n")

    def append(self, record: Record) -> None:
        try:
            self._file.write(line_of(record))
            self._file.flush()
        except OSError as error:  # the disk is full, say
            raise ResultsError(self.path, 0, f"could not be written: {error.strerror or error}") from error

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what could not be written has been said
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
            record = _decode(line, schema)
            refuse_implausible(record)
            reading.records.append(record)
        except OtherFormat as error:
            raise ResultsError(path, number, str(error)) from error
        except (
            ValueError,
            RecursionError,
        ) as error:  # msgspec's errors and UnicodeDecodeError are ValueErrors
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
    verdict = _decoder.decode(line)
    assert isinstance(verdict, Verdict)
    return verdict


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
    if isinstance(error, RecursionError):
        return "the line is nested too deeply"
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
