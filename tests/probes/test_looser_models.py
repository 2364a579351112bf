"""When a looser model of rounding is granted, and what is said of it."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from qkverify.contract import describe
from qkverify.probes import conventions, fast_exponential


def op_by_op(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    scores = query @ key.mT * query.shape[-1] ** -0.5
    weights = torch.exp(scores - scores.amax(-1, keepdim=True).detach())
    return weights @ value / weights.sum(-1, keepdim=True)


def wide_inside(share=0.0, cut=False):
    """float32 inside; the scale too large by a share, or the output cut off."""

    def attention(query, key, value):
        q, k, v = (x.astype(np.float32) for x in (query, key, value))
        scores = q @ k.swapaxes(-1, -2) * np.float32((1 + share) * q.shape[-1] ** -0.5)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        output = np.ascontiguousarray(weights @ v / weights.sum(-1, keepdims=True))
        return (
            (output.view(np.int32) & -65536).view(np.float32).astype(query.dtype)
            if cut
            else output.astype(query.dtype)
        )

    return attention


def found(function, dtype="bfloat16", arrays="numpy", **declared):
    implementation = describe(
        function, arrays=arrays, dtypes=(dtype,), requires=("G == H", "K >= 1"), **declared
    )
    return conventions.detect(implementation, "cpu", dtype)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_op_by_op_code_is_judged_as_such_and_it_is_said_what_that_means(dtype):
    choices = found(op_by_op, dtype, "torch")
    assert (choices["precision"].value, choices["gradient_precision"].value) == ("eager", "eager")
    number = r"[\d.]+(?:e\+\d+)?"
    output = re.fullmatch(
        rf"judged as rounding after every operation: errors may be ({number}) x \(output\) those of a fused kernel, "
        rf"whose bound was exceeded by a factor of ({number})",
        choices["precision"].looser,
    )
    assert output, choices
    assert float(output[1]) > 2
    assert float(output[2]) > 1
    gradients = re.fullmatch(
        rf"gradients judged as rounding after every operation: errors may be ({number}) x \(dQ\), ({number}) x \(dK\), "
        rf"({number}) x \(dV\) those of a fused kernel",
        choices["gradient_precision"].looser,
    )
    assert gradients, choices
    assert min(map(float, gradients.groups())) > 2


def test_a_fused_kernel_is_granted_nothing():
    choices = found(wide_inside())
    assert (choices["precision"].value, choices["precision"].looser) == ("fused", "")


@pytest.mark.parametrize(("dtype", "share"), [("bfloat16", 0.02), ("float16", 0.002)])
def test_a_wrong_scale_is_no_reason_for_a_looser_model(dtype, share):
    assert found(wide_inside(share), dtype)["precision"].value == "fused"


def test_the_figures_are_measured_of_each_function():
    """Where only heads of size 64 are taken, other sizes make other bounds."""
    usual = found(op_by_op, "bfloat16", "torch", differentiable=False)
    sizes = ("G == H", "K >= 1", "D == 64", "E == 64")
    wide = describe(op_by_op, arrays="torch", dtypes=("bfloat16",), requires=sizes, differentiable=False)
    large = conventions.detect(wide, "cpu", "bfloat16")
    assert usual["precision"].looser != large["precision"].looser


@pytest.mark.parametrize("cut", [False, True])
def test_an_output_that_is_cut_off_is_no_approximate_exponential(cut, monkeypatch):
    """Even if its errors look like the curve of one."""
    monkeypatch.setattr(fast_exponential, "is_fast", lambda run, size: True)
    assert found(wide_inside(cut=cut))["precision"].value == ("fused" if cut else "fused-fast-exp")


def test_an_approximate_exponential_is_granted_with_its_width(monkeypatch):
    monkeypatch.setattr(fast_exponential, "is_fast", lambda run, size: True)
    sentence = found(wide_inside())["precision"].looser
    assert re.fullmatch(
        r"judged as fused with an approximate exponential: errors may be 1\.\d x \(output\) those of a fused kernel",
        sentence,
    )


def tile_by_tile(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """float32 inside, and operands that are cast tile by tile: autograd adds the parts of the query's gradient in half."""
    scale = query.shape[-1] ** -0.5
    scores = [query.float() @ key[:, :, a : a + 16].float().mT * scale for a in range(0, key.shape[2], 16)]
    weights = torch.softmax(torch.cat(scores, -1), -1)
    parts = [weights[..., a : a + 16] @ value[:, :, a : a + 16].float() for a in range(0, key.shape[2], 16)]
    return sum(parts).to(query.dtype)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_gradients_that_are_added_tile_by_tile_in_half_precision_are_found_out(dtype):
    """Random numbers are within the fused model's bound there, or hardly past it. Which of the two was chance."""
    choices = found(tile_by_tile, dtype, "torch")
    assert (choices["precision"].value, choices["gradient_precision"].value) == ("fused", "eager")
    assert "gradients judged as rounding after every operation" in choices["gradient_precision"].looser
