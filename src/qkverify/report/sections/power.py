"""The suite's own strength: planted bugs down, laws across, a mark where the law kills the bug."""

from __future__ import annotations

from typing import NamedTuple

from markupsafe import Markup

from qkverify.report.markdown import code, table
from qkverify.report.model import FAMILIES, Report, in_order
from qkverify.report.svg import element
from qkverify.report.templating import fill
from qkverify.results import Planted
from qkverify.verification.mutation_testing import summary

ORDER = 65
TITLE = "How strong the laws are"
STEP, GAP, TOP = 9.0, 8.0, 18.0  # a square with its margin; between families; above the first row
PITCH = 14.0  # of the rows, each with its name
CHARACTER = 6.7  # the width of one in 12 px type
LONGEST_NAME = 44


class LawColumn(NamedTuple):
    """A law that kills something, and where its column is drawn."""

    law: str
    family: str
    x: float


def html(report: Report) -> Markup:
    if not report.planted:
        return Markup("")
    mutants = killed_most(report)
    return fill(
        "power.jinja",
        mutants=mutants,
        controls=[record for record in report.planted if record.kind == "control"],
        lines=summary(report.planted),
        chart=matrix(report, mutants),
        profile=report.planted[-1].profile,
    )


def killed_most(report: Report) -> list[Planted]:
    """The mutants, those that most laws kill first: what only one law sees stands last."""
    mutants = [record for record in report.planted if record.kind == "mutant"]
    return sorted(mutants, key=lambda mutant: (-len(mutant.kills), mutant.name))


def columns(mutants: list[Planted]) -> list[LawColumn]:
    """Families in the report's order; in each the law that kills most first."""
    counts: dict[tuple[str, str], int] = {}
    for mutant in mutants:
        for kill in mutant.kills:
            counts[kill.family, kill.law] = counts.get((kill.family, kill.law), 0) + 1
    placed, x = [], CHARACTER * LONGEST_NAME + 10
    for family in in_order({family for family, _ in counts}, FAMILIES):
        for _, law in sorted(
            (key for key in counts if key[0] == family), key=lambda key: (-counts[key], key)
        ):
            placed.append(LawColumn(law, family, x))
            x += STEP
        x += GAP
    return placed


def matrix(report: Report, mutants: list[Planted]) -> Markup:
    """One square for every (mutant, law) that was seen to kill; only where all laws were held against all mutants."""
    if not mutants or not all(mutant.matrix for mutant in mutants):
        return Markup("")
    across = columns(mutants)
    if not across:
        return Markup("")
    places = {column.law: column for column in across}
    rows = [
        element("path", class_="kills", data_tip=f"{mutant.name}: {_laws(mutant)}",
                d="".join(f"M{places[kill.law].x:g} {TOP + i * PITCH + 2:g}h7v9h-7z" for kill in mutant.kills))
        for i, mutant in enumerate(mutants)
        if mutant.kills
    ]  # fmt: skip
    names = [
        element("text", _name(mutant), x=across[0].x - 8, y=TOP + i * PITCH + 11, text_anchor="end")
        for i, mutant in enumerate(mutants)
    ]
    heads = []
    for family in dict.fromkeys(column.family for column in across):
        mine = [column for column in across if column.family == family]
        heads.append(element("text", Markup(family), x=mine[0].x, y=10.0))
        heads += [element("rect", x=column.x, y=TOP, width=7.0, height=PITCH * len(mutants) - 2, class_="column",
                          data_tip=f"{column.law} kills {_killed(column.law, mutants)}") for column in mine]  # fmt: skip
    width, height = across[-1].x + STEP + 40, TOP + PITCH * len(mutants)
    alt = f"{len(mutants)} mutants down, {len(across)} laws across; a square where the law kills the mutant"
    size = {
        "viewBox": f"0 0 {width:g} {height:g}",
        "style": f"width:{width:.0f}px",
    }  # names stay legible: it scrolls
    return element("svg", *heads, *rows, *names, class_="chart power", role="img", aria_label=alt, **size)


def _name(mutant: Planted) -> str:
    """A mutant's name as it fits beside its row; what is cut off stands in the table below."""
    name = mutant.name.removeprefix("mutant-")
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def _laws(mutant: Planted) -> str:
    names = [kill.law for kill in mutant.kills]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _killed(law: str, mutants: list[Planted]) -> str:
    count = sum(any(kill.law == law for kill in mutant.kills) for mutant in mutants)
    return f"{count} mutant{'' if count == 1 else 's'}"


def markdown(report: Report) -> str:
    if not report.planted:
        return ""
    survivors = [[code(mutant.name), mutant.sentence] for mutant in killed_most(report) if not mutant.kills]
    lines = "\n".join(f"- {line}" for line in summary(report.planted))
    return lines + (f"\n\n{table(['survivor', 'bug'], survivors)}" if survivors else "")
