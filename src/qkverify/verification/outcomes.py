"""What is said of a cell once its laws were checked. The rule stands here alone; screen, pytest, Python, JUnit and page ask it.

    BROKEN          a law is broken, or a call crashed, hung or failed in the harness
    NOT VERIFIED    nothing, or next to nothing, was put to the test; `reason` says why
    PARTLY          the laws hold for what was verified; `not_verified` names what was not
    HOLDS           the laws hold, and what is offered was verified

A law holds of what was put to the test: of results that were compared with the reference's numbers (see `comparisons`).
Nothing else can show that a function computes what it should.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from qkverify.contract import unknown_parameters
from qkverify.contract.operations import DESCRIBED
from qkverify.results import OUTCOMES_BROKEN, ImplementationInfo, Record, Tested, Verdict, of_kind
from qkverify.units import margin, number_of
from qkverify.verification import unverified_options
from qkverify.verification.laws import PROFILES

Word = Literal["broken", "not verified", "holds for what was verified", "holds"]
BROKEN: Word = "broken"
NOT_VERIFIED: Word = "not verified"
PARTLY: Word = "holds for what was verified"
HOLDS: Word = "holds"

EXIT_CODES: Mapping[Word, int] = {HOLDS: 0, PARTLY: 0, BROKEN: 1, NOT_VERIFIED: 4}
# Compared results, of all laws together, that are next to nothing if most laws met no problem: what one law gets at glance.
FEW = PROFILES["glance"]
ONE = " in 1 configuration"
NAMED = 5  # cells with one and the same outcome


@dataclass(frozen=True)
class CellOutcome:
    """The word of one cell. `not_verified` and `findings` are phrases for a list, `compared` counts examples whose results were
    compared with the reference; None where the file is too old to say."""

    word: Word
    reason: str = ""
    not_verified: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()
    compared: int | None = None
    selected: tuple[int, int] | None = None  # laws that were run, of so many; None if all were
    held: int = 0  # laws that hold
    looser: tuple[str, ...] = ()  # what is said of models of rounding that were granted
    applied: bool = True  # False where the implementation offers nothing that the laws speak of

    def exit_code(self, strict: bool = False) -> int:
        """0 if the laws hold, 1 if one is broken, 4 if nothing was verified; with `strict` 4 if anything was not."""
        return EXIT_CODES[NOT_VERIFIED] if strict and self.word == PARTLY else EXIT_CODES[self.word]

    def __str__(self) -> str:
        return self.sentence()

    def sentence(self, where: str = "", broken: str = "") -> str:
        """The outcome in one line; `where` says of how many cells: " in 2 cells", `broken` how much: "1 cause, 14 laws"."""
        missing = f"; not verified: {', '.join(self.not_verified)}" if self.not_verified else ""
        granted = "".join(f"; {sentence}" for sentence in self.looser)
        if self.word == BROKEN:
            return f"broken: {broken or number_of(len(set(self.broken)), 'law')}{granted}{missing}"
        if self.word == NOT_VERIFIED:
            return f"NOT VERIFIED{where if where != ONE else ''}: {self.reason}"
        other = "other " if self.findings else ""
        which = f"all {other}laws hold" if self.word == HOLDS else f"{other}laws hold for what was verified"
        if self.selected is not None:
            which = f"{number_of(self.held, f'{other}selected law')} hold{'s' if self.held == 1 else ''}"
        known = ""
        if self.findings:
            known = f"; {number_of(len(self.findings), 'known failure')}: {', '.join(self.findings)}"
        return f"{which}{where}{granted}{known}{missing}"


ALL_HOLDS = CellOutcome(HOLDS)


def of_cell(
    verdicts: Sequence[Verdict],
    *,
    operation: str = "attention",
    offers: Collection[str] = (),
    unknown: Sequence[str] = (),
    requires: Sequence[str] = (),
    laws: int | None = None,
) -> CellOutcome:
    """The outcome of one cell from the verdicts of its laws, what it offers and what it requires.

    `laws` is how many laws its operation has: where fewer than half were run, because some were selected, nothing is said of
    what the others would have verified.
    """
    compared, run = _compared(verdicts), len({v.law for v in verdicts})
    selected = (run, laws) if laws is not None and run < laws else None
    few = selected is not None and 2 * run < selected[1]
    broken = tuple(v.law for v in verdicts if v.outcome in OUTCOMES_BROKEN)
    missing = _unknown(operation, offers, unknown)
    missing += ("results (none was compared with the reference)",) * (few and compared == 0)
    missing += () if selected else _unused(verdicts, offers)
    looser = tuple(dict.fromkeys(each.sentence for v in verdicts for each in v.looser))
    if broken:
        return CellOutcome(BROKEN, "", missing, (), broken, compared, selected, looser=looser)
    reason = _why_nothing(verdicts, requires) or (None if few else _why_too_little(verdicts, requires))
    if reason:
        applied = any(v.tested is not None for v in verdicts)
        return CellOutcome(NOT_VERIFIED, reason, compared=compared, selected=selected, applied=applied)
    known = {v.law: v.reason for v in verdicts if v.outcome == "finding"}
    findings = tuple(f"{law} ({link})" for law, link in known.items())
    held = len({v.law for v in verdicts if v.outcome == "passed"})
    word = PARTLY if missing else HOLDS
    return CellOutcome(word, "", missing, findings, (), compared, selected, held, looser)


def margin_in_words(verdicts: Sequence[Verdict]) -> str:
    """The largest margin of the laws that hold; without one "exact" if all compare bit for bit, else "holds"; "" of no law."""
    held = [verdict for verdict in verdicts if verdict.outcome == "passed"]
    margins = [verdict.margin for verdict in held if verdict.margin is not None]
    if margins:
        return margin(max(margins))
    return ("exact" if all(verdict.exact for verdict in held) else "holds") if held else ""


def without_cell(reason: str) -> CellOutcome:
    """Of a target that has no cell here: a device or a framework is missing, or other dtypes were asked for."""
    return CellOutcome(NOT_VERIFIED, f"it cannot run here: {reason}")


def exit_code(outcomes: Collection[CellOutcome], strict: bool = False) -> int:
    """That of several cells: broken (1) over not verified (4) over 0. Without any cell nothing was verified."""
    codes = {outcome.exit_code(strict) for outcome in outcomes} or {EXIT_CODES[NOT_VERIFIED]}
    return next(code for code in (EXIT_CODES[BROKEN], EXIT_CODES[NOT_VERIFIED], 0) if code in codes)


def of_cell_of(info: ImplementationInfo | None, verdicts: Sequence[Verdict]) -> CellOutcome:
    """The outcome of a recorded cell."""
    if info is None:
        return of_cell(verdicts)
    described = DESCRIBED.get(info.operation)
    offers = set(info.offers)
    if described is not None and not described.differentiable:
        offers.discard("gradients")  # files from before that was known say so of whatever torch computes
    return of_cell(
        verdicts, operation=info.operation, offers=offers, unknown=info.unknown, requires=info.requires
    )


def of_records(records: Sequence[Record]) -> dict[str, CellOutcome]:
    """The outcome of each recorded cell that was run, by the latest verdict of each law."""
    infos = {info.name: info for info in of_kind(records, ImplementationInfo)}
    cells: dict[tuple[str, str, str], dict[str, Verdict]] = {}
    for verdict in of_kind(records, Verdict):
        cells.setdefault((verdict.implementation, verdict.device, verdict.dtype), {})[verdict.law] = verdict
    return {
        "-".join(cell): of_cell_of(infos.get(cell[0]), list(laws.values()))
        for cell, laws in cells.items()
        if any(verdict.outcome != "unavailable" for verdict in laws.values())
    }


def lines(outcomes: Mapping[str, CellOutcome], broken: str = "") -> list[str]:
    """What is said of several cells at the end of a run: of each where they differ, then of all in one line.

    `broken` counts what is broken in other words than by laws: by causes.
    """
    alike: dict[CellOutcome, list[str]] = {}
    for cell, outcome in outcomes.items():
        alike.setdefault(replace(outcome, compared=None), []).append(cell)
    last = _together(list(outcomes.values()), broken)
    if len(alike) == 1:
        return [last]
    briefly = ((replace(outcome, looser=_looser([outcome])), cells) for outcome, cells in alike.items())
    return [*(f"{_names(cells)}: {outcome}" for outcome, cells in briefly), last]


def _names(cells: Sequence[str]) -> str:
    rest = f" and {len(cells) - NAMED} more" if len(cells) > NAMED else ""
    return ", ".join(cells[:NAMED]) + rest


def _together(outcomes: Sequence[CellOutcome], broken: str) -> str:
    """One line for cells with these outcomes: the gravest word, and what it is about."""
    words, cells = [outcome.word for outcome in outcomes], number_of(len(outcomes), "configuration")
    missing, findings = (
        tuple(dict.fromkeys(_every(outcomes, name))) for name in ("not_verified", "findings")
    )
    looser = _looser(outcomes)
    if BROKEN in words:
        every = _every(outcomes, "broken")
        return CellOutcome(BROKEN, "", missing, (), every, looser=looser).sentence("", broken)
    if NOT_VERIFIED in words and len({outcome.reason for outcome in outcomes}) > 1:
        return f"NOT VERIFIED: {words.count(NOT_VERIFIED)} of {cells}"
    held = max(outcome.held for outcome in outcomes)
    together = replace(outcomes[0], not_verified=missing, findings=findings, held=held, looser=looser)
    return replace(together, word=PARTLY if missing else together.word).sentence(f" in {cells}")


def _looser(outcomes: Sequence[CellOutcome]) -> tuple[str, ...]:
    """What is said of looser models in the last lines: of how many; the sentences stand at each cell's head."""
    granted = sum(bool(outcome.looser) for outcome in outcomes)
    whose = "" if len(outcomes) == 1 else f"{granted} of them "
    return (f"{whose}judged by a looser model of rounding than a fused kernel's",) if granted else ()


def _every(outcomes: Sequence[CellOutcome], name: str) -> tuple[str, ...]:
    return tuple(phrase for outcome in outcomes for phrase in getattr(outcome, name))


def _compared(verdicts: Sequence[Verdict]) -> int | None:
    """Examples whose results were compared with the reference; None where one of the verdicts does not say."""
    judged = [v for v in verdicts if v.outcome in ("passed", "finding")]
    return None if any(v.tested is None for v in judged) else sum(_tested(v).results for v in verdicts)


def _tested(verdict: Verdict) -> Tested:
    return verdict.tested or Tested()


def _why_nothing(verdicts: Sequence[Verdict], requires: Sequence[str]) -> str:
    """Why no law judged anything; empty where one did."""
    if any(v.outcome in ("passed", "finding") for v in verdicts):
        return ""
    ran = [v for v in verdicts if v.outcome != "unavailable"]
    if not ran:
        return verdicts[0].reason if verdicts else "no law was run on it"
    tried = [v for v in ran if v.tested is not None]
    if not tried:
        (reason, _), *_ = Counter(v.reason for v in ran).most_common(1)
        return f"no law applies: {reason}"
    return _why_not_compared(tried, requires)


def _why_too_little(verdicts: Sequence[Verdict], requires: Sequence[str]) -> str:
    """Why what passed says nothing: too few results were compared with the reference. Empty where they are enough."""
    compared = _compared(verdicts)
    if compared is None:
        return ""
    if not compared:
        return _why_not_compared([v for v in verdicts if v.tested is not None], requires)
    most = max(_tested(v).results for v in verdicts)
    if most == 1:  # Hypothesis begins with the simplest problem
        return (
            f"only {number_of(compared, 'result')} compared with the reference, at most one by each law, "
            "on its simplest problem; take a profile with more examples"
        )
    unmet, met = _met(verdicts)
    if unmet > met and compared < FEW:
        why = _refusals(verdicts) or f"it takes none of the generated problems{_requires(requires)}"
        return (
            f"only {number_of(compared, 'result')} compared with the reference, and {unmet} of "
            f"{number_of(unmet + met, 'law')} had no problem to check: {why}"
        )
    return ""


def _why_not_compared(tried: Sequence[Verdict], requires: Sequence[str]) -> str:
    """Why none of these laws compared a result with the reference."""
    calls = sum(_tested(v).calls for v in tried)
    if not calls:
        return f"no generated problem reached the function{_requires(requires)}"
    refusals = _refusals(tried)
    if refusals:
        return refusals
    unmet, met = _met(tried)
    if unmet > met:
        return (
            f"{unmet} of {number_of(unmet + met, 'law')} had no problem that it takes{_requires(requires)}; "
            "the others compared no result with the reference"
        )
    return (
        f"{number_of(len(tried), 'law')} called it {number_of(calls, 'time')}, but no result was compared with the "
        "reference (a result of zeros, and attention to a single key, do not count)"
    )


def _requires(requires: Sequence[str]) -> str:
    return f": it requires {', '.join(requires)}" if requires else ""


def _refusals(verdicts: Sequence[Verdict]) -> str:
    """ "it refused 40 of 43 calls: 'not today'", where it refused most of them."""
    calls, refused = (sum(getattr(_tested(v), name) for v in verdicts) for name in ("calls", "refused"))
    if 2 * refused <= calls:
        return ""
    words = next((v.tested.refusal for v in verdicts if v.tested and v.tested.refusal), "")
    share = f"all {calls:,}" if refused == calls else f"{refused:,} of {calls:,}"
    return f"it refused {share} calls" + (f": '{words}'" if words else "")


def _met(verdicts: Sequence[Verdict]) -> tuple[int, int]:
    """How many of the laws that were tried met no problem that the function took, and how many did."""
    tried = [v for v in verdicts if v.tested is not None]
    unmet = sum(v.outcome == "not offered" for v in tried)
    return unmet, len(tried) - unmet


def _unknown(operation: str, offers: Collection[str], unknown: Sequence[str]) -> tuple[str, ...]:
    """The parameters that no law knows, each with what it may have been meant to be."""
    return tuple(
        f"{name} ({unknown_parameters.sentence(name, operation, offers, 'unknown')})"
        for name in unknown
        if not name.startswith("*")
    )


def _unused(verdicts: Sequence[Verdict], offers: Collection[str]) -> tuple[str, ...]:
    """What the laws, all of which were run, say nothing of, each with the reason."""
    unused = unverified_options.unverified(offers, verdicts)
    names = [f"{name} (offered, but no law used it)" for name in unused]
    compared = _gradients_compared(verdicts) != 0 or any(
        v.outcome in OUTCOMES_BROKEN and "gradient of" in v.reason for v in verdicts
    )
    if "gradients" in offers and "gradients" not in unused and not compared:
        names.append("gradients (none was compared with the reference)")
    if refusals := _refusals(verdicts):
        names.append(f"most problems ({refusals})")
    unmet, met = _met(verdicts)
    if unmet > met:
        names.append(f"{unmet} of {number_of(unmet + met, 'law')} (they had no problem that it takes)")
    return tuple(names)


def _gradients_compared(verdicts: Sequence[Verdict]) -> int | None:
    return None if _compared(verdicts) is None else sum(_tested(v).gradients for v in verdicts)
