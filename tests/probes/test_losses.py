"""Cross entropies by the names of libraries, and those that are one number for all tokens."""

from __future__ import annotations

import pytest
import torch

from qkverify import probes
from qkverify.contract import losses, registry
from qkverify.verification.checking import verify

LAW = "label_smoothing_agrees_with_reference"
MEAN = """
import torch


def loss(logits, targets, label_smoothing=0.1, ignore_index=0):
    logarithms = logits.log_softmax(-1)
    chosen = -logarithms.gather(-1, targets[:, None])[:, 0]
    spread = {spread}
    every = (1 - label_smoothing) * chosen + label_smoothing * spread
    kept = targets != ignore_index
    return (every * kept).sum() / kept.sum()
"""


@pytest.mark.parametrize(("spread", "outcome"), [
    ("-logarithms.mean(-1)", "passed"), ("-logarithms.sum(-1) / (logits.shape[-1] - 1)", "failed"),
])  # fmt: skip
def test_a_mean_over_tokens_is_judged_token_by_token(tmp_path, spread, outcome):
    (tmp_path / "mine.py").write_text(MEAN.format(spread=spread))
    (implementation,) = probes.find(f"{tmp_path / 'mine.py'}:loss")
    assert implementation.operation == "cross_entropy"
    assert implementation.constants == {"label_smoothing": 0.0, "ignore_index": losses.NEVER}
    assert implementation.unknown == ("ignore_index",)
    assert implementation.remarks[-1].endswith("how it sums over tokens is not verified")
    (verdict,) = verify(implementation, dtypes=("float32",), profile="quick", laws=(LAW,)).verdicts
    assert verdict.outcome == outcome
    logits = torch.randn(3, 4)
    singles = implementation.function(logits, torch.arange(1, 4), label_smoothing=0.0)
    assert singles.shape == (3,)


def test_the_cross_entropy_of_torch_is_asked_for_the_loss_of_each_token():
    (implementation,) = probes.find("torch.nn.functional:cross_entropy")
    assert implementation.keywords({"smoothing": 0.1}) == {
        "reduction": "none", "ignore_index": losses.NEVER, "label_smoothing": 0.1
    }  # fmt: skip
    assert "reduction='none' is passed" in implementation.remarks
    (verdict,) = verify(implementation, dtypes=("float32",), profile="quick", laws=(LAW,)).verdicts
    assert verdict.outcome == "passed"


def test_other_losses_of_scores_and_targets_are_none():
    assert losses.is_cross_entropy("cross_entropy", ["input", "target"])
    assert not losses.is_cross_entropy("mse_loss", ["input", "target", "reduction"])
    assert not losses.is_cross_entropy("cross_entropy", ["queries", "keys"])


def test_an_option_of_our_own_is_not_passed_unless_it_is_asked_for():
    implementations = [x for x in registry.load_folder() if x.operation == "cross_entropy"]
    assert implementations
    assert all(implementation.constants == {} for implementation in implementations)
