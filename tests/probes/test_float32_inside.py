"""Torch code of another operation that computes in float32 is not verified in float64, which is said; wrong code is."""

from __future__ import annotations

import pytest

from qkverify import probes
from qkverify.contract import describe

torch = pytest.importorskip("torch")


def upcast(x, weight, eps=1e-6):
    """As in most models."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return (wide * weight.float()).to(x.dtype)


def in_its_own_dtype(x, weight, eps=1e-6):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def upcast_and_wrong(x, weight, eps=1e-6):
    wide = x.float()
    return (wide / (wide.pow(2).mean(-1, keepdim=True).sqrt() + 0.01) * weight.float()).to(x.dtype)


def fitted(function):
    return probes.fitted(
        describe(function, operation="rms_norm", arrays="torch", dtypes=("float32", "float64"))
    )


def test_it_is_told_by_first_calls() -> None:
    implementation = fitted(upcast)
    assert implementation.dtypes == ("float32",)
    assert implementation.refused_dtypes == {"float64": "its result is as exact as float32, and no more"}
    assert any("float64 is not verified" in remark for remark in implementation.remarks)


@pytest.mark.parametrize("function", [in_its_own_dtype, upcast_and_wrong])
def test_float64_stays_where_float32_does_not_explain_the_results(function) -> None:
    assert fitted(function).dtypes == ("float32", "float64")
