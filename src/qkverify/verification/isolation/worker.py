"""What a worker does: it answers the judge's requests, one after the other, until it is told to end."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import FunctionType
from typing import Any

from qkverify import foreign_text
from qkverify.contract import messages, process_settings, registry
from qkverify.contract.registry import TargetImportError
from qkverify.counterexamples import store
from qkverify.counterexamples.failures import Failures
from qkverify.errors import ContractError, HarnessError, NothingVerified, UnsupportedCase, UsageError
from qkverify.results import Verdict
from qkverify.runs import concurrent_calls, watch
from qkverify.runs.run import Run
from qkverify.verification import checking, process_changes
from qkverify.verification.isolation import deaths, exchange
from qkverify.verification.isolation.bare_call import bare
from qkverify.verification.isolation.exchange import Event, Request
from qkverify.verification.isolation.outside_run import ASKED, FORWARD, KINDS
from qkverify.verification.replay_command import replayed_cell


def serve(token: str, requests: int, answers: int, board: watch.Board) -> None:
    """Answer until the end of requests."""
    watch.watched_by(board)
    process, mark = os.getpid(), token.encode() + b" "

    def send(event: Event) -> None:
        if os.getpid() != process:
            os._exit(0)
        data = mark + exchange.event_line(event) + b"\n"
        while data:
            data = data[os.write(answers, data) :]

    with os.fdopen(requests, "rb") as lines:
        for line in lines:
            request = exchange.request_of(line)
            board.show(calling=False)
            _answer(request, send)
            if isinstance(request, exchange.End):
                os._exit(0)


def _answer(request: Request, send: Callable[[Event], None]) -> None:
    try:
        for event in _answers(request):
            send(event)
        send(exchange.Done())
    except TargetImportError as error:
        send(exchange.Refused("import", str(error), error.text))
    except NothingVerified as error:
        send(exchange.Refused("nothing", str(error)))
    except UsageError as error:
        send(exchange.Refused("usage", str(error)))
    except HarnessError as error:
        send(exchange.Refused("harness", str(error)))
    except BaseException as error:
        where = "".join(traceback.format_exception(error))
        send(exchange.Refused("harness", foreign_text.shown(where, lines=200, characters=20_000)))


def _answers(request: Request) -> Iterator[Event]:
    if isinstance(request, exchange.Plan):
        yield _planned(request)
    elif isinstance(request, exchange.Check):
        yield from _checked(request)
    elif isinstance(request, exchange.Explain):
        yield from map(exchange.Judged, _explained(request))
    elif isinstance(request, exchange.Replay):
        watch.call_seconds = request.call_seconds
        yield _replayed(request)
    elif isinstance(request, exchange.Describe):
        yield exchange.Described(deaths.described(request))
    elif isinstance(request, exchange.Repeat):
        _repeat(request)
    elif isinstance(request, exchange.Call):
        yield _returned(request)
    elif isinstance(request, exchange.Recheck):
        yield from map(exchange.Described, _rechecked(request))
    else:
        threading._shutdown()  # type: ignore[attr-defined]  # as the interpreter does at its end
        atexit._run_exitfuncs()


def _planned(request: exchange.Plan) -> exchange.Planned:
    watch.call_seconds = request.call_seconds
    try:
        registry.find(request.target)
    except KeyboardInterrupt as error:  # nobody pressed Ctrl-C: the target raises it
        raise TargetImportError(request.target, error) from error
    planned = checking.plan([request.target], request.devices, request.dtypes)
    numbers = {id(implementation): n for n, implementation in enumerate(planned.implementations)}
    for cell in planned.cells:
        checking.remember(cell)
    return exchange.Planned(
        [exchange.ImplementationFacts.of(implementation) for implementation in planned.implementations],
        [(numbers[id(cell.implementation)], cell.device, cell.dtype) for cell in planned.cells],
        [(name, device, reason) for (name, device), reason in planned.unavailable.items()],
        planned.idle,
    )


def _checked(request: exchange.Check) -> Iterator[Event]:
    cell = checking.cell_at(request.cell.found())
    yield exchange.Began(checking.conventions_of(cell))
    failures, verdicts = Failures(silent=request.silent), []
    for law in checking.laws_named(request.laws, request.files):
        yield exchange.Checking(law.name)
        verdict = checking.check(
            law, checking.prepare(cell), failures=failures, max_examples=request.examples
        )
        verdicts.append(verdict)
        yield exchange.Judged(verdict)
    yield exchange.Calls(sorted(failures.returned, key=repr), sorted(failures.raised, key=repr))
    settled = verdicts if request.silent else failures.settled(verdicts)
    settled = process_changes.blamed(settled, process_settings.taken(cell.implementation.name))
    yield from (
        exchange.Judged(new)
        for new, old in zip(settled, verdicts, strict=True)
        if new is not old and new != old
    )


def _repeat(request: exchange.Repeat) -> None:
    (law,) = checking.laws_named([request.law], request.files)
    with contextlib.suppress(Exception):
        law.replay(
            checking.prepare(checking.cell_at(request.cell.found())), watch.last_arguments(request.arguments)
        )


def _returned(request: exchange.Call) -> exchange.Returned:
    """The results of a plain call. What it says and which settings it changes, the laws have told."""
    if request.method not in ASKED:
        raise HarnessError(f"{request.method} is no plain call")
    run = checking.prepare(checking.cell_at(request.cell.found()))
    arguments, options = store.decode(request.question)
    if request.method in FORWARD:
        _bare(run, getattr(arguments[0], "mode", "") if arguments else "")
    name = run.implementation.name
    try:
        with messages.collected(), process_settings.noted_of(name), run.activated():
            run.begin_example()
            watch.example({})
            returned = getattr(run, request.method)(*arguments, **options)
        return exchange.Returned(returned=store.encode(returned))
    except UnsupportedCase as refusal:
        return exchange.Returned(refused=foreign_text.shown(refusal))
    except Exception as error:
        ours = isinstance(error, ContractError)
        text = foreign_text.shown(error) if ours else foreign_text.of_error(error)
        return exchange.Returned(
            raised=text, kind=next(kind.__name__ for kind in type(error).__mro__ if kind in KINDS)
        )
    finally:
        messages.taken(name)
        process_settings.taken(name)


def _bare(run: Run, mode: str) -> None:
    """Let a run call a plain function in a thread of its own; others have our own code around them anyway."""
    implementation = run.implementation
    if (
        isinstance(implementation.function, FunctionType)
        and run.device == "cpu"
        and concurrent_calls.unfit(run) is None
    ):
        function = bare(implementation.function, functools.partial(run.framework.inference, mode))
        run.implementation = replace(implementation, function=function)


def _replayed(request: exchange.Replay) -> exchange.Replayed:
    message, cell = replayed_cell(request.name, request.target)
    checking.remember(cell)
    facts = exchange.ImplementationFacts.of(cell.implementation)
    return exchange.Replayed(message, exchange.CellAddress.of(cell), facts, checking.conventions_of(cell))


def _rechecked(request: exchange.Recheck) -> list[Verdict]:
    """The verdict of a law on these arguments, if it is broken here."""
    cell = checking.cell_at(request.cell.found())
    (law,) = checking.laws_named([request.law], request.files)
    drawn = {name: store.decode(value) for name, value in request.drawn.items()}
    verdict = checking.rechecked(law, checking.prepare(cell), drawn)
    return [] if verdict is None else [verdict]


def _explained(request: exchange.Explain) -> list[Verdict]:
    calls: Any = set(request.returned), set(request.raised)
    return checking.explaining(request.cell.found(), request.verdicts, *calls)
