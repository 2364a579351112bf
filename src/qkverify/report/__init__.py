"""The report: everything that a results file says, as one offline page and as a Markdown summary.

    write("reports/nvidia-h200/results.jsonl", "reports/nvidia-h200")

`render` turns records into text and touches no file. The page is one HTML file of its own style, script and
charts; nothing is fetched, and its content security policy forbids it. The same records give the same bytes.

Rooms: `model` arranges the records, `sections/` holds one file for each part of the page (a new part is a
new file there, with its template beside the others), `charts` and `svg` draw, `units` turns quantities into
words, `page` puts it together, `index` is the page over all devices.

Needs jinja2, which the extra `qkverify[report]` installs; it is imported when a report is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from qkverify import results
from qkverify.errors import UsageError
from qkverify.history import earlier_runs
from qkverify.history.earlier_runs import PastRun
from qkverify.report.finding_links import Links, of_folder

NOWHERE = Links()

PAGE, SUMMARY, RESULTS = "index.html", "summary.md", "results.jsonl"
POWER = "power.jsonl"  # beside the devices' folders: how strong the laws are does not depend on the device


class Page(NamedTuple):
    """One report in both forms."""

    html: str
    markdown: str


def render(
    records: Sequence[results.Record],
    *,
    title: str | None = None,
    past: Sequence[PastRun] = (),
    links: Links = NOWHERE,
) -> Page:
    """The report on these records. `title` replaces the device's name; `past` are earlier runs, for trends; `links`
    says where findings can be read.

    Raises UsageError where jinja2 is not installed.
    """
    _require_jinja()
    from qkverify.report.model import Report
    from qkverify.report.page import html, markdown

    report = Report(records, title=title, past=past, links=links)
    return Page(html(report), markdown(report))


def write(results_path: str | Path, folder: str | Path) -> tuple[Path, Path]:
    """Make the report on a results file, and on the earlier runs that are kept beside it, and write index.html and summary.md
    into `folder`; both paths.

    Raises results.ResultsError naming file and line where the file cannot be read: nothing is written then.
    """
    power = Path(folder).parent / POWER
    planted = results.of_kind(results.read(power), results.Planted) if power.is_file() else []
    page = render(
        [*results.read(results_path), *planted],
        past=earlier_runs.load(Path(results_path)),
        links=of_folder(Path(folder)),
    )
    return _write(Path(folder) / PAGE, page.html), _write(Path(folder) / SUMMARY, page.markdown)


def write_index(reports_folder: str | Path) -> Path:
    """Write index.html over all devices of a folder of reports; its path.

    A results file that cannot be read is listed with its line and reason, and does not hide the others.
    """
    _require_jinja()
    from qkverify.report.index import html

    folder = Path(reports_folder)
    return _write(folder / PAGE, html(sorted(folder.glob(f"*/{RESULTS}"))))


def _require_jinja() -> None:
    try:
        import jinja2  # noqa: F401
    except ModuleNotFoundError as error:
        raise UsageError("a report needs jinja2, which is not installed: pip install jinja2") from error


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")
    return path
