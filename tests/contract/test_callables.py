"""Kinds of callables: an operator of torch, a custom one, a compiled function, a method, a function of other arrays."""

from __future__ import annotations

import functools

import pytest
import torch

from qkverify import probes
from qkverify.contract import callables, parameter_names, registry
from qkverify.errors import UsageError

KINDS = """
import functools

import torch
from torch.nn.functional import scaled_dot_product_attention


def base(q, k, v, is_causal=False):
    return scaled_dot_product_attention(q, k, v, is_causal=is_causal)


class Attention:
    def attend(self, q, k, v):
        return base(q, k, v)

    __call__ = attend

    @staticmethod
    def free(q, k, v):
        return base(q, k, v)


def decorated(function):
    @functools.wraps(function)
    def inner(*arguments, **keywords):
        return function(*arguments, **keywords)

    return inner


instance = Attention()
bound = instance.attend
partly = functools.partial(base, is_causal=True)
anonymous = lambda q, k, v: base(q, k, v)
wrapped = decorated(base)
compiled = torch.compile(base, backend="eager")


@torch.library.custom_op("qkverify_tests::attention", mutates_args=())
def operator(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, is_causal: bool = False) -> torch.Tensor:
    return scaled_dot_product_attention(q, k, v, is_causal=is_causal).clone()
"""
CAUSAL = ["partly", "wrapped", "compiled", "operator"]


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    file = tmp_path_factory.mktemp("kinds") / "kinds.py"
    file.write_text(KINDS)
    return file


@pytest.mark.parametrize("name", [*CAUSAL, "instance", "bound", "anonymous", "Attention.free"])
def test_every_kind_of_callable_is_taken_with_its_parameters(kinds, name):
    (implementation,) = registry.find(f"{kinds}:{name}")
    assert implementation.operation == "attention"
    assert implementation.arrays == "torch"
    assert implementation.name == f"kinds:{name}"
    assert implementation.file == str(kinds)
    assert ("causal" in implementation.offers) == (name in CAUSAL)


def test_an_operator_without_a_gradient_has_none_to_verify(kinds):
    (implementation,) = probes.find(f"{kinds}:operator")
    assert "gradients" not in implementation.offers
    assert any("has no registered gradient" in remark for remark in implementation.remarks)


def test_an_operator_of_torch_has_the_parameters_of_its_schema(kinds):
    registry.find(f"{kinds}:operator")
    (implementation,) = registry.find("torch.ops.qkverify_tests:attention")
    assert (implementation.arrays, implementation.unknown) == ("torch", ())
    assert "causal" in implementation.offers
    names = parameter_names(torch.ops.aten.scaled_dot_product_attention)
    assert names[:6] == ["query", "key", "value", "attn_mask", "dropout_p", "is_causal"]
    assert callables.schema_of(functools.partial) is None


def test_a_method_without_its_instance_is_refused_with_the_way_round(kinds):
    with pytest.raises(UsageError, match=r"is a method, and a method needs an instance") as refused:
        registry.find(f"{kinds}:Attention.attend")
    assert "`attend = Attention(...).attend`" in str(refused.value)


def test_what_is_no_module_and_no_attribute_is_unknown():
    for target in (
        "torch.ops.aten.nothing.here:attention",
        "torch.nothing:attention",
        "nothing.at_all:attention",
    ):
        with pytest.raises(UsageError):
            registry.find(target)


def test_a_function_of_arrays_that_are_not_known_is_refused_with_two_lines_that_work(tmp_path, monkeypatch):
    (tmp_path / "tinygrad.py").write_text(
        "import numpy\n\nclass Tensor:\n"
        "    def __init__(self, array): self.array = array\n"
        "    def numpy(self): return self.array\n"
        "    def scaled_dot_product_attention(self, key, value):\n"
        "        scores = self.array @ key.array.swapaxes(-1, -2) * self.array.shape[-1] ** -0.5\n"
        "        weights = numpy.exp(scores - scores.max(-1, keepdims=True))\n"
        "        return Tensor(weights / weights.sum(-1, keepdims=True) @ value.array)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        UsageError, match=r"takes arrays of tinygrad; those of numpy, torch and jax are known"
    ) as refused:
        registry.find("tinygrad:Tensor.scaled_dot_product_attention")
    (tmp_path / "adapted.py").write_text(
        "\n".join(line.strip() for line in str(refused.value).splitlines()[1:])
    )
    (implementation,) = probes.find(f"{tmp_path / 'adapted.py'}:attention")
    assert implementation.arrays == "numpy"
    assert "mask" not in implementation.offers
