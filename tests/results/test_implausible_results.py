"""Results that no run can have written, and places that cannot be written: a sentence with file and line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from qkverify.results import ResultsError, Timing, Writer, read
from qkverify.results.one_run import alone_in
from qkverify.results.timing_records import Ceiling, Control

TIMING = Timing(
    "case", {"B": 1}, False, "", "mine", "cpu", "float32", "forward", "host", [1.0, 2.0], [0, 1], 10, 10
)
CEILING = Ceiling("cpu", "float32", "matmul", 1e9)
CONTROL = Control("case", "mine", "cpu", "float32", 1.0, 0.9, 1.1)


def written(path: Path, record: Any) -> Path:
    path.write_bytes(b"\n" + msgspec.json.encode(record) + b"\n")
    return path


@pytest.mark.parametrize("record", [TIMING, CEILING, CONTROL])
def test_what_a_run_writes_is_read(record: Any, tmp_path: Path) -> None:
    assert read(written(tmp_path / "results.jsonl", record)) == [record]


@pytest.mark.parametrize(
    ("record", "changes", "said"),
    [
        (TIMING, {"seconds": [0.0, 1.0]}, "seconds is 0, and can only be a number above 0"),
        (TIMING, {"seconds": [-1.0, 1.0]}, "seconds is -1"),
        (TIMING, {"seconds": [1e300, 1.0]}, "more than thirty years"),
        (TIMING, {"seconds": [1.0]}, "there are 1 seconds and 2 rounds"),
        (TIMING, {"sizes": {}}, "sizes is empty"),
        (TIMING, {"sizes": {"B": -1}}, "size B is -1"),
        (TIMING, {"flops": -5}, "flops is -5"),
        (CEILING, {"rate": 0.0}, "rate is 0"),
        (CONTROL, {"ratio": 0.0}, "ratio is 0"),
        (CONTROL, {"low": -1.0}, "low is -1"),
    ],
)
def test_what_none_can_have_written_is_refused(
    record: Any, changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    path = written(tmp_path / "results.jsonl", msgspec.structs.replace(record, **changes))
    with pytest.raises(ResultsError, match=rf"results\.jsonl, line 2: .*{said}"):
        read(path)
    assert len(read(path, strict=False).problems) == 1


def test_what_is_nested_too_deeply_is_a_line_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_bytes(b'{"type":"verdict","law":' + b"[" * 200_000 + b"\n")
    with pytest.raises(ResultsError, match="line 1: "):
        read(path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_said() -> None:
    with pytest.raises(ResultsError, match="/dev/full: could not be written: No space left on device"):
        Writer("/dev/full").append(CEILING)


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match=r"results\.jsonl: cannot be written"):
        Writer(tmp_path / "file" / "results.jsonl")


@pytest.mark.skipif(os.name != "posix", reason="there is no such lock")
def test_a_second_run_is_refused_and_the_next_one_is_not(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    with (
        alone_in(tmp_path, results),
        pytest.raises(ResultsError, match=r"results\.jsonl: another run writes into it now"),
        alone_in(tmp_path, results),
    ):
        pass
    with alone_in(tmp_path, results):
        pass
