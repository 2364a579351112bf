"""The results format over time: its JSON schema, older and newer files, and the committed ones.

There has been one format so far. Migrations are tried on tests/results/old_results/schema_0.jsonl, a made-up format in which
times were milliseconds, appended to by a qkverify of today.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

import qkverify
from qkverify import results
from qkverify.results import ResultsError, RunStart, Tally, Timing, TimingSummary, files, of_kind

from .test_results import one_of_each, run_start, write

jsonschema = pytest.importorskip("jsonschema", reason="the schema is judged by another's validator")
ROOT = Path(__file__).resolve().parents[2]
SCHEMA_FILE = ROOT / "src" / "qkverify" / "results" / "results.schema.json"
COMMITTED = sorted((ROOT / "reports").rglob("*.jsonl"))
OLD = Path(__file__).with_name("old_results") / "schema_0.jsonl"


def seconds_of(fields: dict[str, Any]) -> dict[str, Any]:
    """The made-up migration from schema 0."""
    if fields["type"] == "timing":
        fields["seconds"] = [number / 1000 for number in fields.pop("milliseconds")]
    return fields


def test_the_committed_schema_is_that_of_the_records() -> None:
    committed = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    assert committed == results.json_schema(), (
        "run: qkverify schema > src/qkverify/results/results.schema.json"
    )


def test_the_command_prints_the_schema() -> None:
    command = [sys.executable, "-m", "qkverify.cli", "schema"]
    done = subprocess.run(command, capture_output=True, timeout=60, check=True)
    assert done.stdout.decode() == SCHEMA_FILE.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def validators() -> dict[str, Any]:
    """A validator for each kind of record: going by the type is what the schema's discriminator says, and is quick."""
    schema = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    kinds = schema["discriminator"]["mapping"]
    return {
        kind: jsonschema.Draft202012Validator({"$ref": place, "$defs": schema["$defs"]})
        for kind, place in kinds.items()
    }


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: str(path.relative_to(ROOT / "reports")))
def test_committed_results_are_read_and_keep_the_schema(path: Path, validators: dict[str, Any]) -> None:
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert len(results.read(path)) == len(lines) > 0
    for line in lines:
        validators[line["type"]].validate(line)


def test_there_are_committed_results() -> None:
    assert {path.name for path in COMMITTED} >= {"results.jsonl", "power.jsonl"}


def test_what_is_written_keeps_the_schema_and_what_is_wrong_breaks_it() -> None:
    whole = jsonschema.Draft202012Validator(results.json_schema())
    summary = TimingSummary(case="c", implementation="i", device="cpu", dtype="float32", direction="forward", median_seconds=1.0,
                            low_seconds=0.5, high_seconds=2.0, samples=3, flops=1, bytes=1)  # fmt: skip
    for record in [*one_of_each(), summary, Tally(outcomes={"passed": 3}, examples=75)]:
        line = msgspec.to_builtins(record)
        whole.validate(line)
        assert not whole.is_valid({**line, "type": "guess"})
    assert not whole.is_valid({**msgspec.to_builtins(summary), "direction": "sideways"})


def test_an_older_file_is_taken_along_and_the_newer_part_of_it_left_alone(monkeypatch: Any) -> None:
    monkeypatch.setitem(files.MIGRATIONS, 0, seconds_of)
    records = results.read(OLD)
    assert [timing.seconds for timing in of_kind(records, Timing)] == [[0.0015, 0.0025], [0.5]]
    assert [(run.schema, run.qkverify) for run in of_kind(records, RunStart)] == [(1, "0.0.9"), (1, "0.1.0")]


def test_migrations_follow_one_another(monkeypatch: Any) -> None:
    monkeypatch.setattr(files, "SCHEMA", 2)
    monkeypatch.setitem(files.MIGRATIONS, 0, seconds_of)
    monkeypatch.setitem(files.MIGRATIONS, 1, lambda fields: {**fields, "implementation": "renamed"})
    timings = of_kind(results.read(OLD), Timing)
    assert [(t.implementation, t.seconds) for t in timings] == [
        ("renamed", [0.0015, 0.0025]),
        ("renamed", [0.5]),
    ]


def test_a_line_that_no_migration_understands_is_named(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(files.MIGRATIONS, 0, seconds_of)
    path = tmp_path / "results.jsonl"
    path.write_text(OLD.read_text().replace("milliseconds", "jiffies"))
    with pytest.raises(ResultsError, match=r"line 2: no record of schema 0: KeyError\('milliseconds'\)"):
        results.read(path)


@pytest.mark.parametrize("strict", [True, False])
def test_an_older_file_without_migration_is_refused_with_who_reads_it(strict: bool) -> None:
    with pytest.raises(
        ResultsError,
        match=r"schema 0 by qkverify 0\.0\.9; .* reads schema 1 and newer: qkverify 0\.0\.9 reads it",
    ):
        results.read(OLD, strict=strict)  # type: ignore[call-overload]


@pytest.mark.parametrize("strict", [True, False])
def test_a_newer_file_is_refused_with_the_version_that_is_needed(tmp_path: Path, strict: bool) -> None:
    path = write(tmp_path / "results.jsonl", [run_start(), run_start(schema=99, qkverify="9.9")])
    said = (
        rf"line 2: written in schema 99 by qkverify 9\.9; this is qkverify {qkverify.__version__}, which reads up to schema 1: "
        r"qkverify 9\.9 or newer reads it"
    )
    with pytest.raises(ResultsError, match=said):
        results.read(path, strict=strict)  # type: ignore[call-overload]


def test_a_field_that_is_not_known_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    line = {**msgspec.to_builtins(run_start()), "weather": "fine"}
    path.write_text(json.dumps(line) + "\n")
    assert results.read(path) == [run_start()]


def test_a_field_that_is_not_there_has_its_default(tmp_path: Path) -> None:
    """Files from before a field was added stay readable, so every field that is added needs a default."""
    path = write(tmp_path / "results.jsonl", one_of_each())
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        line.pop("counterexample", None), line.pop("seed", None), line.pop("schema", None)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert len(results.read(path)) == len(lines)


def test_a_kind_of_record_that_is_not_known_is_refused_with_a_hint(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text('{"type":"horoscope"}\n')
    with pytest.raises(ResultsError, match=r"line 1: .*horoscope.*a newer one may"):
        results.read(path)
