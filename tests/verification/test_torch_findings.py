"""A failure that torch's own kernel has is said to be torch's; any other is not."""

import pytest

from qkverify.contract import describe
from qkverify.verification import torch_findings
from qkverify.verification.checking import Cell, checked, laws_named

torch = pytest.importorskip("torch")
SAID = "torch's own scaled_dot_product_attention does the same: finding"


def wrapper(q, k, v, *, causal=False, scale=None):
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)


def twice_where_torch_has_its_finding(q, k, v, *, causal=False, scale=None):
    output = wrapper(q, k, v, causal=causal, scale=scale)
    return torch.nan_to_num(output, nan=7.0) if causal and scale is not None and scale <= 0 else output


def scale_of_another_sign(q, k, v, *, causal=False, scale=None):
    return wrapper(q, k, v, causal=causal, scale=None if scale is None else abs(scale) + 1)


def test_nothing_is_said_where_nothing_is_broken():
    assert torch_findings.next_step([]) == ""


def message_of(function, law):
    implementation = describe(function, arrays="torch", dtypes=("float32",), requires=("G == H", "E == D"),
                              causal_alignment="top-left", empty_rows="zero")  # fmt: skip
    (verdict,) = checked(Cell(implementation, "cpu", "float32"), laws_named([law]), examples=50)
    return verdict.counterexample.message if verdict.counterexample else ""


LAW = "zero_scale_averages"


@pytest.mark.parametrize(
    ("function", "said"),
    [(wrapper, True), (twice_where_torch_has_its_finding, False), (scale_of_another_sign, False)],
)
def test_a_finding_of_torch_is_named_where_torch_returns_the_same(function, said, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    message = message_of(function, LAW)
    assert message, "the law did not fail"
    assert (SAID in message) is said, message
    assert bool(torch_findings.next_step([message])) is said
    assert not torch_findings.next_step([message, "another failure"])
