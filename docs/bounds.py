"""What the derived bounds look like: formats, sums, attention; computed by `qkverify.rounding` itself."""

from __future__ import annotations

import numpy as np
from block import Made, block, picture

from qkverify.reference.attention import attention
from qkverify.report.charts import ChartSeries, Point, line_chart
from qkverify.report.markdown import table
from qkverify.rounding import FORMATS, Bounded, Precision


def scientific(value: float) -> str:
    return f"{value:.1e}"


@block("formats")
def _() -> str:
    rows = [
        [f.name, f"2^{int(np.log2(f.unit))} = {scientific(f.unit)}", scientific(f.huge)]
        for f in FORMATS.values()
    ]
    return table(["format", "unit roundoff", "largest number"], rows)


@block("models")
def _() -> str:
    """What each precision model rounds to, for bfloat16."""
    models = {name: Precision.named(name, "bfloat16") for name in ("fused", "fused-fast-exp", "eager")}
    rows = [
        [name, m.operand.name, m.accumulate.name, m.elementwise.name, m.output.name,
         scientific(m.exp_ulps * m.accumulate.unit + m.fast_exp)]
        for name, m in models.items()
    ]  # fmt: skip
    head = [
        "model",
        "operands of a product",
        "accumulators",
        "every elementwise result",
        "output",
        "exponential",
    ]
    return table(head, rows)


LENGTHS = (16, 64, 256, 1024, 4096, 16384)
ORDERS = 20


@block("sums")
def _() -> Made:
    """A sum of n float32 numbers, added one after the other in random orders, against its bound."""
    rng = np.random.default_rng(21)
    rows, worst, allowed = [], [], []
    for n in LENGTHS:
        numbers = rng.normal(size=n).astype(np.float32)
        bounded = np.sum(Bounded(numbers, 0.0, Precision.plain("float32")))
        exact = float(np.sum(numbers.astype(np.float64)))
        errors = [abs(float(np.cumsum(rng.permutation(numbers))[-1]) - exact) for _ in range(ORDERS)]
        worst.append(Point(n, max(errors), scientific(max(errors))))
        allowed.append(Point(n, float(bounded.error), scientific(float(bounded.error))))
        rows.append(
            [
                str(n),
                scientific(max(errors)),
                scientific(float(bounded.error)),
                f"{max(errors) / float(bounded.error):.2g}",
            ]
        )
    chart = line_chart(
        [ChartSeries("bound", 7, allowed), ChartSeries("worst order", 0, worst)],
        alt="Error of a sum and its bound against the count of numbers",
        unit=scientific,
        x_label="numbers added",
    )
    drawn = picture(
        "sums",
        chart,
        "The error of a float32 sum in the worst of several orders, and its bound, against the count",
    )
    return Made(
        f"{table(['numbers', 'worst error', 'bound', 'margin'], rows)}\n\n{drawn.text}", drawn.pictures
    )


@block("one-tolerance")
def _() -> str:
    """The bound of the same attention in several precisions, for numbers of several sizes."""
    rng = np.random.default_rng(22)
    query, key, value = rng.normal(size=(3, 1, 1, 64, 32))
    precisions = {
        "float64": Precision.plain("float64"),
        "float32": Precision.plain("float32"),
        "bfloat16, fused": Precision.fused("bfloat16"),
        "bfloat16, op by op": Precision.eager("bfloat16"),
    }
    factors = (0.1, 1.0, 10.0)
    rows = []
    for name, precision in precisions.items():
        made = [
            attention(
                *(
                    Bounded(x, 0.0, precision, precision.output.unit)
                    for x in (factor * query, key, factor * value)
                )
            )
            for factor in factors
        ]
        rows.append([name, *(scientific(float(np.median(m.error))) for m in made)])
    return table(["precision", *(f"query and value times {f:g}" for f in factors)], rows)
