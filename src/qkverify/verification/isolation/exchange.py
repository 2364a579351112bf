"""What judge and worker say to each other: one JSON object a line, checked when it is read.

A request asks for one thing; events answer it, the last of them being `Done` or `Refused`. Verdicts travel as the lines of a
results file.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, NoReturn, TypeAlias

import msgspec

from qkverify.contract import Finding, Implementation, adapters
from qkverify.contract.registry import TargetImportError
from qkverify.contract.signatures import parameters_of
from qkverify.errors import HarnessError, NothingVerified, UsageError
from qkverify.probes.conventions import Choice
from qkverify.results import Verdict, line_of
from qkverify.rounding import Precision
from qkverify.runs.raising_conditions import CallShape
from qkverify.verification.checking import Address, Cell


class CellAddress(msgspec.Struct, frozen=True):
    """How a worker finds a cell; `listed` are the known failures of a file: law -> (reason, place in the file)."""

    target: str
    name: str
    device: str
    dtype: str
    listed: dict[str, tuple[str, str]] = {}

    @classmethod
    def of(cls, cell: Cell) -> CellAddress:
        """The address of a cell."""
        known = cell.implementation.findings.items()
        listed = {law: (found.folder, found.listed) for law, found in known if found.listed}
        return cls(cell.target, cell.implementation.name, cell.device, cell.dtype, listed)

    def found(self) -> Address:
        """As `checking.cell_at` takes it."""
        findings = tuple((law, Finding(folder, listed=at)) for law, (folder, at) in self.listed.items())
        return self.target, self.name, self.device, self.dtype, findings


class Plan(msgspec.Struct, frozen=True, tag="plan"):
    """The cells of a target, a call of which may take so long."""

    target: str
    devices: list[str]
    dtypes: list[str]
    call_seconds: float


class Check(msgspec.Struct, frozen=True, tag="check"):
    """The verdicts of these laws of a cell, in their order. `silent`: failures are explained later, with those of others."""

    cell: CellAddress
    laws: list[str]
    files: list[str]
    examples: int
    silent: bool


class Explain(msgspec.Struct, frozen=True, tag="explain"):
    """What is said of the failures of a cell, whose calls returned or raised."""

    cell: CellAddress
    verdicts: list[Verdict]
    returned: list[CallShape]
    raised: list[CallShape]


class Describe(msgspec.Struct, frozen=True, tag="describe"):
    """The counterexample of a law whose worker died; `arguments` as `watch.Board.arguments` gave them. Nothing is called."""

    cell: CellAddress
    law: str
    files: list[str]
    death: str
    place: str
    arguments: bytes


class Repeat(msgspec.Struct, frozen=True, tag="repeat"):
    """The example over which a worker died once more; `arguments` as in `Describe`. Whether it holds is not asked."""

    cell: CellAddress
    law: str
    files: list[str]
    arguments: bytes


class Replay(msgspec.Struct, frozen=True, tag="replay"):
    """A stored counterexample once more, of the implementation that it names or of a target."""

    name: str
    target: str
    call_seconds: float


class Call(msgspec.Struct, frozen=True, tag="call"):
    """A plain call that the judge compares by itself: a method of `outside_run.ASKED`, and its arguments by `store.encode`."""

    cell: CellAddress
    method: str
    question: Any


class Recheck(msgspec.Struct, frozen=True, tag="recheck"):
    """A law on arguments that break it outside of the worker, by `store.encode`; `Described` answers if it is broken here."""

    cell: CellAddress
    law: str
    files: list[str]
    drawn: dict[str, Any]


class End(msgspec.Struct, frozen=True, tag="end"):
    """Nothing more is asked: threads are joined, what was registered with atexit runs."""


Request: TypeAlias = Plan | Check | Explain | Describe | Repeat | Replay | Call | Recheck | End


class ImplementationFacts(msgspec.Struct, frozen=True):
    """What the judge has to know of an implementation: the fields of `Implementation` of the same names."""

    name: str
    operation: str
    arrays: str
    dtypes: tuple[str, ...]
    devices: tuple[str, ...]
    requires: tuple[str, ...]
    inferred: tuple[str, ...]
    requires_with: dict[str, tuple[str, ...]]
    not_together: tuple[tuple[str, str], ...]
    parameters: dict[str, str]
    refused_dtypes: dict[str, str]
    remarks: tuple[str, ...]
    semantics: dict[str, str]
    offers: frozenset[str]
    unknown: tuple[str, ...]
    declared: bool
    compiles: bool
    summary: str
    file: str
    layout: str
    exclusive: tuple[tuple[str, ...], ...]
    precision: dict[str, str | Precision | None]
    differentiable: bool | None
    tile: tuple[int, ...]
    effort: dict[str, float]
    result_dtypes: dict[str, str]
    size_limits: dict[str, tuple[int | bool, int | bool]]
    mask_form: str
    always: tuple[str, ...]
    convention: str
    declared_in: str
    neutral_values: dict[str, Any] = {}
    adapters_text: str = ""
    function_name: str = ""
    needed: tuple[str, ...] = ()  # its parameters without a default
    own_gradients: bool = False  # whether it has a `vjp`, which stays where it is
    recorded: dict[str, str] = {}  # its findings, without what tells where each shows: key -> folder

    @classmethod
    def of(cls, implementation: Implementation) -> ImplementationFacts:
        """Those of an implementation."""
        facts = {name: getattr(implementation, name) for name in _same_fields(cls)}
        return cls(
            **facts,
            neutral_values={name: _plain(value) for name, value in implementation.neutral.items()},
            adapters_text=adapters.written(implementation.adapters),
            function_name=getattr(implementation.function, "__name__", ""), needed=_needed(implementation),
            own_gradients=implementation.vjp is not None,
            recorded={key: known.folder for key, known in implementation.findings.items()},
        )  # fmt: skip

    def standing_in(self) -> Implementation:
        """An implementation that says the same, and that cannot be called."""
        facts = {name: getattr(self, name) for name in _same_fields(type(self))}
        function = _elsewhere(self.function_name, self.needed)
        pull = _elsewhere("vjp", ()) if self.own_gradients else None
        findings = {key: Finding(folder) for key, folder in self.recorded.items()}
        said = adapters.split(f"{self.name} {self.adapters_text}")[1] if self.adapters_text else {}
        return replace(
            Implementation(name=self.name, function=function, vjp=pull), findings=findings, neutral=self.neutral_values,
            adapters=said, **facts,
        )  # fmt: skip


def _same_fields(facts: type[ImplementationFacts]) -> list[str]:
    """The fields that `Implementation` has under the same names."""
    return [name for name in facts.__struct_fields__ if name in Implementation.__dataclass_fields__]


def _plain(value: Any) -> Any:
    """What is passed for an option, if JSON has it; nothing else than words of ours is compared with it."""
    return value if isinstance(value, str | int | bool | None) else repr(value)


def _needed(implementation: Implementation) -> tuple[str, ...]:
    try:
        parameters = parameters_of(implementation.function)
    except (ValueError, TypeError):  # it shows none
        return ()
    return tuple(
        name for name, parameter in parameters.items() if parameter.default is inspect.Parameter.empty
    )


def _elsewhere(name: str, needed: Sequence[str]) -> Callable[..., NoReturn]:
    """A function of this name that must be given these parameters, and that lives in another process."""

    def elsewhere(*arguments: Any, **keywords: Any) -> NoReturn:
        raise HarnessError("an implementation was called in the process of the judge")

    parameters = [
        inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY)
        for n in dict.fromkeys(needed)
        if n.isidentifier()
    ]
    rest = inspect.Parameter("others", inspect.Parameter.VAR_KEYWORD)
    elsewhere.__name__ = name or "elsewhere"
    elsewhere.__signature__ = inspect.Signature([*parameters, rest])  # type: ignore[attr-defined]
    return elsewhere


class Planned(msgspec.Struct, frozen=True, tag="planned"):
    """The answer to `Plan`. Cells are (number of the implementation, device, dtype)."""

    implementations: list[ImplementationFacts]
    cells: list[tuple[int, str, str]]
    unavailable: list[tuple[str, str, str]]
    idle: dict[str, str]


class Began(msgspec.Struct, frozen=True, tag="began"):
    """A cell's conventions are known."""

    conventions: dict[str, Choice]


class Checking(msgspec.Struct, frozen=True, tag="checking"):
    """A law is checked from now on."""

    law: str


class Judged(msgspec.Struct, frozen=True, tag="judged"):
    """The verdict of a law."""

    verdict: Verdict


class Calls(msgspec.Struct, frozen=True, tag="calls"):
    """The calls of a cell so far."""

    returned: list[CallShape]
    raised: list[CallShape]


class Described(msgspec.Struct, frozen=True, tag="described"):
    """The answer to `Describe`: a verdict whose counterexample is meant."""

    verdict: Verdict


class Replayed(msgspec.Struct, frozen=True, tag="replayed"):
    """The answer to `Replay`: the failure's message, or nothing if the law holds; and of what cell, for further questions."""

    message: str
    cell: CellAddress
    facts: ImplementationFacts
    conventions: dict[str, Choice]


class Returned(msgspec.Struct, frozen=True, tag="returned"):
    """The answer to `Call`: results by `store.encode`, or in which words the call was refused or raised what kind of error."""

    returned: Any = None
    refused: str | None = None
    raised: str | None = None
    kind: str = ""


class Done(msgspec.Struct, frozen=True, tag="done"):
    """The request is answered."""


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """An error by whose fault it is: "usage", "nothing" (was verified), "import" (with the target's traceback) or "harness"."""

    kind: str
    text: str
    traceback: str = ""

    def error(self) -> Exception:
        """The same error, in the judge."""
        if self.kind == "harness":
            return HarnessError(self.text)
        if self.kind == "import":
            return TargetImportError.told(self.text, self.traceback)
        return NothingVerified(self.text) if self.kind == "nothing" else UsageError(self.text)


Event: TypeAlias = (
    Planned | Began | Checking | Judged | Calls | Described | Replayed | Returned | Done | Refused
)

_encoder = msgspec.json.Encoder()
_events = msgspec.json.Decoder(Event)
_requests = msgspec.json.Decoder(Request)


def request_line(request: Request) -> bytes:
    """A request without its line end."""
    if isinstance(request, Explain):
        verdicts = _encoder.encode([msgspec.Raw(line_of(verdict).strip()) for verdict in request.verdicts])
        rest = msgspec.to_builtins(msgspec.structs.replace(request, verdicts=[]))
        return _encoder.encode({**rest, "verdicts": msgspec.Raw(verdicts)})
    return _encoder.encode(request)


def request_of(line: bytes) -> Request:
    """The request of a line."""
    request: Request = _requests.decode(line)
    return request


def event_line(event: Event) -> bytes:
    """An event without its line end."""
    if isinstance(event, Judged | Described):
        kind = type(event).__struct_config__.tag
        return _encoder.encode({"type": kind, "verdict": msgspec.Raw(line_of(event.verdict).strip())})
    return _encoder.encode(event)


def event_of(line: bytes) -> Event:
    """The event of a line. Raises msgspec.DecodeError for what is none."""
    event: Event = _events.decode(line)
    return event


def verdicts_in(events: Iterable[Event]) -> list[Verdict]:
    """The verdicts among events."""
    return [event.verdict for event in events if isinstance(event, Judged)]
