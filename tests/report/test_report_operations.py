"""The section on other operations: a row for each implementation and size, the ratio to torch's, and reasons for no time."""

from __future__ import annotations

from qkverify import exports, units
from qkverify.report import page
from qkverify.report.model import Report
from qkverify.report.sections import operations as section
from qkverify.results import ImplementationInfo, OperationTiming, Record


def timing(
    implementation: str, seconds: list[float], reason: str = "", case: str = "short"
) -> OperationTiming:
    return OperationTiming(
        operation="softmax", case=case, sizes={"B": 8, "L": 1024}, implementation=implementation, device="cpu", dtype="float32",
        clock="host", seconds=seconds, rounds=[*range(len(seconds))], margin=0.25 if seconds else None, reason=reason,
    )  # fmt: skip


def info(name: str, arrays: str) -> ImplementationInfo:
    return ImplementationInfo(name=name, operation="softmax", summary="", arrays=arrays, file="")


RECORDS: list[Record] = [
    info("numpy_<mine>", "numpy"),
    info("torch_softmax", "torch"),
    timing("numpy_<mine>", [4e-3, 5e-3, 9e-3]),
    timing("torch_softmax", [2e-3, 2e-3, 3e-3]),
    timing("numpy_none", [], "raised ValueError: [no] | such size"),
]


def test_the_fastest_comes_first_and_torch_is_what_others_are_measured_by() -> None:
    rows = section.rows(Report(RECORDS))
    assert [(row.timing.implementation, row.ratio) for row in rows] == [
        ("torch_softmax", None), ("numpy_<mine>", 2.5), ("numpy_none", None),
    ]  # fmt: skip


def test_whose_arrays_are_torchs_is_said_by_its_description_and_not_by_its_name() -> None:
    records = [
        info("torch_like", "numpy"),
        info("mine", "torch"),
        timing("torch_like", [4e-3] * 3),
        timing("mine", [2e-3] * 3),
    ]
    rows = section.rows(Report(records))
    assert [(row.timing.implementation, row.ratio) for row in rows] == [("mine", None), ("torch_like", 2.0)]


def test_page_and_summary_say_the_same() -> None:
    drawn, summary = page.html(Report(RECORDS)), section.markdown(Report(RECORDS))
    for text in ("torch_softmax", "raised ValueError: [no]", "B 8 L 1,024", "2.50", units.seconds(5e-3)):
        assert text in drawn
        assert text in summary
    assert "numpy_<mine>" not in drawn  # escaped
    assert "numpy_&lt;mine&gt;" in drawn


def test_nothing_is_said_where_nothing_was_timed() -> None:
    assert section.html(Report([])) == ""
    assert section.markdown(Report([])) == ""


def test_the_last_time_of_each_counts() -> None:
    again = timing("torch_softmax", [1e-3])
    assert next(row.seconds for row in section.rows(Report([*RECORDS, again]))) == 1e-3


def test_they_can_be_exported() -> None:
    text = exports.formats()["csv"].export(RECORDS, "operation_timings").decode()
    assert text.count("softmax") >= 3
    assert "0.005" in text
