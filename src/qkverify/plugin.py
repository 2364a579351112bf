"""The pytest plugin: `--implementation`, `--dtype`, `--device`, `--results`, and one test for each law and cell.

Functions made by `@law` are collected like any other test and get one `run` for every cell; all other tests are left alone.
Options belong here and not in a conftest, so that `pytest --pyargs qkverify.properties` sees them from any repository. The
module is imported in every pytest session of an environment that has qkverify, so it imports the engine only when a law is
collected.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

PLAN: pytest.StashKey[Any] = pytest.StashKey()
WRITER: pytest.StashKey[Any] = pytest.StashKey()


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
    from qkverify.verification import check

    held: Any = pyfuncitem.funcargs["run"]
    verdict = check(law, held)
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


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    planned = config.stash.get(PLAN, None)
    if planned is not None and planned.unavailable:
        terminalreporter.section("unavailable here")
        for (name, device), reason in planned.unavailable.items():
            terminalreporter.line(f"{name} on {device}: {reason}")
    remarks = [
        (one.name, remark) for one in (planned.implementations if planned else ()) for remark in one.remarks
    ]
    if remarks:
        terminalreporter.section("detected by a first call")
        for name, remark in remarks:
            terminalreporter.line(f"{name}: {remark}")
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
