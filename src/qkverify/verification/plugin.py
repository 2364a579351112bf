"""The pytest plugin: its options (see `repository.pytest_options`), and one test for each law and cell.

Functions made by `@law` are collected like any other test and get one `run` for every cell; all other tests are left alone.
What the command line leaves open, `[tool.qkverify]` of the pyproject.toml says. Options belong here and not in a conftest, so
that `pytest --pyargs qkverify.properties` sees them from any repository. The module is imported in every pytest session of an
environment that has qkverify, so it imports the engine only when a law is collected.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qkverify.verification import pytest_options

PLAN: pytest.StashKey[Any] = pytest.StashKey()
ASKED: pytest.StashKey[Any] = pytest.StashKey()
WRITER: pytest.StashKey[Any] = pytest.StashKey()
FAILURES: pytest.StashKey[dict[str, Any]] = pytest.StashKey()  # by cell, in this process
VERDICT: pytest.StashKey[Any] = pytest.StashKey()  # of a test


@pytest.hookimpl(wrapper=True)
def pytest_load_initial_conftests(parser: pytest.Parser) -> Generator[None, Any, Any]:
    """Add the options once the conftests have added theirs."""
    result = yield
    pytest_options.add(parser)
    return result


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--hypothesis-profile", None) in ("glance", "quick", "thorough"):
        from hypothesis import settings

        from qkverify.verification.laws import PROFILES

        for name in ("glance", "quick", "thorough"):
            settings.register_profile(name, max_examples=PROFILES[name])


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    law = getattr(metafunc.function, "law", None)
    if law is None or "run" not in metafunc.fixturenames:
        return
    from qkverify.verification.checking import applicable

    cells = [cell for cell in _plan(metafunc.config).cells if applicable([law], cell)]
    metafunc.parametrize("run", cells, ids=[str(cell) for cell in cells], indirect=True)


@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """A target that does not exist ends the session before anything is collected."""
    if any(
        pytest_options.value(session.config, name) for name in pytest_options.OPTIONS if name != "results"
    ):
        _plan(session.config)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the laws that `--law` and `--skip-law` leave out; a name that no law has ends the session."""
    laws = {
        item: item.obj.law for item in items if isinstance(item, pytest.Function) and hasattr(item.obj, "law")
    }
    if not laws:
        return
    from qkverify.verification import requested

    with _usage_errors():
        kept = requested.of_collected(_asked(config), set(laws.values()))
    gone = [item for item in laws if laws[item] not in kept]
    if gone:
        items[:] = [item for item in items if item not in laws or laws[item] in kept]
        config.hook.pytest_deselected(items=gone)


@pytest.fixture
def run(request: pytest.FixtureRequest) -> Any:
    """The run of one implementation, device and dtype that a law is checked on."""
    from qkverify.verification.checking import prepare

    return prepare(request.param)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """A law's test is its verdict: recorded, then told to pytest as a pass, a skip with its reason, or a failure."""
    law: Any = getattr(pyfuncitem.obj, "law", None)
    if law is None or "run" not in pyfuncitem.funcargs:
        return None
    import msgspec

    from qkverify.counterexamples.failures import Failures
    from qkverify.verification.checking import check, finding

    held: Any = pyfuncitem.funcargs["run"]
    failures = pyfuncitem.config.stash.setdefault(FAILURES, {}).setdefault(held.cell, Failures())
    verdict = check(law, held, failures=failures, max_examples=_examples(pyfuncitem.config))
    pyfuncitem.stash[VERDICT] = verdict
    writer = _writer(pyfuncitem.config)
    if writer is not None:
        writer.append(failures.settled([verdict])[0])
    pyfuncitem.user_properties += [("margin", verdict.margin), ("examples", verdict.examples),
                                   ("cell", held.cell), ("used", ", ".join(verdict.used or ()))]  # fmt: skip
    known = finding(law, held)
    if known is not None and known.listed and verdict.outcome != "not offered":
        pyfuncitem.user_properties.append((HOLDS if verdict.outcome == "passed" else SHOWS, known.listed))
    if verdict.messages:
        pyfuncitem.user_properties.append(
            ("messages", [msgspec.to_builtins(message) for message in verdict.messages])
        )
    if verdict.outcome == "not offered":
        pytest.skip(verdict.reason)
    if verdict.outcome == "finding":
        pytest.xfail(f"recorded finding: {verdict.reason}")
    if verdict.outcome != "passed":
        pytest.fail(
            verdict.counterexample.message if verdict.counterexample else verdict.reason, pytrace=False
        )
    return True


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """The report of a law takes its verdict along, as JSON: from a worker of pytest-xdist to the controller, too."""
    outcome: Any = yield
    verdict = item.stash.get(VERDICT, None)
    report = outcome.get_result()
    if verdict is not None and report.when == "call":
        from qkverify.results import line_of
        from qkverify.verification.session_outcomes import in_short

        report.qkverify_verdict = line_of(verdict if report.failed else in_short(verdict)).decode()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """What was not verified is no success: exit status 4, although no test failed."""
    config = session.config
    if (
        exitstatus == pytest.ExitCode.OK
        and not hasattr(config, "workerinput")
        and (cells := _outcomes(config))
    ):
        from qkverify.verification.outcomes import exit_code

        session.exitstatus = exit_code(cells.values(), pytest_options.value(config, "strict-verification"))


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> Iterator[None]:
    """Before pytest prints what failed, each cause gets one whole counterexample; after it, the causes are summed up."""
    failure_causes = _causes_told_once(terminalreporter, config)
    yield
    if failure_causes:
        from qkverify.counterexamples.causes import summary

        terminalreporter.section("causes")
        for cause in failure_causes:
            terminalreporter.line(cause.headline())
        terminalreporter.line(summary(failure_causes))
    _left_out(terminalreporter, config)


def _causes_told_once(terminalreporter: Any, config: pytest.Config) -> list[Any]:
    """The causes of all laws that failed. In their reports stands the counterexample of the first law of each cause, and for the
    others a line with its name."""
    failed = {report: report.qkverify_verdict for report in terminalreporter.stats.get("failed", ())
              if hasattr(report, "qkverify_verdict")}  # fmt: skip
    if not failed:
        return []
    from qkverify.counterexamples.causes import causes
    from qkverify.results import verdict_of

    here = config.stash.get(FAILURES, {})
    verdicts = {report: verdict_of(line) for report, line in failed.items()}
    by_cell: dict[str, list[Any]] = {}
    for report, verdict in verdicts.items():
        by_cell.setdefault(f"{verdict.implementation}-{verdict.device}-{verdict.dtype}", []).append(report)
    for cell, reports in by_cell.items():
        mine = [verdicts[report] for report in reports]
        said = here[cell].settled(mine) if cell in here else _of_workers(config, cell, mine)
        verdicts |= dict(zip(reports, said, strict=True))
    failure_causes = causes(verdicts.values())
    for cause in failure_causes:
        for report, verdict in verdicts.items():
            if verdict is cause.first:
                report.longrepr = Block(cause.text(), cause.headline())
            elif any(verdict is other for other in cause.verdicts):
                report.longrepr = cause.same(verdict)
    return failure_causes


@dataclass(frozen=True)
class Block:
    """What a report shows of a failure. Where `CI` is set, pytest's short summary repeats the message of a report in full. The
    message is the headline alone, so that a counterexample stands on the screen once."""

    text: str
    headline: str

    def toterminal(self, writer: Any) -> None:
        writer.line(self.text)

    def __str__(self) -> str:
        return self.text

    @property
    def reprcrash(self) -> SimpleNamespace:
        """pytest reads `reprcrash.message` for its short summary."""
        return SimpleNamespace(message=self.headline)


def _of_workers(config: pytest.Config, name: str, verdicts: list[Any]) -> list[Any]:
    """The verdicts of a cell that workers of pytest-xdist checked, explained with a look at one another."""
    from qkverify.verification.checking import explained_together

    cell = next(cell for cell in _plan(config).cells if str(cell) == name)
    return explained_together(cell, verdicts)


def _left_out(terminalreporter: Any, config: pytest.Config) -> None:
    """What could not run here, and what was not verified."""
    planned = config.stash.get(PLAN, None)
    if planned is not None and planned.unavailable:
        terminalreporter.section("unavailable here")
        for (name, device), reason in planned.unavailable.items():
            terminalreporter.line(f"{name} on {device}: {reason}")
    _held_again(terminalreporter)
    for name, lines in _messages(terminalreporter).items():
        terminalreporter.section(f"warnings and prints of {name}")
        for line in lines:
            terminalreporter.line(line)
    remarks = [
        (implementation.name, remark)
        for implementation in (planned.implementations if planned else ())
        for remark in implementation.remarks
    ]
    if remarks:
        terminalreporter.section("detected by a first call")
        for name, remark in remarks:
            terminalreporter.line(f"{name}: {remark}")
    if cells := _outcomes(config):
        from qkverify.verification import outcomes

        terminalreporter.section("what was verified")
        for line in outcomes.lines(cells):
            terminalreporter.line(line)


HOLDS, SHOWS = (
    "known failure holds again",
    "known failure shows",
)  # properties of a test, with the entry's place


def _held_again(terminalreporter: Any) -> None:
    """The entries of known failures for which every law held (in other processes too)."""
    said: dict[str, set[str]] = {HOLDS: set(), SHOWS: set()}
    for report in (report for several in terminalreporter.stats.values() for report in several):
        for name, place in (
            getattr(report, "user_properties", ()) if getattr(report, "when", "") == "call" else ()
        ):
            if name in said:
                said[name].add(place)
    if entries := sorted(said[HOLDS] - said[SHOWS]):
        terminalreporter.section("known failures that hold again")
        for place in entries:
            terminalreporter.line(f"remove {place}")


def _messages(terminalreporter: Any) -> dict[str, list[str]]:
    """What each implementation warned of and printed while it was called, over all reports (of other processes too)."""
    said: dict[str, list[Any]] = {}
    for report in (report for several in terminalreporter.stats.values() for report in several):
        properties = dict(getattr(report, "user_properties", ()))
        if getattr(report, "when", "") == "call" and "messages" in properties:
            said.setdefault(properties["cell"].rsplit("-", 2)[0], []).extend(properties["messages"])
    if not said:
        return {}
    import msgspec

    from qkverify.contract import messages
    from qkverify.results import Message

    return {
        name: messages.lines(messages.merged(msgspec.convert(recorded, list[Message])))
        for name, recorded in said.items()
    }


def _outcomes(config: pytest.Config) -> dict[str, Any]:
    """What is said of each cell and of each target without one, by the verdicts of all processes; see `session_outcomes`."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    reports = (
        [report for several in reporter.stats.values() for report in several] if reporter is not None else []
    )
    lines = [report.qkverify_verdict for report in reports if hasattr(report, "qkverify_verdict")]
    planned = config.stash.get(PLAN, None)
    if config.getoption("collectonly") or not (lines or (planned and planned.idle)):
        return {}
    from qkverify.verification.session_outcomes import of_session

    return of_session(lines, planned or _plan(config))


@contextlib.contextmanager
def _usage_errors() -> Iterator[None]:
    """Our sentences as pytest's."""
    from qkverify.errors import UsageError
    from qkverify.foreign_text import escaped

    try:
        yield
    except UsageError as error:
        text = getattr(error, "text", "")
        raise pytest.UsageError(escaped(f"{text}\n{error}" if text else str(error))) from None


def _asked(config: pytest.Config) -> Any:
    """What the command line asks for, and what it leaves open from pyproject.toml."""
    if ASKED not in config.stash:
        from qkverify.verification import settings

        given = {field: pytest_options.value(config, name) for field, name in FIELDS.items()}
        with _usage_errors():
            config.stash[ASKED] = settings.read().given(**given)
    return config.stash[ASKED]


FIELDS = {"targets": "implementation", "dtypes": "dtype", "devices": "device", "laws": "law", "skip": "skip-law",
          "known_failures": "known-failures"}  # of Settings -> option  # fmt: skip


def _plan(config: pytest.Config) -> Any:
    if PLAN not in config.stash:
        from qkverify.verification import known_failures
        from qkverify.verification.checking import plan

        with _usage_errors():
            chosen = _asked(config)
            planned = plan(chosen.targets, chosen.devices, chosen.dtypes)
            config.stash[PLAN] = known_failures.applied(planned, chosen.entries())
    return config.stash[PLAN]


def _examples(config: pytest.Config) -> int | None:
    """Those of the profile in pyproject.toml; None leaves it to Hypothesis, whose profile the command line may name."""
    profile = _asked(config).profile
    if not profile or config.getoption("--hypothesis-profile", None):
        return None
    from qkverify.verification.checking import examples_of

    return examples_of(profile)


def _writer(config: pytest.Config) -> Any:
    path = pytest_options.value(config, "results")
    if path is None:
        return None
    if WRITER not in config.stash:
        from qkverify.results import Writer

        config.stash[WRITER] = Writer(Path(path))
    return config.stash[WRITER]
