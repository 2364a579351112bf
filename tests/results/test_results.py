"""The results file: what is written is read back, and what is broken is named by file and line."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

from qkverify import results
from qkverify.results import (
    Ceiling,
    Complexity,
    Control,
    Counterexample,
    Fingerprint,
    ImplementationInfo,
    Record,
    ResultsError,
    RunStart,
    Semantic,
    Timing,
    Travel,
    Verdict,
    Writer,
)


def run_start(**changes: object) -> RunStart:
    facts: dict[str, object] = {
        "qkverify": "0.1.0",
        "started": "2026-01-02T03:04:05Z",
        "command": "qkverify verify",
        "profile": "quick",
        "seed": 7,
        "fingerprint": Fingerprint(
            {"cpu": "A CPU", "cores": 2, "memory_gib": 7.5, "gpu": None}, {"load": 0.25}
        ),
    }
    return RunStart(**{**facts, **changes})  # type: ignore[arg-type]


def verdict(margin: float | None = 0.25, example: Counterexample | None = None) -> Verdict:
    return Verdict(
        law="rows_sum_to_one",
        family="softmax",
        sentence="A row sums to one.",
        exact=False,
        implementation="mine",
        device="cpu",
        dtype="float32",
        outcome="passed",
        examples=100,
        margin=margin,
        counterexample=example,
    )


def one_of_each() -> list[Record]:
    example = Counterexample("text", "1 head", "0.0", "0.7", "1e-7", 3.4e6, "(0, 0)", "7f3a")
    return [
        run_start(),
        ImplementationInfo(
            "mine",
            "attention",
            "Mine.",
            "numpy",
            "mine.py",
            ["float32"],
            ["cpu"],
            ["causal"],
            ["mask"],
            ["E == D"],
            {"empty_rows": Semantic("zero", "declared")},
            {"cuda": "no CUDA device"},
        ),
        verdict(),
        verdict(3.4e6, example),
        Timing(
            "gpt2-small",
            {"B": 1, "H": 12},
            True,
            "",
            "mine",
            "cpu",
            "float32",
            "forward",
            "host",
            [0.1, 0.2],
            [0, 1],
            10,
            20,
            None,
            0.5,
            True,
        ),
        Ceiling("cpu", "float32", "matmul", 1e11, [0.1]),
        Control("gpt2-small", "mine", "cpu", "float32", 1.0, 0.99, 1.01),
        Complexity(
            layer="recurrent",
            formula="n d²",
            factor=2,
            variable="d",
            theory=2,
            implementation="numpy",
            device="cpu",
            dtype="float32",
            clock="thread",
            threads=None,
            fixed={"n": 16},
            sizes=[16, 32],
            multiply_adds=[8192, 32768],
            seconds=[[0.1, 0.2], []],
            rounds=[[0, 2], []],
            margin=0.5,
            reason="no room",
        ),
        Travel(
            layer="recurrent",
            source="a table",
            steps_theory="n",
            path_theory="n",
            fixed={},
            lengths=[16],
            steps=[16],
            path=[16],
            layers=[1],
        ),
    ]


def write(path: Path, records: list[Record]) -> Path:
    with Writer(path) as writer:
        for record in records:
            writer.append(record)
    return path


def test_every_kind_of_record_is_read_back_as_written(tmp_path: Path) -> None:
    records = one_of_each()
    assert results.read(write(tmp_path / "new" / "folder" / "results.jsonl", records)) == records


def test_one_record_is_one_line_and_is_on_disk_at_once(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    writer = Writer(path)
    for count, record in enumerate(one_of_each(), start=1):
        writer.append(record)
        assert path.read_bytes().count(b"\n") == count
    writer.close()


def test_a_second_writer_appends(tmp_path: Path) -> None:
    path = write(tmp_path / "results.jsonl", [run_start()])
    write(path, [verdict()])
    assert results.read(path) == [run_start(), verdict()]


def test_margins_that_json_cannot_hold_are_kept_as_what_they_mean(tmp_path: Path) -> None:
    path = write(tmp_path / "results.jsonl", [verdict(math.inf), verdict(math.nan), verdict(None)])
    margins = [record.margin for record in results.of_kind(results.read(path), Verdict)]
    assert margins == [sys.float_info.max, None, None]


def test_a_broken_line_is_named_by_file_line_and_reason(tmp_path: Path) -> None:
    path = write(tmp_path / "results.jsonl", one_of_each())
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b'"passed"', b'"perfect"')
    path.write_bytes(b"".join(lines))
    with pytest.raises(ResultsError, match=r"results\.jsonl, line 3: .*perfect.*outcome") as caught:
        results.read(path)
    assert (caught.value.path, caught.value.line_number) == (path, 3)


def test_a_torn_last_line_is_reported_and_the_other_records_kept(tmp_path: Path) -> None:
    records = one_of_each()
    path = write(tmp_path / "results.jsonl", records)
    path.write_bytes(path.read_bytes()[:-20])
    reading = results.read(path, strict=False)
    assert reading.records == records[:-1]
    assert [problem.line for problem in reading.problems] == [len(records)]
    assert "breaks off" in reading.problems[0].why


def test_writing_after_a_torn_line_loses_nothing_more(tmp_path: Path) -> None:
    path = write(tmp_path / "results.jsonl", [run_start(), verdict()])
    path.write_bytes(path.read_bytes()[:-5])
    write(path, [verdict(0.75)])
    reading = results.read(path, strict=False)
    assert reading.records == [run_start(), verdict(0.75)]
    assert [problem.line for problem in reading.problems] == [2]


def test_bytes_that_are_no_text_are_a_broken_line(tmp_path: Path) -> None:
    path = write(tmp_path / "results.jsonl", [run_start()])
    path.write_bytes(path.read_bytes() + b'\xff\xfe{"type"\n')
    assert [problem.line for problem in results.read(path, strict=False).problems] == [2]


def test_a_record_of_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text('{"type":"guess"}\n')
    with pytest.raises(ResultsError, match="guess"):
        results.read(path)


@pytest.mark.parametrize("strict", [True, False])
def test_a_file_that_is_not_there_is_named(tmp_path: Path, strict: bool) -> None:
    with pytest.raises(ResultsError, match=r"missing\.jsonl"):
        results.read(tmp_path / "missing.jsonl", strict=strict)  # type: ignore[call-overload]
