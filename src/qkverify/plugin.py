"""The pytest plugin: `--implementation`, `--dtype`, `--device`, `--results`, and one test for each law and cell.

Functions made by `@law` are collected like any other test and get one `run` for every cell; all other tests are left alone.
Options belong here and not in a conftest, so that `pytest --pyargs qkverify.properties` sees them from any repository. The
module is imported in every pytest session of an environment that has qkverify, so it imports the engine only when a law is
collected.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PLAN: pytest.StashKey[Any] = pytest.StashKey()
WRITER: pytest.StashKey[Any] = pytest.StashKey()
FAILURES: pytest.StashKey[dict[str, Any]] = pytest.StashKey()  # by cell, in this process
VERDICT: pytest.StashKey[Any] = pytest.StashKey()  # of a test


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("qkverify", "verification of attention")
    group.addoption("--implementation", action="append", default=[], metavar="TARGET",
                    help="verify this: a name, module:function or path/file.py:function (repeatable; default: all)")  # fmt: skip
    group.addoption("--dtype", action="append", default=[], help="only this dtype (repeatable)")
    group.addoption("--device", action="append", default=[], help="only this device (repeatable)")
    group.addoption(
        "--results", default=None, metavar="FILE", help="append every verdict to this file, a JSON line each"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--hypothesis-profile", None) in ("glance", "quick", "thorough"):
        from hypothesis import settings

        from qkverify.laws import PROFILES

        for name in ("glance", "quick", "thorough"):
            settings.register_profile(name, max_examples=PROFILES[name])


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    law = getattr(metafunc.function, "law", None)
    if law is None or "run" not in metafunc.fixturenames:
        return
    from qkverify.verification import applicable

    cells = [cell for cell in _plan(metafunc.config).cells if applicable([law], cell)]
    metafunc.parametrize("run", cells, ids=[str(cell) for cell in cells], indirect=True)


@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """A target that does not exist ends the session before anything is collected."""
    if any(session.config.getoption(name) for name in ("--implementation", "--device", "--dtype")):
        _plan(session.config)


@pytest.fixture
def run(request: pytest.FixtureRequest) -> Any:
    """The run of one implementation, device and dtype that a law is checked on."""
    from qkverify.verification import prepare

    return prepare(request.param)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """A law's test is its verdict: recorded, then told to pytest as a pass, a skip with its reason, or a failure."""
    law: Any = getattr(pyfuncitem.obj, "law", None)
    if law is None or "run" not in pyfuncitem.funcargs:
        return None
    from qkverify.failures import Failures
    from qkverify.verification import check

    held: Any = pyfuncitem.funcargs["run"]
    failures = pyfuncitem.config.stash.setdefault(FAILURES, {}).setdefault(held.cell, Failures())
    verdict = pyfuncitem.stash[VERDICT] = check(law, held, failures=failures)
    writer = _writer(pyfuncitem.config)
    if writer is not None:
        writer.append(verdict)
    pyfuncitem.user_properties += [("margin", verdict.margin), ("examples", verdict.examples),
                                   ("cell", held.cell), ("used", ", ".join(verdict.used or ()))]  # fmt: skip
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
    """A report of a broken law takes its verdict along, as JSON: from a worker of pytest-xdist to the controller, too."""
    outcome: Any = yield
    verdict = item.stash.get(VERDICT, None)
    report = outcome.get_result()
    if verdict is not None and report.when == "call" and report.failed:
        from qkverify.results import line_of

        report.qkverify_verdict = line_of(verdict).decode()


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> Iterator[None]:
    """Before pytest prints what failed, each cause gets one whole counterexample; after it, the causes are summed up."""
    found = _causes_told_once(terminalreporter, config)
    yield
    if found:
        from qkverify.causes import summary

        terminalreporter.section("causes")
        for cause in found:
            terminalreporter.line(cause.headline())
        terminalreporter.line(summary(found))
    _left_out(terminalreporter, config)


def _causes_told_once(terminalreporter: Any, config: pytest.Config) -> list[Any]:
    """The causes of all laws that failed. In their reports stands the counterexample of the first law of each cause, and for the
    others a line with its name."""
    failed = {report: report.qkverify_verdict for report in terminalreporter.stats.get("failed", ())
              if hasattr(report, "qkverify_verdict")}  # fmt: skip
    if not failed:
        return []
    from qkverify.causes import causes
    from qkverify.results import verdict_of

    here = config.stash.get(FAILURES, {})
    verdicts = {report: verdict_of(line) for report, line in failed.items()}
    for report, verdict in verdicts.items():
        cell = f"{verdict.implementation}-{verdict.device}-{verdict.dtype}"
        if cell in here:  # not where workers of pytest-xdist checked it
            verdicts[report] = here[cell].settled([verdict])[0]
    found = causes(verdicts.values())
    for cause in found:
        for report, verdict in verdicts.items():
            if verdict is cause.first:
                report.longrepr = cause.text()
            elif any(verdict is other for other in cause.verdicts):
                report.longrepr = cause.same(verdict)
    return found


def _left_out(terminalreporter: Any, config: pytest.Config) -> None:
    """What could not run here, and what was not verified."""
    planned = config.stash.get(PLAN, None)
    if planned is not None and planned.unavailable:
        terminalreporter.section("unavailable here")
        for (name, device), reason in planned.unavailable.items():
            terminalreporter.line(f"{name} on {device}: {reason}")
    missed = _unverified(terminalreporter, planned) if planned is not None else {}
    if missed:
        terminalreporter.section("offered, not verified")
        for cell, names in missed.items():
            terminalreporter.line(f"{cell}: {', '.join(names)}")


def _unverified(terminalreporter: Any, planned: Any) -> dict[str, list[str]]:
    """What each cell offers and no law put to use, where all its laws were run (in other processes too)."""
    used: dict[str, list[str]] = {}
    for report in (one for several in terminalreporter.stats.values() for one in several):
        said = dict(getattr(report, "user_properties", ()))
        if getattr(report, "when", "") == "call" and "used" in said:
            used.setdefault(said["cell"], []).append(said["used"])
    if not used:
        return {}
    from qkverify.verification import applicable, law_book

    found = {}
    for cell in planned.cells:
        said_of = used.get(str(cell), [])
        names = set(cell.implementation.offers) - set(", ".join(said_of).split(", "))
        if names and len(said_of) >= len(applicable(law_book(), cell)):
            found[str(cell)] = sorted(names)
    return found


def _plan(config: pytest.Config) -> Any:
    if PLAN not in config.stash:
        from qkverify.errors import UsageError
        from qkverify.verification import plan

        try:
            config.stash[PLAN] = plan(
                config.getoption("--implementation"),
                config.getoption("--device"),
                config.getoption("--dtype"),
            )
        except UsageError as error:
            text = getattr(error, "text", "")
            raise pytest.UsageError(f"{text}\n{error}" if text else str(error)) from None
    return config.stash[PLAN]


def _writer(config: pytest.Config) -> Any:
    path = config.getoption("--results")
    if path is None:
        return None
    if WRITER not in config.stash:
        from qkverify.results import Writer

        config.stash[WRITER] = Writer(Path(path))
    return config.stash[WRITER]
