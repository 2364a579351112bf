"""Exports hold what the records hold, whatever stands in them, and other people's tools read them."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qkverify import exports, results
from qkverify.errors import UsageError
from qkverify.exports import tables
from qkverify.exports.file_formats import junit, pytest_benchmark
from qkverify.history import earlier_runs
from qkverify.results import (
    Accuracy,
    Ceiling,
    Counterexample,
    Record,
    RunStart,
    Timing,
    Verdict,
    Writer,
    of_kind,
)

from .. import synthetic_history, synthetic_results
from ..results.test_results import run_start

EVERY_TABLE = tables.subjects()
NASTY = st.text(st.characters(codec="utf-8"), max_size=8) | st.sampled_from(
    ["", "a,b", 'say "so"', "two\nlines", "a\r\nb", "\r", "\x00\x1b[31m\x0b", "]]>", "<b>&amp;", "|", "`", "\ufffe", "\U0001f600"]
)  # fmt: skip
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
SECONDS = st.floats(min_value=1e-9, max_value=1e6)
COUNTS = st.integers(0, 2**60)
MARGINS = st.none() | st.floats(min_value=0) | st.just(math.nan)


@st.composite
def timings(draw: st.DrawFn) -> Timing:
    samples = draw(st.lists(SECONDS, max_size=4))
    return Timing(
        case=draw(NASTY), sizes=draw(st.dictionaries(st.sampled_from("BHGQKDEX"), st.integers(1, 9), min_size=1)),
        causal=draw(st.booleans()), options=draw(NASTY), implementation=draw(NASTY), device=draw(NASTY), dtype=draw(NASTY),
        direction="forward", clock="host", seconds=samples, rounds=list(range(len(samples))), flops=draw(COUNTS),
        bytes=draw(COUNTS), peak_bytes=draw(st.none() | COUNTS), margin=draw(MARGINS), verified=draw(st.booleans()),
        reason=draw(NASTY),
    )  # fmt: skip


VERDICTS = st.builds(
    Verdict, law=NASTY, family=NASTY, sentence=NASTY, exact=st.booleans(), implementation=NASTY, device=NASTY, dtype=NASTY,
    outcome=st.sampled_from(results.Outcome.__args__), reason=NASTY, examples=COUNTS, margin=MARGINS, seconds=SECONDS,
    counterexample=st.none() | st.builds(Counterexample, *[NASTY] * 5, MARGINS, NASTY, NASTY, NASTY),
)  # fmt: skip
RECORDS = st.lists(
    timings()
    | VERDICTS
    | st.builds(Ceiling, NASTY, NASTY, st.just("matmul"), SECONDS, st.lists(SECONDS, max_size=2))
    | st.builds(Accuracy, NASTY, NASTY, NASTY, COUNTS, st.none() | NUMBERS, NUMBERS, NUMBERS, st.none() | NUMBERS, st.none()),
    max_size=6,
).map(lambda drawn: [run_start(), *drawn])  # fmt: skip
MANY = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def stored(records: list[Record], path: Path) -> list[Record]:
    """The records as a file gives them back."""
    path.unlink(missing_ok=True)
    with Writer(path) as writer:
        for record in records:
            writer.append(record)
    return results.read(path)


def read_csv(text: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text.decode(), newline="")))


def value_of(text: str, kind: type) -> object:
    if text == "":
        return None
    return text == "True" if kind is bool else kind(text)


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return synthetic_results.records()


@MANY
@given(drawn=RECORDS)
@pytest.mark.parametrize("what", ["timings", "samples", "verdicts", "accuracy", "ceilings", "runs"])
def test_csv_holds_every_value_whatever_stands_in_it(what: str, drawn: list[Record], tmp_path: Path) -> None:
    drawn = stored(drawn, tmp_path / "results.jsonl")
    table = tables.all_tables()[what]
    rows = read_csv(exports.formats()["csv"].export(drawn, what))
    expected = tables.filled(table, drawn)
    assert len(rows) == len(expected)
    for row, values in zip(rows, expected, strict=True):
        for column, value in zip(tables.columns_of(table), values, strict=True):
            assert value_of(row[column.name], column.kind) == (None if value == "" else value), column.name


@MANY
@given(drawn=RECORDS)
@pytest.mark.parametrize("what", ["timings", "samples", "verdicts", "accuracy"])
def test_parquet_holds_every_value_and_tells_nothing_from_empty(
    what: str, drawn: list[Record], tmp_path: Path
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow, the extra parquet, is not installed")
    drawn = stored(drawn, tmp_path / "results.jsonl")
    table = tables.all_tables()[what]
    read = parquet.read_table(io.BytesIO(exports.formats()["parquet"].export(drawn, what)))
    names = [column.name for column in tables.columns_of(table)]
    assert [list(row.values()) for row in read.to_pylist()] == tables.filled(table, drawn)
    assert read.schema.names == names
    assert read.schema.field("run").metadata == {b"about": b"when the run that recorded it started"}


def test_tables_say_what_the_records_say(records: list[Record]) -> None:
    timing = next(t for t in of_kind(records, Timing) if t.seconds)
    (row,) = (
        row
        for row in read_csv(exports.formats()["csv"].export(records, "timings"))
        if (row["case"], row["implementation"], row["dtype"], row["direction"])
        == (timing.case, timing.implementation, timing.dtype, timing.direction)
    )
    ordered = sorted(timing.seconds)
    middle = (ordered[9] + ordered[10]) / 2
    assert row["run"] == "2026-01-02T03:04:05Z"
    assert float(row["median_seconds"]) == middle
    assert [float(row[name]) for name in ("least_seconds", "greatest_seconds")] == [ordered[0], ordered[-1]]
    assert ordered[4] <= float(row["low_seconds"]) <= ordered[5] <= middle <= float(row["high_seconds"])
    assert float(row["flop_per_second"]) == timing.flops / middle
    ceiling = synthetic_results.CEILINGS[timing.dtype]
    assert float(row["roofline_share"]) == max(timing.flops / ceiling, timing.bytes / 1.3e10) / middle
    assert (row["samples"], row["margin"], row["H"]) == ("20", str(timing.margin), "8")
    untimed = next(
        row for row in read_csv(exports.formats()["csv"].export(records, "timings")) if row["reason"]
    )
    assert (untimed["median_seconds"], untimed["samples"]) == ("", "0")


def test_a_row_belongs_to_the_run_that_wrote_it_and_to_its_ceilings(records: list[Record]) -> None:
    timing = next(t for t in of_kind(records, Timing) if t.seconds)
    twice = [run_start(started="one"), Ceiling("cpu", timing.dtype, "matmul", 1e15), timing,
             run_start(started="two"), Ceiling("cpu", timing.dtype, "matmul", 2e15), timing]  # fmt: skip
    first, second = read_csv(exports.formats()["csv"].export(twice, "timings"))
    assert (first["run"], second["run"]) == ("one", "two")
    assert float(first["roofline_share"]) == pytest.approx(2 * float(second["roofline_share"]))


def test_columns_are_a_promise() -> None:
    """Scripts go by these: add at the end, and never rename or move."""
    promised = {
        "timings": "run case implementation device dtype direction clock B H G Q K D E causal options samples median_seconds "
        "least_seconds low_seconds high_seconds greatest_seconds spread flops bytes flop_per_second bytes_per_second "
        "roofline_share peak_bytes margin verified reason",
        "samples": "run case implementation device dtype direction clock round seconds",
        "verdicts": "run implementation device dtype family law outcome reason examples margin seconds exact sentence "
        "counterexample_problem counterexample_location counterexample_got counterexample_exact counterexample_bound "
        "counterexample_margin counterexample_replay counterexample_message",
        "accuracy": "run implementation device dtype elements positive lean lean_error ratio worst_ratio bits_lost",
        "ceilings": "run device dtype what rate samples",
        "controls": "run case implementation device dtype direction ratio low high",
    }
    for name, columns in promised.items():
        names = [column.name for column in tables.columns_of(tables.all_tables()[name])]
        assert names[: len(columns.split())] == columns.split()


def test_kept_runs_are_exported_together(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    for day in (1, 2, 3):
        synthetic_history.write(path, synthetic_history.run(day))
    output = tmp_path / "history.csv"
    exports.write(tmp_path / "history", None, "history", output)
    rows = read_csv(output.read_bytes())
    assert list(dict.fromkeys(row["run"] for row in rows)) == [
        f"2026-01-0{day}T03:04:05+00:00" for day in (1, 2)
    ]
    timing = next(t for t in of_kind(synthetic_history.run(1), Timing) if t.seconds)
    assert float(rows[0]["median_seconds"]) == earlier_runs.summary_of(timing).median_seconds
    assert rows[0]["case"] == timing.case


def test_columns_are_explained() -> None:
    every = exports.explained(None)
    for name in EVERY_TABLE:
        assert f"{name}: " in every
        for column in tables.columns_of(tables.all_tables()[name]):
            assert f"| {column.name} | {column.kind.__name__} |" in exports.explained(name)


def test_markdown_is_one_table_with_units(records: list[Record]) -> None:
    text = exports.formats()["markdown"].export(records, "timings").decode()
    lines = text.splitlines()
    assert {line.count(" | ") for line in lines} == {lines[0].count(" | ")}
    assert len(lines) == 2 + len(of_kind(records, Timing))
    assert re.search(r"\| synthetic-base-128 \| synthetic_flash \|.* µs \|.*GFLOP/s", text)
    assert "causal" not in lines[0]


@MANY
@given(drawn=RECORDS)
def test_markdown_stays_a_table_whatever_stands_in_it(drawn: list[Record]) -> None:
    for what in ("timings", "verdicts"):
        lines = exports.formats()["markdown"].export(drawn, what).decode().split("\n")[:-1]
        bars = {len(re.findall(r"(?<!\\)\|", line)) for line in lines}
        assert len(bars) == 1


def test_json_lines_are_the_file_itself_or_a_kind_of_it(records: list[Record], tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    stored(records, path)
    lines = exports.formats()["jsonl"]
    assert lines.export(results.read(path), "everything") == path.read_bytes()
    (tmp_path / "part.jsonl").write_bytes(lines.export(records, "timings"))
    part = results.read(tmp_path / "part.jsonl")
    assert part == [r for r in records if isinstance(r, RunStart | Timing)]


def test_every_table_of_records_can_be_had_as_json_lines() -> None:
    others = {"samples", "history"}  # made of timings; kept as files of their own
    assert set(exports.formats()["jsonl"].OFFERS) == {"everything", *EVERY_TABLE} - others


def test_pytest_benchmark_compares_the_export(records: list[Record], tmp_path: Path) -> None:
    for name in ("before", "after"):
        (tmp_path / f"{name}.json").write_bytes(pytest_benchmark.export(records, "timings"))
    command = [
        sys.executable,
        "-m",
        "pytest_benchmark",
        "compare",
        "before.json",
        "after.json",
        "--columns=median",
        "--csv=out.csv",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    rows = read_csv((tmp_path / "out.csv").read_bytes())
    timed = [t for t in of_kind(records, Timing) if t.seconds]
    assert len(rows) == 2 * len(timed)
    medians = {row["param:cell"]: float(row["median"]) for row in rows}
    for timing in timed:
        ordered = sorted(timing.seconds)
        assert medians[pytest_benchmark.cell_id(timing)] == pytest.approx(
            (ordered[9] + ordered[10]) / 2, rel=1e-12
        )


def test_pytest_benchmark_gets_what_pytest_benchmark_writes(records: list[Record], tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("def test_it(benchmark):\n    benchmark.pedantic(int, rounds=3)\n")
    plugin = ["-p", "pytest_benchmark.plugin", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", "-q", *plugin, "--benchmark-json=theirs.json", "test_it.py"]
    outside = {
        name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")
    }  # xdist turns it off
    environment = {**outside, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=120, check=True)
    theirs = json.loads((tmp_path / "theirs.json").read_text())
    ours = json.loads(pytest_benchmark.export(records, "timings"))
    their_benchmark, our_benchmark = theirs["benchmarks"][0], ours["benchmarks"][0]
    assert ours.keys() == theirs.keys()
    assert our_benchmark.keys() == their_benchmark.keys()
    assert {*our_benchmark["stats"]} == {*their_benchmark["stats"]}
    assert {*our_benchmark["options"]} <= {*their_benchmark["options"]}
    for part in ("machine_info", "commit_info"):
        assert {*theirs[part]} <= {*ours[part]}
    assert ours["commit_info"]["id"] == "0" * 40
    assert our_benchmark["stats"]["data"] == next(t for t in of_kind(records, Timing) if t.seconds).seconds


def test_cells_have_the_names_that_pytest_benchmarks_gives_them() -> None:
    from qkverify.contract.registry import find
    from qkverify.timing.benchmark_cases import BenchmarkCase
    from qkverify.timing.workloads import small_grid

    cell = BenchmarkCase(small_grid("cpu")[0], find("numpy_textbook")[0], "cpu", "float32", "forward")
    timing = Timing(cell.workload.name, cell.workload.sizes, True, "", "numpy_textbook", "cpu", "float32", "forward", "host",
                    [1.0], [0], 1, 1)  # fmt: skip
    exported = json.loads(pytest_benchmark.export([timing], "timings"))["benchmarks"][0]
    assert (exported["param"], exported["group"]) == (cell.id, cell.title)


def test_only_the_latest_timing_of_a_cell_is_compared() -> None:
    old, new = (
        Timing("c", {}, True, "", "i", "cpu", "float32", "forward", "host", [s], [0], 1, 1)
        for s in (1.0, 2.0)
    )
    (only,) = json.loads(pytest_benchmark.export([old, new], "timings"))["benchmarks"]
    assert only["stats"]["data"] == [2.0]


KINDS = {
    "passed": None, "failed": "failure", "crashed": "error", "timed out": "error", "error": "error",
    "finding": "skipped", "not offered": "skipped", "unavailable": "skipped",
}  # fmt: skip
ALLOWED = {
    "testsuites": {"name", "tests", "failures", "errors", "time"},
    "testsuite": {"name", "tests", "failures", "errors", "skipped", "time", "timestamp"},
    "properties": set(), "property": {"name", "value"}, "testcase": {"name", "classname", "time"},
    "failure": {"type", "message"}, "error": {"type", "message"}, "skipped": {"type", "message"}, "system-out": set(),
}  # fmt: skip  # what GitLab and the schema of Jenkins's xUnit plugin know


@MANY
@given(drawn=RECORDS)
def test_junit_is_well_formed_and_counts_right_whatever_stands_in_it(drawn: list[Record]) -> None:
    root = ET.fromstring(junit.export(drawn, "verdicts"))
    latest = {(v.implementation, v.device, v.dtype, v.family, v.law): v for v in of_kind(drawn, Verdict)}
    for node in root.iter():
        assert set(node.attrib) <= ALLOWED[node.tag]
    for suite in [root, *root.iter("testsuite")]:
        cases = list(suite.iter("testcase"))
        assert suite.get("tests") == str(len(cases))
        for tag, count in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
            if suite is not root or count != "skipped":
                assert suite.get(count) == str(sum(case.find(tag) is not None for case in cases))
    cases = list(root.iter("testcase"))
    laws = [case for case in cases if case.get("name") != "something_was_verified"]
    assert len(laws) == len(latest)
    for kind in ("failure", "error", "skipped"):
        expected = sum(KINDS[v.outcome] == kind for v in latest.values())
        assert sum(case.find(kind) is not None for case in laws) == expected


def test_junit_says_all_that_a_person_is_told(records: list[Record], tmp_path: Path) -> None:
    path = tmp_path / "verdicts.xml"
    path.write_bytes(junit.export(records, "verdicts"))
    junitparser = pytest.importorskip("junitparser", reason="reads JUnit files as another tool does")
    suites = {suite.name: suite for suite in junitparser.JUnitXml.fromfile(str(path))}
    verdicts = of_kind(records, Verdict)
    assert sum(suite.tests for suite in suites.values()) == len(verdicts)
    broken = {case.name: case for case in suites["synthetic_broken cpu float32"]}
    failure = broken["causal_alignment_when_lengths_differ"].result[0]
    assert isinstance(failure, junitparser.Failure)
    assert failure.text == synthetic_results.MESSAGE
    fragile = {case.name: case for case in suites["synthetic_fragile cpu float32"]}
    crash = fragile["agrees_with_reference"].result[0]
    assert (type(crash), crash.message) == (junitparser.Error, "the process died with signal 11 (SIGSEGV)")
    skipped = fragile["jacobian_is_y_delta_minus_y"].result[0]
    assert (type(skipped), skipped.message) == (junitparser.Skipped, "not offered: gradients")
    finding = {case.name: case for case in suites["synthetic_flash cpu float16"]}["vjp_agrees_with_reference"]
    assert finding.result[0].message == "https://example.org/issues/1"


def test_control_characters_are_written_as_pytest_writes_them() -> None:
    assert junit.legal("a\x00\x1b[31m\tb\r\nc\ufffe") == "a#x00#x1B[31m\tb\nc#xFFFE"


@pytest.mark.parametrize(
    ("name", "output", "expected"),
    [("csv", None, "csv"), (None, "x.csv", "csv"), (None, "x.MD", "markdown"), (None, "x.json", "pytest-benchmark"),
     (None, "x.xml", "junit"), (None, "x.parquet", "parquet"), ("jsonl", "x.txt", "jsonl")],
)  # fmt: skip
def test_the_format_is_named_or_guessed(name: str | None, output: str | None, expected: str) -> None:
    assert exports.name_of(exports.format_named(name, Path(output) if output else None)) == expected


@pytest.mark.parametrize(
    ("to", "what", "output", "said"),
    [
        ("cvs", None, None, "Did you mean 'csv'"),
        (None, None, None, "no format was named; choose one with --to"),
        (None, None, "x.doc", "the ending of x.doc is not that of a format"),
        ("junit", "timings", None, "the format junit has no table 'timings'"),
        ("csv", "verdict", None, "Did you mean 'verdicts'"),
        ("parquet", None, None, "name the file to write with --output"),
        ("csv", "planted", None, "has no planted; it has 1 verdict"),
    ],
)
def test_a_mistake_gets_a_sentence(
    to: str | None, what: str | None, output: str | None, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "results.jsonl"
    verdict = Verdict("law", "family", "It holds.", True, "i", "cpu", "float32", "passed")
    timing = Timing("c", {"B": 1}, True, "", "i", "cpu", "float32", "forward", "host", [1.0], [0], 1, 1)
    stored([run_start(), verdict, timing], path)
    with pytest.raises(UsageError, match=re.escape(said)):
        exports.write(path, to, what, Path(output) if output else None)


def test_without_pyarrow_the_package_is_named(monkeypatch: pytest.MonkeyPatch, records: list[Record]) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match="pip install pyarrow"):
        exports.formats()["parquet"].export(records, "timings")


def test_the_command_writes_to_a_file_or_to_standard_output(records: list[Record], tmp_path: Path) -> None:
    stored(records, tmp_path / "device" / "results.jsonl")
    with (tmp_path / "device" / "results.jsonl").open("a") as file:
        file.write('{"type":"verd')

    def qkverify(*arguments: str) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "qkverify.cli", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=120, check=False)

    done = qkverify("export", "device", "--to", "csv", "--what", "verdicts")
    assert done.returncode == 0, done.stderr
    assert done.stdout == exports.formats()["csv"].export(records, "verdicts")
    assert b"left out" in done.stderr
    assert b"the line breaks off" in done.stderr
    assert qkverify("export", "device", "--output", "new/out.xml").returncode == 0
    assert (tmp_path / "new" / "out.xml").read_bytes() == junit.export(records, "verdicts")
    assert qkverify("export", "nowhere", "--to", "csv").returncode == 2


def test_verify_writes_junit_beside_its_words(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import numpy as np\nfrom qkverify import implementation\n\n"
        '@implementation(name="mine", arrays="numpy", dtypes=("float32",))\n'
        "def softmax(scores):\n    return scores\n"
    )
    options = ["--profile", "glance", "--junit", "out.xml"]
    command = [sys.executable, "-m", "qkverify.cli", "verify", "mine.py", *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1, done.stderr
    junitparser = pytest.importorskip("junitparser", reason="reads JUnit files as another tool does")
    (suite,) = junitparser.JUnitXml.fromfile(str(tmp_path / "out.xml"))
    assert suite.failures > 0
    texts = [
        case.result[0].text
        for case in suite
        if case.result and isinstance(case.result[0], junitparser.Failure)
    ]
    assert any(text in done.stdout for text in texts)  # one of each cause
    assert "qkverify replay" in texts[0]
