"""Rotary functions that are given cosines and sines: the shape of the tables is found out, and what is wrong stays wrong."""

from __future__ import annotations

import textwrap

import numpy as np
import pytest

from qkverify.contract import cos_sin
from qkverify.errors import NothingVerified
from qkverify.verification.checking import verify

from .written import found_in_a_file

HEAD = """
import numpy as np
import torch


def halves(x):
    return x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]


def rotate(x, cos, sin):
    first, second = halves(x)
    return x * cos + torch.cat((-second, first), -1) * sin
"""
FORMS = {
    "(L,D)": "def turn(x, cos, sin): return rotate(x, cos, sin)",
    "(L,D/2)": """
        def turn(x, cos, sin):
            first, second = halves(x)
            return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)""",
    "(L,D/2) of pairs side by side": """
        def turn(x, cos, sin):
            out = np.empty_like(x)
            out[..., ::2], out[..., 1::2] = (x[..., ::2] * cos - x[..., 1::2] * sin, x[..., 1::2] * cos + x[..., ::2] * sin)
            return out""",
    "(L,D) of x (B,L,H,D)": "def turn(x, cos, sin): return rotate(x, cos[None, :, None], sin[None, :, None])",
    "(B,L,D)": """
        def turn(q, k, cos, sin, position_ids=None, unsqueeze_dim=1):
            cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
            return rotate(q, cos, sin), rotate(k, cos, sin)""",
    "(positions,D)": """
        def turn(q, k, cos, sin, position_ids):
            cos, sin = cos[position_ids].unsqueeze(1), sin[position_ids].unsqueeze(1)
            return rotate(q, cos, sin), rotate(k, cos, sin)""",
    "(L,D) of one entry": """
        def turn(q, k, cos, sin):
            assert cos.ndim == 2
            return rotate(q, cos, sin), rotate(k, cos, sin)""",
}


@pytest.fixture
def fitted(tmp_path):
    return lambda text: found_in_a_file(tmp_path, HEAD, text, "turn")


def broken(implementation):
    law = f"{implementation.operation}_agrees_with_formula"
    (verdict,) = verify(implementation, dtypes=("float32",), profile="quick", laws=(law,)).verdicts
    assert verdict.outcome in ("passed", "failed")
    return verdict.outcome == "failed", verdict


@pytest.mark.parametrize("form", FORMS)
def test_the_shape_of_the_tables_is_found_out_although_the_sine_is_negative(fitted, form):
    text = FORMS[form]
    implementation = fitted(text)
    assert implementation.operation == ("rotary_pair" if "q, k" in text else "rotary")
    assert implementation.unknown == ()
    (said,) = (remark for remark in implementation.remarks if "cos and sin are" in remark)
    assert said.startswith(f"cos and sin are {form.partition(' ')[0]}")
    assert ("x is (B,L,H,D)" in said) == ("(B,L,H,D)" in form)
    assert not broken(implementation)[0]
    wrong = fitted(_turning_back(text))
    assert wrong.function.tables == implementation.function.tables
    fails, verdict = broken(wrong)
    assert fails
    assert "in the other direction" in verdict.counterexample.diagnosis


def _turning_back(text):
    """The function with the sine's sign changed."""
    signature = text.partition("turn(")[2].partition(")")[0]
    names = [name.partition("=")[0].strip() for name in signature.split(",")]
    given = ", ".join("-sin" if name == "sin" else name for name in names)
    inner = textwrap.dedent(text).replace("def turn", "def inner")
    return f"{inner}\n\n\ndef turn({signature}):\n    return inner({given})\n"


def test_tables_of_no_known_shape_are_refused_with_the_way_round(fitted):
    with pytest.raises(NothingVerified, match=r"takes cos and sin.*\n.*def rotary\(x, positions\)"):
        fitted("def turn(x, cos, sin): raise ValueError('never')")


def test_tables_are_those_of_the_positions():
    half = cos_sin.Tables(whole=False)
    assert half.angles(np.array([3]), 4).tolist() == [[3.0, 0.03]]
    assert cos_sin.Tables().angles(np.array([3]), 4).tolist() == [[3.0, 0.03, 3.0, 0.03]]
    assert cos_sin.Tables(layout="interleaved").angles(np.array([3]), 4).tolist() == [[3.0, 3.0, 0.03, 0.03]]
