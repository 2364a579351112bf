"""Matrices as pictures: each number a coloured cell, with labels where there is room.

A few cells are drawn one by one, with their numbers in them. Many become a picture of sixteen colours inside the chart (see
`png`), and carry their values in `data-values`, two hexadecimal digits each, which the page's script turns into a tooltip.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from qkverify.report import png
from qkverify.report.svg import element
from qkverify.results import Picture

NUMBERED = 64  # a matrix of at most so many cells is drawn cell by cell
POSITIVE, NEGATIVE = (61, 125, 216), (222, 110, 38)  # seen on light and on dark paper alike
CELL, WIDE_CELL, NUMBER_CELL = 13.0, 2.0, 38.0
CHARACTER = 6.8  # the width of one in 12 px type


def weights_palette() -> list[png.Colour]:
    """From nothing to blue."""
    return [(*POSITIVE, round(255 * level / 15)) for level in range(png.COLOURS)]


def signed_palette() -> list[png.Colour]:
    """From orange through nothing to blue; the last entry is not used."""
    return [
        (*(POSITIVE if level > 7 else NEGATIVE), round(255 * abs(level - 7) / 7)) for level in range(15)
    ] + [(0, 0, 0, 0)]


def heat(picture: Picture, *, labels: str = "") -> Markup:
    """The chart of a matrix; `labels` is the id of labels that stand elsewhere in the page (see `label_marks`)."""
    if len(picture.rows) * len(picture.columns) <= NUMBERED:
        return _cells(picture)
    return _image(picture, labels)


def label_marks(picture: Picture) -> Markup:
    """The labels of rows and columns, to stand once for all pictures that have the same."""
    left, top = _margins(picture)
    return _labels(picture, left, top, CELL)


def _margins(picture: Picture) -> tuple[float, float]:
    """Room for the labels, on the left and above, where they are words."""
    return (10 + CHARACTER * max(map(len, picture.rows)), 10 + CHARACTER * max(map(len, picture.columns)))


def _labels(picture: Picture, left: float, top: float, cell: float) -> Markup:
    rows = [
        element("text", name, x=left - 4, y=top + cell * (i + 0.5) + 4, text_anchor="end")
        for i, name in enumerate(picture.rows)
    ]
    columns = []
    for i, name in enumerate(picture.columns):
        x = left + cell * (i + 0.5)
        if len(name) * CHARACTER <= cell:
            columns.append(element("text", name, x=x, y=top - 5, text_anchor="middle"))
        else:
            columns.append(
                element("text", name, transform=f"translate({x + 4:.1f} {top - 4:.1f}) rotate(-90)")
            )
    return Markup("").join([*rows, *columns])


def _image(picture: Picture, labels: str) -> Markup:
    signed, (count, across) = picture.kind == "signed", (len(picture.rows), len(picture.columns))
    wide = across > 4 * count
    left, top = (34.0, 20.0) if wide else _margins(picture)
    width, height = across * (WIDE_CELL if wide else CELL), count * (10.0 if wide else CELL)
    levels = [[_level(value, picture.limit, signed) for value in row] for row in picture.values]
    drawn = element("image", href=png.address(levels, signed_palette() if signed else weights_palette()), x=left, y=top,
                    width=width, height=height, preserveAspectRatio="none", class_="cells")  # fmt: skip
    frame = element("rect", x=left, y=top, width=width, height=height, class_="frame")
    if wide:
        named = _axis_numbers(picture, left, top, width, height)
    else:
        named = element("use", href=f"#{labels}") if labels else _labels(picture, left, top, CELL)
    return _chart([drawn, frame, named], left + width + (12 if wide else 4), top + height + 4, picture,
                  data_values=_hexadecimal(picture.values, picture.limit, signed), data_columns=across, data_count=count,
                  data_low=f"{-picture.limit if signed else 0:g}", data_high=f"{picture.limit:g}",
                  data_row=picture.row_axis, data_column=picture.column_axis)  # fmt: skip


def _axis_numbers(picture: Picture, left: float, top: float, width: float, height: float) -> Markup:
    """A few numbers along a wide picture, whose rows and columns are only counted."""
    rows, columns = len(picture.rows), len(picture.columns)
    marks = [
        element("text", picture.columns[i], x=left + width * (i + 0.5) / columns, y=top - 6, text_anchor="middle")
        for i in [*range(0, columns - columns // 8, columns // 8), columns - 1]
    ]  # fmt: skip
    marks += [
        element("text", picture.rows[i], x=left - 5, y=top + height * (i + 0.5) / rows + 4, text_anchor="end")
        for i in range(0, rows, max(1, rows // 5))
    ]
    return Markup("").join(marks)


def _cells(picture: Picture) -> Markup:
    visible = picture.kind == "visible"
    cell = 20.0 if visible else NUMBER_CELL
    left, top = _margins(picture)
    parts = [_labels(picture, left, top, cell)]
    for i, row in enumerate(picture.values):
        for j, value in enumerate(row):
            parts += _one(value, picture, left + cell * j, top + cell * i, cell, visible)
    return _chart(parts, left + cell * len(picture.columns) + 4, top + cell * len(picture.rows) + 4, picture)


def _one(
    value: float | None, picture: Picture, x: float, y: float, cell: float, visible: bool
) -> list[Markup]:
    kind = "nan" if value is None else "zero" if not value else "minus" if value < 0 else "plus"
    share = None if visible or not value else f"{0.1 + 0.5 * abs(value) / picture.limit:.2f}"
    box = element("rect", x=x + 1, y=y + 1, width=cell - 2, height=cell - 2, class_=kind, fill_opacity=share)
    words = "NaN" if value is None else "" if visible else f"{value:.3f}"
    if not words:
        return [box]
    return [
        box,
        element("text", words, x=x + cell / 2, y=y + cell / 2 + 4, text_anchor="middle", class_="number"),
    ]


def _chart(parts: Sequence[Markup], width: float, height: float, picture: Picture, **more: object) -> Markup:
    return element("svg", *parts, viewBox=f"0 0 {width:g} {height:g}", role="img", class_=f"heat {picture.kind}",
                   aria_label=f"{picture.title}. {picture.finding}", style=f"max-width:{width:.0f}px", **more)  # fmt: skip


def _share(value: float | None, limit: float, signed: bool) -> float:
    """A value on a scale from 0 to 1; nothing for NaN."""
    part = max(-1.0, min(1.0, (value or 0.0) / limit))
    return (part + 1) / 2 if signed else max(part, 0.0)


def _level(value: float | None, limit: float, signed: bool) -> int:
    """A palette index; that of a weight goes with its square root, so that small ones are seen."""
    share = _share(value, limit, signed)
    return round(14 * share if signed else 15 * math.sqrt(share))


def _hexadecimal(values: Sequence[Sequence[float | None]], limit: float, signed: bool) -> str:
    return bytes(round(255 * _share(value, limit, signed)) for row in values for value in row).hex()
