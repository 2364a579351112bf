"""A request to a worker and the events that answer it, within its limits."""

from __future__ import annotations

import select
import time

import msgspec

from qkverify.verification.isolation import deaths, exchange
from qkverify.verification.isolation.deaths import Death
from qkverify.verification.isolation.limits import Limits
from qkverify.verification.isolation.process import Worker

TICK = 0.1  # seconds between two looks at the clock and at the memory of workers


def over(worker: Worker, limits: Limits, *, compiled: bool = False, ending: bool = False) -> Death | None:
    """Which limit a worker is over, if it is."""
    highest = limits.memory_bytes
    if highest is not None and (held := worker.held_bytes()) > highest:
        return deaths.of_memory(held, highest)
    now = time.monotonic()
    calls, calling, since = worker.board.read()
    if ending:
        return deaths.of_end(limits.of_end) if now - worker.since > limits.of_end else None
    if calling:
        seconds = limits.of_call(compiled=compiled or worker.board.compiles())
        return deaths.of_call(seconds) if now - since > seconds else None
    quiet = limits.of_silence(compiled=compiled, loading=not calls)
    return deaths.of_silence(quiet) if now - max(since, worker.since) > quiet else None


def ask(
    worker: Worker, request: exchange.Request, limits: Limits, *, compiled: bool = False
) -> list[exchange.Event] | Death:
    """The events that answer a request, `Done` or `Refused` at their end; or how the worker died over it."""
    worker.send(exchange.request_line(request))
    events: list[exchange.Event] = []
    while True:
        select.select([worker.reading], [], [], TICK)
        dead = worker.has_died()
        try:
            events += map(exchange.event_of, worker.lines())
        except msgspec.DecodeError as error:
            return deaths.of_forgery(error)
        if events and isinstance(events[-1], exchange.Done | exchange.Refused):
            return events
        if dead:
            return deaths.of_words(worker.death)
        if death := over(worker, limits, compiled=compiled):
            worker.end()
            return death


def ask_a_new_one(
    request: exchange.Request, limits: Limits, *, threads: int | None = None, compiled: bool = False
) -> list[exchange.Event] | Death:
    """As `ask`, of a worker that answers nothing else."""
    worker = Worker(threads)
    try:
        return ask(worker, request, limits, compiled=compiled)
    finally:
        worker.close()
