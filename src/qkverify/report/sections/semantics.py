"""How implementations differ without being wrong: their conventions, and which options they offer."""

from __future__ import annotations

from collections import Counter

from markupsafe import Markup

from qkverify.report.markdown import code, table
from qkverify.report.model import Report, in_order
from qkverify.report.templating import fill
from qkverify.results import ImplementationInfo, Verdict
from qkverify.verification.unverified_options import WORDS, unverified

ORDER = 30
TITLE = "How they differ"

CONVENTIONS = (
    "causal_alignment",
    "empty_rows",
    "masked_values",
    "deterministic",
    "batch_invariant",
    "lse",
    "empty_lse",
    "delta",
    "head_gradients",
    "softmax_gradient",
    "exponent",
    "merges",
    "row_sum",
    "split_results",
    "precision",
    "gradient_precision",
)
EXPLAINED = {
    "causal_alignment": "which key the first query sees when lengths differ",
    "empty_rows": "what a query that sees no key gets",
    "masked_values": "whether NaN in a hidden key or value gets through",
    "deterministic": "the same call twice gives the same bits",
    "batch_invariant": "a batch gives the same bits as its entries alone",
    "lse": "the base of the returned log-sum-exp",
    "empty_lse": "the log-sum-exp of a query that sees no key",
    "delta": "what the gradient's row sums are taken from",
    "head_gradients": "whether gradients of heads that share a key are stored before they are added",
    "softmax_gradient": "whether the softmax is differentiated as a whole or step by step",
    "exponent": "whether score minus maximum is exactly zero where they are equal",
    "merges": "whether tiles are merged one after the other by rounded log-sum-exps",
    "row_sum": "whether a row's weights are rounded before they are summed",
    "split_results": "whether results of splits of the keys are stored before they are merged",
    "precision": "where half-precision numbers are rounded",
    "gradient_precision": "the same, in the gradients",
}


def html(report: Report) -> Markup:
    names = conventions(report)
    infos = [info for name in report.implementations if (info := report.infos.get(name)) and _says(info)]
    crossed = [info for info in infos if info.operation == "attention"]
    options = _options(crossed)
    if not names and not infos:
        return Markup("")
    return fill(
        "semantics.jinja",
        report=report,
        names=names,
        explained=EXPLAINED,
        tints=_tints(report, names),
        options=options,
        crossed=crossed,
        listed=[info for info in infos if info.operation != "attention"],
        missed={info.name: _missed(report, info) for info in infos},
        said=WORDS,
    )


def _missed(report: Report, info: ImplementationInfo) -> list[str]:
    return [*info.unknown, *unverified(info.offers, _verdicts(report, info.name))]


def _verdicts(report: Report, name: str) -> list[Verdict]:
    return [v for v in report.verdicts if v.implementation == name]


def _says(info: ImplementationInfo) -> bool:
    """Whether there is an option to speak of."""
    return bool(info.offers or info.not_offered)


def conventions(report: Report) -> list[str]:
    """The conventions that at least one implementation has."""
    names = {
        name
        for info in report.infos.values()
        for name, choice in info.semantics.items()
        if choice.how != "not applicable"
    }
    return in_order(names, CONVENTIONS)


def _options(infos: list[ImplementationInfo]) -> list[str]:
    """Every option, in the order in which most is offered first."""
    counts = Counter(name for info in infos for name in info.offers)
    known = dict.fromkeys(name for info in infos for name in [*info.offers, *info.not_offered])
    return sorted(known, key=lambda name: -counts[name])


def _tints(report: Report, names: list[str]) -> dict[str, dict[str, int]]:
    """A number for each value of each convention: 0 for what most do, so that the others stand out."""
    tints = {}
    for name in names:
        values = Counter(
            info.semantics[name].value
            for info in report.infos.values()
            if name in info.semantics and info.semantics[name].how != "not applicable"
        )
        tints[name] = {value: min(i, 3) for i, (value, _) in enumerate(values.most_common())}
    return tints


def markdown(report: Report) -> str:
    names = conventions(report)
    if not names:
        return ""
    rows = []
    for name in report.implementations:
        info = report.infos.get(name)
        choices = [info.semantics.get(n) if info else None for n in names]
        if any(choices):
            rows.append(
                [
                    code(name),
                    *(
                        "" if c is None or c.how == "not applicable" else f"{c.value} ({c.how})"
                        for c in choices
                    ),
                ]
            )
    return table(["implementation", *(n.replace("_", " ") for n in names)], rows)
