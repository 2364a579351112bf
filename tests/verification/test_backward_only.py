"""Functions whose gradients come by `.backward()` alone: reentrant checkpointing refuses `torch.autograd.grad`."""

from __future__ import annotations

import numpy as np
import pytest

from qkverify.contract import describe
from qkverify.verification.checking import Cell, applicable, check, law_book, prepare

torch = pytest.importorskip("torch")
checkpoint = pytest.importorskip("torch.utils.checkpoint").checkpoint


def textbook(query, key, value, causal, scale):
    key, value = (x.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for x in (key, value))
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1 + scores.shape[-1] - scores.shape[-2])
        scores = scores.masked_fill(future, -torch.inf)
    return torch.softmax(scores, dim=-1).nan_to_num() @ value


def whole(query, key, value, *, causal=False, scale=None):
    """All of it is computed again in the backward pass."""
    return checkpoint(textbook, query, key, value, causal, scale, use_reentrant=True)


def part(query, key, value, *, causal=False, scale=None):
    """What surrounds the part that is computed again keeps arrays, which a backward pass frees."""
    output = checkpoint(textbook, query * 1, key.clone(), value, causal, scale, use_reentrant=True)
    return output * torch.ones_like(output)


def loses_a_gradient(query, key, value, *, causal=False, scale=None):
    return checkpoint(textbook, query, key.detach(), value, causal, scale, use_reentrant=True)


def by_backward_only(query, key, value, *, causal=False, scale=None):
    return OnlyBackward.apply(query, key, value, causal, scale)


class OnlyBackward(torch.autograd.Function):
    """As libraries write it that have their own checkpointing under another name."""

    @staticmethod
    def forward(ctx, query, key, value, causal, scale):
        ctx.save_for_backward(query, key, value)
        ctx.options = causal, scale
        return textbook(query, key, value, causal, scale)

    @staticmethod
    def backward(ctx, upstream):
        if not torch.autograd._is_checkpoint_valid():
            raise RuntimeError(
                "Checkpointing is not compatible with .grad(), please use .backward() if possible"
            )
        leaves = [x.detach().requires_grad_() for x in ctx.saved_tensors]
        with torch.enable_grad():
            output = textbook(*leaves, *ctx.options)
        torch.autograd.backward(output, upstream)
        return *(x.grad for x in leaves), None, None


GRADIENTS = "vjp_agrees_with_reference"


def verdicts(function, names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    implementation = describe(function, arrays="torch", dtypes=("float32",), requires=("K >= 1",))
    cell = Cell(implementation, "cpu", "float32")
    laws = [law for law in applicable(law_book(), cell) if law.name in names]
    assert len(laws) == len(names)
    return {law.name: check(law, prepare(cell), max_examples=8, seed=0) for law in laws}


@pytest.mark.parametrize("function", [whole, part, by_backward_only])
def test_its_gradients_are_judged_as_any_others(function, tmp_path, monkeypatch):
    verdict = verdicts(function, [GRADIENTS], tmp_path, monkeypatch)[GRADIENTS]
    assert verdict.outcome == "passed", verdict.reason
    assert verdict.used == ["causal", "gradients", "scale"]
    notes = [message.text for message in verdict.messages if message.kind == "note"]
    assert notes == ["gradients are taken with .backward(), because torch.autograd.grad is refused"]


OTHERS = ("gradients_through_views", "backward_twice", "backward_belongs_to_its_forward", "gradients_are_kept",
          "overwritten_between_the_passes", "gradients_of_some_inputs", "upstream_of_stride_zero", "double_backward")  # fmt: skip


def test_the_other_laws_of_gradients_hold(tmp_path, monkeypatch):
    by_law = verdicts(whole, OTHERS, tmp_path, monkeypatch)
    second = by_law.pop("double_backward")
    assert second.outcome == "not offered"
    assert "no second derivative" in second.reason
    assert (
        by_law.pop("overwritten_between_the_passes").outcome != "failed"
    )  # torch notices that where it keeps the argument
    assert {verdict.outcome for verdict in by_law.values()} == {"passed"}


def test_a_wrong_gradient_is_found(tmp_path, monkeypatch):
    assert verdicts(loses_a_gradient, [GRADIENTS], tmp_path, monkeypatch)[GRADIENTS].outcome == "failed"


def test_gradients_by_backward_are_those_by_grad():
    from qkverify.contract.frameworks import torch_arrays

    rng = np.random.default_rng(0)
    inputs = {name: torch.from_numpy(rng.standard_normal((2, 2, 3, 4))) for name in ("query", "key", "value")}
    upstream = rng.standard_normal((2, 2, 3, 4))

    def plain(query, key, value):
        return textbook(query, key, value, True, None)

    def again(query, key, value):
        return whole(query[...], key[...], value, causal=True)

    expected = torch_arrays.vjp(plain, inputs, upstream)[1]
    gradients = torch_arrays.vjp(again, inputs, upstream)[1]
    assert all(torch.equal(gradients[name], expected[name]) for name in inputs)
    pull = torch_arrays.backward(again, inputs, upstream)
    for _ in range(2):  # nothing is added to what the first pass gave
        assert all(torch.equal(x, expected[name]) for name, x in pull()[1].items())
    assert all(x.grad is None for x in inputs.values())
    unused = torch_arrays.vjp(lambda query, key, value: whole(query, query, value), inputs, upstream)[1]
    assert not unused["key"].any()


def test_any_other_error_of_a_backward_pass_stays_what_it_is():
    from qkverify.contract.frameworks import torch_arrays

    inputs = {"x": torch.ones(2)}
    with pytest.raises(RuntimeError, match="does not require grad"):
        torch_arrays.vjp(lambda x: x.detach(), inputs, np.ones(2))
