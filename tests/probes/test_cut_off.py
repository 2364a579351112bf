"""A function that gives no gradients is told so once, and is not accused by every law of gradients."""

from __future__ import annotations

import numpy as np
import pytest

from qkverify import probes
from qkverify.contract import describe
from qkverify.probes.cut_off import REMARK
from qkverify.verification.checking import verify

torch = pytest.importorskip("torch")


def attention(query, key, value, *, scale=None):
    key, value = (x.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for x in (key, value))
    return torch.softmax(query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale), -1) @ value


def detached(query, key, value, *, scale=None):
    return attention(query, key, value, scale=scale).detach()


def through_numpy(query, key, value, *, scale=None):
    arrays = (np.array(x.detach().numpy()) for x in (query, key, value))
    return attention(*map(torch.from_numpy, arrays), scale=scale)


CUT_OFF = [torch.no_grad()(attention), torch.inference_mode()(attention), detached, through_numpy]


def described(function, **declared):
    return describe(function, arrays="torch", dtypes=("float32",), requires=("K >= 1",), **declared)


@pytest.mark.parametrize("function", CUT_OFF, ids=["no_grad", "inference_mode", "detached", "through_numpy"])
def test_no_gradients_are_found_out_and_said(function):
    implementation = probes.fitted(described(function))
    assert "gradients" not in implementation.offers
    assert REMARK in implementation.remarks


def test_no_law_of_gradients_accuses_it():
    verification = verify(described(torch.no_grad()(attention)), profile="glance", dtypes=["float32"])
    assert [verdict.law for verdict in verification.failures] == []
    assert {v.outcome for v in verification.verdicts if v.family == "gradients"} == {"not offered"}


def test_what_is_declared_is_judged():
    implementation = probes.fitted(described(torch.no_grad()(attention), differentiable=True))
    assert "gradients" in implementation.offers
    assert REMARK not in implementation.remarks


def test_what_gives_gradients_keeps_them():
    implementation = probes.fitted(described(attention))
    assert "gradients" in implementation.offers
    assert REMARK not in implementation.remarks


def test_any_other_error_is_left_to_the_laws():
    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, upstream):
            raise RuntimeError("not written yet")

    def fails(query, key, value, *, scale=None):
        return Fails.apply(attention(query, key, value, scale=scale))

    assert "gradients" in probes.fitted(described(fails)).offers
