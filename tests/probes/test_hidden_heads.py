"""A function that splits the features into a fixed number of heads is not judged as one of a single head."""

from __future__ import annotations

import pytest
import torch

from qkverify import probes
from qkverify.contract import describe
from qkverify.errors import NothingVerified


def in_heads(x, heads):
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


def of_two_heads(q, k, v):
    output = torch.nn.functional.scaled_dot_product_attention(*(in_heads(x, 2) for x in (q, k, v)))
    return output.transpose(1, 2).flatten(2)


def without_a_scale(q, k, v):
    return torch.softmax(q @ k.mT, -1) @ v


def test_a_number_of_heads_that_is_written_in_the_code_is_named():
    with pytest.raises(NothingVerified, match="splits the last axis into 2 heads by itself"):
        probes.fitted(describe(of_two_heads))


def test_another_mistake_is_left_to_the_laws():
    assert probes.fitted(describe(without_a_scale)).operation == "attention"
