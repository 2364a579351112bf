"""What a norm means by what it is not told, its name, and the rounding of a variance in one pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from qkverify import probes
from qkverify.contract import describe
from qkverify.counterexamples.diagnosis import trial_of
from qkverify.counterexamples.diagnosis.deadline import Deadline
from qkverify.counterexamples.diagnosis.operations import claim_about
from qkverify.errors import UsageError
from qkverify.runs import exact_norms
from qkverify.runs.run import Run
from qkverify.verification.checking import verify

Array = np.ndarray


def one_pass(x: Array) -> tuple[Array, Array]:
    mean = x.mean(-1, keepdims=True)
    return x - mean, np.maximum((x * x).mean(-1, keepdims=True) - mean * mean, 0)


def fast_layer_norm(x: Array, gamma: Array, beta: Array, epsilon: float = 1e-6) -> Array:
    centred, variance = one_pass(x)
    return centred / np.sqrt(variance + x.dtype.type(epsilon)) * gamma + beta


def unclamped_layernorm(x: Array, weight: Array, bias: Array) -> Array:
    mean = x.mean(-1, keepdims=True)
    variance = (x * x).mean(-1, keepdims=True) - mean * mean
    return (x - mean) / np.sqrt(variance + x.dtype.type(1e-5)) * weight + bias


def rms_norm_of_one_more(hidden: Array, weight: Array) -> Array:
    return (
        hidden / np.sqrt((hidden * hidden).mean(-1, keepdims=True) + hidden.dtype.type(1e-12)) * (1 + weight)
    )


def rmsnorm(x: Array, g: Array, eps: float = 1e-5) -> Array:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + x.dtype.type(eps)) * g


def test_the_name_of_a_norm_says_what_it_is_with_the_names_of_its_weights() -> None:
    every = (fast_layer_norm, unclamped_layernorm, rms_norm_of_one_more, rmsnorm)
    found = [describe(function).operation for function in every]
    assert found == ["layer_norm", "layer_norm", "rms_norm", "rms_norm"]
    assert describe(fast_layer_norm).parameters == {"eps": "epsilon"}

    def linear(x: Any, weight: Any, bias: Any) -> Any:
        return x

    def add_rms_norm(x: Any, residual: Any, weight: Any) -> Any:
        return x

    def rmsnorm_gelu(x: Any, weight: Any) -> Any:
        return x

    for other in (linear, add_rms_norm, rmsnorm_gelu):
        with pytest.raises(UsageError, match="cannot tell what"):
            describe(other)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("function", "choices"), [
    (fast_layer_norm, {"variance": "one-pass", "eps": "1e-06"}), (rmsnorm, {}),
    (rms_norm_of_one_more, {"eps": "1e-12", "offset": "1.0"}),
])  # fmt: skip
def test_what_a_norm_is_not_told_is_found_out(
    function: Callable[..., Any], choices: dict[str, str], dtype: str
) -> None:
    found = probes.conventions.detect(describe(function), "cpu", dtype)
    assert {name: choice.value for name, choice in found.items()} == choices


def test_where_a_norm_is_wrong_the_default_of_its_signature_counts_and_its_mistake_is_named() -> None:
    def layer_norm(x: Array, a: Array, b: Array, eps: float = 3e-4) -> Array:
        size = x.shape[-1]
        centred = x - x.mean(-1, keepdims=True)
        with np.errstate(all="ignore"):
            deviation = np.sqrt((centred * centred).sum(-1, keepdims=True) / x.dtype.type(size - 1))
            return centred / (deviation + x.dtype.type(eps)) * a + b

    found = probes.conventions.detect(describe(layer_norm), "cpu", "float32")
    assert {name: choice.value for name, choice in found.items()} == {"eps": "0.0003"}
    run = Run(describe(layer_norm), dtype="float32", semantics={"eps": "0.0003"})
    trial, until = trial_of(run), Deadline(60.0)
    trial.seconds = 60.0
    claim = claim_about(run, until, trial)
    assert claim is not None
    assert "the unbiased deviation, to which eps is added outside of the root" in claim.sentence


def test_a_norm_of_two_axes_alone_is_held_to_two() -> None:
    def rms_norm(x: Array, weight: Array) -> Array:
        rows, _ = x.shape
        return np.stack(
            [row / np.sqrt((row * row).mean() + row.dtype.type(1e-5)) * weight for row in x[:rows]]
        )

    fitted = probes.fitted(describe(rms_norm, dtypes="float32"))
    assert fitted.remarks[-1].startswith("arrays have two axes, (tokens, features): with three it raises ")
    verification = verify(fitted, profile="quick")
    assert not verification.failures
    assert len(verification.verdicts) > 10


def test_an_eps_that_must_be_given_is_given() -> None:
    def rms_norm(x: Array, weight: Array, eps: float) -> Array:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + x.dtype.type(eps)) * weight

    laws = ("rms_norm_agrees_with_reference", "returned_arrays_are_kept")
    verification = verify(describe(rms_norm), dtypes=("float32",), profile="glance", laws=laws)
    assert [verdict.outcome for verdict in verification.verdicts] == ["passed", "passed"]


def test_the_norm_of_torch_has_an_eps_of_its_dtype() -> None:
    torch = pytest.importorskip("torch")

    def rms_norm(x: Any, weight: Any) -> Any:
        return torch.nn.functional.rms_norm(x, x.shape[-1:], weight)

    implementation = describe(rms_norm, arrays="torch")
    for dtype, eps in (("float32", 2.0**-23), ("float64", 2.0**-52)):
        assert probes.conventions.detect(implementation, "cpu", dtype)["eps"].value == str(eps)


def test_a_variance_in_one_pass_has_a_wider_bound_only_where_the_mean_is_large() -> None:
    run, ones = Run(describe(fast_layer_norm), dtype="float32"), np.ones(5, np.float32)
    x = np.random.default_rng(0).standard_normal((4, 5)).astype(np.float32)
    errors = {}
    for variance in ("two-pass", "one-pass"):
        for level in (0, 300):
            given = (x + np.float32(level)).astype(np.float32)
            exact = exact_norms.normed(run, given, ones, ones, eps=1e-5, variance=variance)
            errors[variance, level] = float(exact.errors.max())
    assert errors["one-pass", 0] < 4 * errors["two-pass", 0]
    assert errors["one-pass", 300] > 30 * errors["two-pass", 300]


@pytest.mark.filterwarnings("ignore:invalid value")
def test_one_pass_is_a_choice_and_nan_is_none() -> None:
    laws = ("layer_norm_agrees_with_reference", "layer_norm_of_numbers_is_numbers")
    outcomes = {}
    for function in (fast_layer_norm, unclamped_layernorm):
        verification = verify(describe(function), dtypes=("float32",), profile="quick", laws=laws)
        outcomes[function] = [verdict.outcome for verdict in verification.verdicts]
    assert outcomes == {fast_layer_norm: ["passed", "passed"], unclamped_layernorm: ["passed", "failed"]}


@pytest.mark.parametrize(("precision", "known"), [("eager", False), ("fused", True)])
def test_op_by_op_the_cube_of_an_inverse_root_may_overflow_in_half_precision(
    precision: str, known: bool
) -> None:
    """torch's derivative of rsqrt is its cube: of a token with a deviation of 0.005 in float16 infinite, and times zero NaN."""
    run = Run(describe(fast_layer_norm, precision=precision), dtype="float16")
    x = np.array([[0.0, 0.0078125, 0.0, -0.0078125], [1.0, 2.0, 0.0, -1.0]], np.float16)
    weight, bias, upstream = np.ones(4, np.float16), np.zeros(4, np.float16), np.ones_like(x)
    gradients = exact_norms.gradients(run, upstream, x, weight, bias, eps=1e-5)
    assert np.isfinite(gradients["x"].errors).all(-1).tolist() == [known, True]
    assert np.isfinite(gradients["weight"].errors).all()
