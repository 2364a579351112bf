"""Broken laws by what broke them: one mistake in a kernel breaks twenty laws, in every dtype.

    for cause in causes(verdicts):
        cause.first                   the verdict whose counterexample explains most: it is shown in full
        cause.others                  the names of the other laws that the same cause breaks

Laws of one implementation on one device have one cause where their counterexamples share

1. the exception: type, message (whatever numbers it holds) and line; or a condition that separates all calls that raised;
2. the diagnosis, or the same mistake seen in the gradients;
3. the wrong value: the output of a problem of each is not the reference's, so a law about something else (empty axes, calls
   that are repeated) fails for that alone; or, the values being right, the wrong gradient;
4. the sentence of the failure, or the law itself; in several dtypes, that of the one that explains it.

Everything is read off the recorded verdicts. Of files from before it was recorded why a law failed, 4 alone is known.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from qkverify import units
from qkverify.problem.attention_problem import PRINTED
from qkverify.results import OUTCOMES_BROKEN, Verdict
from qkverify.runs.raising_conditions import remedy

ABOUT_CALLS = ("contract", "calls")  # families whose laws say least of a wrong value
NAMED = 4  # laws by name; the others are counted
LOOKS_LIKE = "  looks like         "  # how the line of a message begins

ASPECT = re.compile(
    "the (?:result equals|log-sum-exp equals(?: that of)?|gradients are(?: those of)?) ", re.IGNORECASE
)

Key = tuple[str, ...]


@dataclass(frozen=True)
class Cause:
    """Verdicts that failed for one reason; the first one explains it best."""

    verdicts: tuple[Verdict, ...]

    @property
    def first(self) -> Verdict:
        return self.verdicts[0]

    @property
    def laws(self) -> list[str]:
        """The names of the laws that it breaks, that of the first verdict first."""
        return list(dict.fromkeys(verdict.law for verdict in self.verdicts))

    @property
    def others(self) -> list[str]:
        return self.laws[1:]

    @property
    def dtypes(self) -> list[str]:
        return list(dict.fromkeys(verdict.dtype for verdict in self.verdicts if verdict.dtype))

    @property
    def condition(self) -> str:
        """When calls raise, if that is known of all of them: "G != H"."""
        conditions = _conditions(self.verdicts)
        return conditions[0] if conditions else ""

    def lines(self) -> list[str]:
        """What the first counterexample does not say: when it raises, and what else the cause breaks."""
        lines = []
        if self.condition:
            many = units.number_of(len(self.laws), "law")
            lines.append(f"  raises             whenever {self.condition} ({many}): {remedy(self.condition)}")
        if self.others or len(self.dtypes) > 1:
            lines.append(f"  also broken by this: {self.also()}")
        return lines

    def also(self) -> str:
        """The other laws, and the dtypes where there are several: "13 laws: a, b and 11 more (float32, float64)"."""
        where = f" ({', '.join(self.dtypes)})" if len(self.dtypes) > 1 else ""
        if not self.others:
            return f"the same law in other dtypes{where}"
        named = self.others if len(self.others) <= NAMED + 1 else self.others[:NAMED]
        more = len(self.others) - len(named)
        names = ", ".join(named) + (f" and {more} more" if more else "")
        return f"{units.number_of(len(self.others), 'law')}: {names}{where}"

    def same(self, verdict: Verdict) -> str:
        """One line for another verdict of the cause, whose counterexample is not shown."""
        example, where = (
            verdict.counterexample,
            "" if verdict.dtype == self.first.dtype else f" in {self.first.dtype}",
        )
        again = f"; again: qkverify replay {example.replay}" if example and example.replay else ""
        return f"{verdict.law}: same cause as {self.first.law}{where}{again}"

    def headline(self) -> str:
        """The cause in a line: what it looks like, when it raises, or what was raised; and how many laws it breaks."""
        example = self.first.counterexample
        looks = (example.diagnosis, example.exception) if example else ()
        about = next((text for text in looks if text), self.first.sentence).splitlines()[0]
        about = f"raises whenever {self.condition}: {about}" if self.condition else about
        return f"{units.number_of(len(self.laws), 'law')}, {self.first.law} first: {about}"

    def text(self) -> str:
        """The whole block: the first counterexample, and the lines that it lacks."""
        return "\n".join([_message(self.first), *self.lines()])


def causes(verdicts: Iterable[Verdict]) -> list[Cause]:
    """The causes of all that is broken, in the order in which their first law stands."""
    broken = [verdict for verdict in verdicts if verdict.outcome in OUTCOMES_BROKEN]
    groups: dict[Key, list[Verdict]] = {}
    for verdict in broken:
        groups.setdefault(_key(verdict), []).append(verdict)
    merged = _undiagnosed_joined(_alike_in_condition(groups))
    return [Cause(tuple(sorted(group, key=_telling))) for group in merged.values()]


def summary(groups: Sequence[Cause]) -> str:
    """ "1 cause, 14 laws": every law counted once, in however many dtypes it is broken."""
    laws = len({(v.implementation, v.device, v.law) for cause in groups for v in cause.verdicts})
    return f"{units.number_of(len(groups), 'cause')}, {units.number_of(laws, 'law')}"


def diagnosed(message: str, sentence: str) -> str:
    """A message whose second line is the diagnosis, or none; whatever it said before."""
    first, *rest = [line for line in message.split("\n") if not line.startswith(LOOKS_LIKE)]
    return "\n".join([first, *([LOOKS_LIKE + sentence] if sentence else []), *rest])


def settled(verdict: Verdict, **changes: object) -> Verdict:
    """The verdict with other facts in its counterexample, which its message says."""
    if verdict.counterexample is None:
        return verdict
    example = msgspec.structs.replace(verdict.counterexample, **changes)
    example = msgspec.structs.replace(example, message=diagnosed(example.message, example.diagnosis))
    return msgspec.structs.replace(verdict, counterexample=example)


def _message(verdict: Verdict) -> str:
    example = verdict.counterexample
    return example.message if example else f"{verdict.law}: {verdict.outcome}: {verdict.reason}"


def _key(verdict: Verdict) -> Key:
    """What verdicts of one cause have in common."""
    where, example = (verdict.implementation, verdict.device), verdict.counterexample
    if example is None:
        return (*where, verdict.outcome, numberless(verdict.reason) or verdict.law)
    if example.exception:
        return (*where, "raises", numberless(example.exception), example.line)
    if example.diagnosis:
        return (*where, "diagnosis", mistake_in(example.diagnosis))
    if example.value_wrong or example.gradient_wrong:
        return (*where, "value" if example.value_wrong else "gradient")
    if example.got and not example.location:  # a sentence, or what was raised before that was recorded
        return (*where, "says", numberless(example.got))
    return (*where, "law", verdict.law)


def mistake_in(diagnosis: str) -> str:
    """The mistake that a diagnosis names, whether it was seen in the result or in the gradients of that result."""
    named = ASPECT.sub("", diagnosis, count=1)
    return named.replace("otherwise they are right", "otherwise it is right")


def numberless(text: str) -> str:
    """A text whatever numbers and addresses it holds: sizes differ from problem to problem."""
    return re.sub(r"0x[0-9a-f]+|\d+(?:\.\d+)?", "#", text)


def _alike_in_condition(groups: dict[Key, list[Verdict]]) -> dict[Key, list[Verdict]]:
    """Exceptions of several texts that one condition separates from all calls that returned are one cause."""
    joined: dict[Key, list[Verdict]] = {}
    for key, group in groups.items():
        conditions = _conditions(group) if key[2] == "raises" else []
        joined.setdefault((*key[:2], "raises when", conditions[0]) if conditions else key, []).extend(group)
    return joined


def _undiagnosed_joined(groups: dict[Key, list[Verdict]]) -> dict[Key, list[Verdict]]:
    """What nothing explains joins the cause that breaks the same law, in the same way, in another dtype, if there is one such.

    What is broken in this dtype alone joins those, unless something is explained in this dtype: then it may be something else.
    """
    diagnosed_keys = [key for key in groups if key[2] == "diagnosis"]
    joined: dict[Key, list[Verdict]] = {key: list(group) for key, group in groups.items()}
    for key, group in groups.items():
        explaining = [other for other in groups if other[:2] == key[:2] and _may_explain(other, key)]
        homes = {id(v): _homes(v, {other: groups[other] for other in explaining}) for v in group}
        certain = Counter(found[0] for found in homes.values() if len(found) == 1)
        explained = {v.dtype for other in diagnosed_keys if other[:2] == key[:2] for v in groups[other]}
        elsewhere = {v.law for v in group if v.dtype in explained and not homes[id(v)]}
        for v in group:
            here_alone = not homes[id(v)] and v.dtype not in explained and v.law not in elsewhere
            home = homes[id(v)] if len(homes[id(v)]) == 1 else []
            home = [certain.most_common(1)[0][0]] if here_alone and certain and key[2] in WRONG else home
            if home:
                joined[home[0]].append(v)
                joined[key].remove(v)
    return {key: group for key, group in joined.items() if group}


WRONG = ("value", "gradient")  # keys of what is wrong and not explained


def _may_explain(other: Key, key: Key) -> bool:
    if key[2] in WRONG:
        return other[2] == "diagnosis"
    return key[2] in ("law", "says") and other[2] in ("diagnosis", *WRONG)


def _homes(verdict: Verdict, groups: Mapping[Key, Sequence[Verdict]]) -> list[Key]:
    """The groups that break the law of a verdict in another dtype, and the same of value and gradient, if it shows one."""
    what = _wrong(verdict)
    return [key for key, group in groups.items()
            if any(v.law == verdict.law and v.dtype != verdict.dtype and what in ("", _wrong(v)) for v in group)]  # fmt: skip


def _conditions(verdicts: Sequence[Verdict]) -> list[str]:
    """The conditions that every one of these exceptions meets, the simplest first."""
    each = [v.counterexample.raises_when for v in verdicts if v.counterexample]
    return [condition for condition in each[0] if all(condition in other for other in each)] if each else []


def _wrong(verdict: Verdict) -> str:
    """Which of value and gradient is wrong in its counterexample; of both, the value."""
    example = verdict.counterexample
    if example is None:
        return ""
    return "value" if example.value_wrong else "gradient" if example.gradient_wrong else ""


def _telling(verdict: Verdict) -> tuple[bool, bool, bool, int]:
    """Laws about what is wrong first, what a message shows whole, comparisons with the reference, the fewest numbers."""
    example = verdict.counterexample
    foreign = ABOUT_CALLS + (("gradients", "dropout") if _wrong(verdict) == "value" else ())
    numbers = example.numbers if example else 0
    return verdict.family in foreign, numbers > PRINTED, "agrees_with" not in verdict.law, numbers
