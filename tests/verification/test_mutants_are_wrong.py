"""Each planted bug changes a result on the smallest input that its thread suggests; the rest is right.

This holds the mutants to their word without any law: what kills them is measured elsewhere.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import qkverify.implementations.controls
import qkverify.implementations.mutants
from qkverify import reference
from qkverify.contract import REGISTERED
from qkverify.implementations import numpy_decode, numpy_gated, numpy_merged
from qkverify.implementations.mutants import between_passes
from qkverify.implementations.mutants.correct import layers, multi_head, norms, positions
from qkverify.implementations.mutants.correct.call import Call
from qkverify.implementations.mutants.correct.planting import MUTANTS
from qkverify.implementations.mutants.correct.split import SPLIT
from qkverify.implementations.mutants.correct.textbook import TEXTBOOK
from qkverify.implementations.mutants.correct.tiled import TILED
from qkverify.implementations.mutants.correct.triton_tiled import TILE as TRITON_TILE
from qkverify.implementations.mutants.correct.triton_tiled import TRITON_TILED
from qkverify.reference import positions as reference_positions
from qkverify.reference.attention import attention
from qkverify.reference.attention_vjp import attention_vjp
from qkverify.reference.multi_head import multi_head_attention as reference_multi_head
from qkverify.reference.softmax import softmax
from qkverify.runs import score_problems, score_tests
from qkverify.runs.run import Run

CLOSE = 1e-10  # float64 results that are equal but for rounding

for package in (qkverify.implementations.mutants, qkverify.implementations.controls):
    for file in sorted(Path(package.__path__[0]).glob("[!_]*.py")):
        importlib.import_module(f"{package.__name__}.{file.stem}")
PLANTED = tuple(MUTANTS)  # a script that another test runs may plant its own copy later
FUNCTIONS = {mutant.function.__name__: mutant for mutant in PLANTED}
CONTROLS = {
    implementation.name: implementation
    for implementation in REGISTERED
    if implementation.name.startswith("control-")
    and implementation.operation == "attention"
    and implementation.arrays == "numpy"
}


def declared(name: str) -> Any:
    """What a mutant declares."""
    return next(
        implementation for implementation in REGISTERED if implementation.function is FUNCTIONS[name].function
    )


def arrays(
    B: int = 1, H: int = 1, G: int = 0, Q: int = 1, K: int = 2, D: int = 2, E: int = 0,
    times: float = 1.0, seed: int = 1, dtype: Any = np.float64,
) -> list[np.ndarray]:  # fmt: skip
    """query, key, value: normal numbers, query and key times `times`."""
    rng, shapes = np.random.default_rng(seed), [(B, H, Q, D), (B, G or H, K, D), (B, G or H, K, E or D)]
    return [
        (rng.standard_normal(s) * f).astype(dtype) for s, f in zip(shapes, (times, times, 1), strict=True)
    ]


def wide(arrays: list[np.ndarray]) -> list[np.ndarray]:
    return [x.astype(np.float64) for x in arrays]


def everything(rng: np.random.Generator) -> tuple[list[np.ndarray], dict[str, Any]]:
    """Random sizes with a random half of all options."""
    B, G, group, Q, K, D, E = (int(rng.integers(1, n)) for n in (4, 3, 4, 6, 40, 5, 6))
    H = G * group
    every = {
        "mask": rng.random((B, 1, Q, K)) < 0.7,
        "bias": rng.standard_normal((H, 1, K)),
        "causal": True,
        "window": (int(rng.integers(0, 5)), int(rng.integers(0, 5))),
        "scale": 0.7,
        "softcap": 2.0,
        "alibi_slopes": 0.5 ** np.arange(1, H + 1),
        "key_lengths": rng.integers(0, K + 1, B).astype(np.int32),
        "sinks": rng.standard_normal(H),
    }
    options = {name: value for name, value in every.items() if rng.random() < 0.5}
    return arrays(B, H, G, Q, K, D, E, seed=int(rng.integers(1 << 30))), options


@pytest.mark.parametrize("name", CONTROLS)
def test_a_control_is_right(name: str) -> None:
    control, rng = CONTROLS[name], np.random.default_rng(0)
    dtype = np.dtype(control.dtypes[0])
    close = {"rtol": CLOSE, "atol": CLOSE} if dtype == np.float64 else {"rtol": 1e-4, "atol": 1e-4}
    for _ in range(60):
        inputs, options = everything(rng)
        inputs = [x.astype(dtype) for x in inputs]
        options = {option: value for option, value in options.items() if option in control.offers}
        exact, exact_lse = attention(
            *wide(inputs), **options, return_lse=True, empty_rows=control.semantics["empty_rows"]
        )
        np.testing.assert_allclose(control.function(*inputs, **options), exact, **close)
        if "return_lse" in control.offers:
            np.testing.assert_allclose(
                control.function(*inputs, **options, return_lse=True)[1], exact_lse, **close
            )
        if control.vjp is not None:
            upstream = rng.standard_normal(exact.shape).astype(dtype)
            gradients = attention_vjp(*wide([*inputs, upstream]), **options)
            for of, got in zip(
                ("query", "key", "value"), control.vjp(*inputs, upstream, **options), strict=True
            ):
                np.testing.assert_allclose(got, gradients[of], **close)


@pytest.mark.parametrize("base", [TEXTBOOK, TILED, SPLIT])
def test_the_correct_rest_ignores_nan_in_invisible_keys(base: Any) -> None:
    query, key, value = arrays(H=2, Q=3, K=20, E=3)
    clean = base(Call(query, key, value, causal=True))
    key[:, :, -1], value[:, :, -1] = np.nan, np.inf
    with np.errstate(all="ignore"):
        poisoned = base(Call(query, key, value, causal=True))
    np.testing.assert_array_equal(poisoned[:, :, :2], clean[:, :, :2])
    assert np.isnan(poisoned[:, :, 2]).all()


TOP = {"causal": True}
NO_KEYS = {"Q": 2, "mask": np.array([[True, True], [False, False]])}
RISING = {"K": 17, "bias": np.arange(17.0)}
ONE_HIDDEN = {"mask": np.array([True, False])}

# The smallest exposure of each bug of attention's forward pass: sizes and options, all else as in `arrays`.
FORWARD: dict[str, dict[str, Any]] = {
    "fallback_path_forgets_the_scale": {},
    "scale_uses_the_model_width": {"H": 2},
    "bias_is_scaled_too": {"bias": np.array([0.0, 2.0])},
    "past_is_hidden_when_there_are_more_keys": TOP,
    "alignment_depends_on_the_path": {"Q": 2, "K": 3, **TOP},
    "a_mask_switches_causality_off": {"Q": 2, **TOP, "mask": np.ones(2, bool)},
    "rows_are_divided_by_the_group": {"H": 2, "G": 1, "Q": 2, **TOP},
    "own_tile_is_seen_whole": {"Q": 2, **TOP},
    "nothing_divided_by_nothing": NO_KEYS,
    "merge_of_two_empty_parts": NO_KEYS,
    "empty_rows_are_never_written": NO_KEYS,
    "maximum_is_not_subtracted": {"D": 4, "times": 100.0},
    "maximum_is_rounded_and_scores_are_not": {"K": 1, "D": 3, "times": 4e5, "dtype": np.float32},
    "float64_is_computed_in_float32": {},
    "weights_are_normalised_over_the_queries": {"Q": 2},
    "two_lowest_numbers_are_added": {"Q": 2, **TOP, "key_lengths": np.array([0])},
    "rescale_has_the_wrong_sign": RISING,
    "output_is_not_rescaled": RISING,
    "total_is_not_rescaled": RISING,
    "last_tile_is_read_past_its_end": {"K": 1},
    "last_tile_is_hidden_before_the_softcap": {"K": 17, "softcap": 2.0},
    "even_length_skips_the_lengths": {"K": 32, "key_lengths": np.array([20])},
    "lengths_are_accepted_and_ignored": {"key_lengths": np.array([1])},
    "lengths_are_rounded_up_to_a_page": {"key_lengths": np.array([1])},
    "key_heads_are_tiled": {"H": 4, "G": 2},
    "flat_index_is_taken_apart_wrongly": {"H": 2, "Q": 3},
    "keys_are_repeated_along_the_sequence": {"H": 2, "G": 1, "Q": 2, **TOP},
    "mask_is_indexed_by_the_flat_head": {"B": 2, "H": 2, "mask": np.eye(2, dtype=bool).reshape(2, 1, 1, 2)},
    "padding_is_put_on_the_query_axis": {"Q": 2, "key_lengths": np.array([1])},
    "mask_per_head_is_taken_per_batch": {"B": 2, "H": 2, "mask": np.eye(2, dtype=bool).reshape(2, 1, 2)},
    "mask_is_expanded_at_fixed_axes": {"B": 2, "Q": 2, "mask": np.eye(2, dtype=bool)},
    "true_hides": ONE_HIDDEN,
    "masked_scores_are_thrown_away": ONE_HIDDEN,
    "mask_is_filled_instead_of_the_bias": ONE_HIDDEN,
    "one_sequence_needs_no_mask": ONE_HIDDEN,
    "cross_attention_loses_its_mask": ONE_HIDDEN,
    "mask_is_known_by_its_corners": {
        "Q": 3,
        "K": 3,
        "mask": np.array([[1, 0, 0], [0, 1, 0], [1, 1, 1]], bool),
    },
    "bias_is_taken_for_a_mask": {"bias": np.array([0.0, 1.0])},
    "causal_path_forgets_the_softcap": {**TOP, "softcap": 0.5},
    "early_return_forgets_the_window": {"Q": 2, "window": (1, 0)},
    "left_edge_is_negative_and_means_no_limit": {"Q": 3, "K": 3, "window": (1, None)},
    "window_and_causality_count_from_different_ends": {
        "K": 3,
        "window": (1, None),
        "key_lengths": np.array([2]),
    },
    "one_slope_rule_for_every_number_of_heads": {"H": 3, "alibi_slopes": 2.0 ** -np.array([4, 8, 2])},
    "slopes_are_counted_from_zero": {"alibi_slopes": np.array([2.0**-8])},
    "logarithm_to_base_two": {"return_lse": True},
    "lowest_number_is_empty_in_the_lse_alone": {"bias": np.full(2, np.finfo(float).min), "return_lse": True},
    "merge_takes_the_wrong_base": {"times": 2.0},
    "lse_is_written_only_when_asked_for": {},
    "sink_is_not_in_the_maximum": {"sinks": np.array([1000.0]), "return_lse": True},
    "causal_path_forgets_the_sink": {**TOP, "sinks": np.array([1.0])},
    "output_has_the_key_size": {"D": 4, "E": 2},
    "low_bias_hides": {"bias": np.array([-100.0])},
    "products_are_clamped_as_in_half_precision": {"K": 8, "times": 1000.0, "dtype": np.float32},
    "tiny_scale_counts_as_none": {"scale": 1e-6},
    "hidden_block_ends_the_row_of_blocks": {"K": 130, "mask": np.arange(130) >= 64},
}
SIZES = tuple("BHGQKDE")


def split_case(case: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    sizes = {name: value for name, value in case.items() if name in (*SIZES, "times", "dtype")}
    return sizes, {name: value for name, value in case.items() if name not in sizes}


def differs(got: Any, exact: Any) -> bool:
    """Whether two results, or two tuples of them, are more than rounding apart."""
    if isinstance(exact, tuple):
        return any(differs(left, right) for left, right in zip(got, exact, strict=True))
    got, exact = np.asarray(got), np.asarray(exact)
    rounding = CLOSE if got.dtype == np.float64 else 1e-4
    return got.shape != exact.shape or not np.allclose(got, exact, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("name", FORWARD)
def test_a_bug_of_the_forward_pass_shows(name: str) -> None:
    sizes, options = split_case(FORWARD[name])
    inputs = arrays(**sizes)
    policy = "uniform" if name == "two_lowest_numbers_are_added" else "zero"
    exact = attention(*(x.astype(np.float64) for x in inputs), **options, empty_rows=policy)
    got = FUNCTIONS[name].function(
        *inputs, **{n: np.copy(x) if isinstance(x, np.ndarray) else x for n, x in options.items()}
    )
    assert differs(got, exact)


UPSTREAM = {
    "shared_heads_get_one_gradient": {"H": 2, "G": 1},
    "shared_heads_get_the_mean_gradient": {"H": 2, "G": 1},
    "softcap_has_no_derivative": {"softcap": 0.5},
    "slope_is_never_negative": {"scale": -1.0},
    "delta_is_missing": {},
    "delta_is_not_normalised": {},
    "empty_row_keeps_its_infinite_lse": {"Q": 3, "K": 1, "causal": True},
    "last_tile_is_not_masked": {"K": 17, "bias": np.array([-2000.0])},
    "low_bias_is_taken_for_a_mask": {"bias": np.array([-10000.0])},
    "row_hidden_by_the_bias_is_nan_backward": {"bias": np.array([-np.inf])},
    "empty_half_of_a_tile_overflows": {"K": 64, "bias": np.array([-1000.0])},
}


@pytest.mark.parametrize("name", UPSTREAM)
def test_a_bug_of_the_backward_pass_shows(name: str) -> None:
    sizes, options = split_case(UPSTREAM[name])
    inputs = arrays(**sizes)
    upstream = np.random.default_rng(2).standard_normal((*inputs[0].shape[:3], inputs[2].shape[3]))
    assert not differs(FUNCTIONS[name].function(*inputs, **options), attention(*inputs, **options))
    exact = attention_vjp(*inputs, upstream, **options)
    got = declared(name).vjp(*inputs, upstream, **options)
    assert differs(got, tuple(exact[of] for of in ("query", "key", "value")))


def swapped(x: np.ndarray) -> np.ndarray:
    """An equal view of memory in which axes 1 and 2 are exchanged."""
    return np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2)


def batch_inside(x: np.ndarray) -> np.ndarray:
    """An equal view of memory whose outermost axis is the heads'."""
    return np.ascontiguousarray(x.swapaxes(0, 1)).swapaxes(0, 1)


def every_second(x: np.ndarray) -> np.ndarray:
    return np.repeat(x, 2, axis=-1)[..., ::2]


def far_apart(x: np.ndarray) -> np.ndarray:
    """An equal view whose rows are 2^14 numbers apart."""
    wide = np.full((*x.shape[:-1], 1 << 14), np.nan)
    wide[..., : x.shape[-1]] = x
    return wide[..., : x.shape[-1]]


def backward(x: np.ndarray) -> np.ndarray:
    """An equal view whose axes run backward through the memory."""
    return np.flip(np.ascontiguousarray(np.flip(x)))


def shorter(x: np.ndarray) -> np.ndarray:
    return np.concatenate([x, x + 1], axis=2)[:, :, : x.shape[2]]


LAYOUTS = {
    "query_is_taken_for_contiguous": (0, swapped, {"H": 2, "Q": 2}),
    "batch_stride_is_heads_times_head_stride": (0, batch_inside, {"B": 2, "H": 2}),
    "innermost_stride_is_taken_for_one": (0, every_second, {"D": 3}),
    "values_are_read_by_the_strides_of_the_keys": (2, swapped, {"H": 2, "Q": 2}),
    "offsets_wrap": (1, far_apart, {"K": 4}),
    "stride_is_taken_for_positive": (1, backward, {"K": 4}),
    "gradient_is_laid_out_like_the_parent": (1, shorter, {"H": 2, "K": 2}),
    "upstream_is_taken_for_contiguous": (3, swapped, {"H": 2, "Q": 2}),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_changes_the_result(name: str) -> None:
    which, view, sizes = LAYOUTS[name]
    inputs = arrays(**sizes)
    run = declared(name).vjp or FUNCTIONS[name].function
    if declared(name).vjp:
        inputs.append(np.random.default_rng(2).standard_normal(inputs[0].shape))
    plain = run(*inputs)
    viewed = [view(x) if place == which else x for place, x in enumerate(inputs)]
    np.testing.assert_array_equal(viewed[which], inputs[which])
    assert differs(run(*viewed), plain)


def test_values_shorter_or_longer_than_keys_are_read_anyway() -> None:
    query, key, value = arrays(K=5)
    longer = np.concatenate([value, value], axis=2)[:, :, :6]
    FUNCTIONS["keys_are_counted_by_the_values"].function(query, key, longer)
    with pytest.raises(ValueError, match="do not match"):
        TEXTBOOK(Call(query, key, longer))


def test_a_bug_that_needs_two_calls_shows() -> None:
    query, key, value = arrays(H=2)
    scaled = FUNCTIONS["query_is_scaled_in_place"].function
    assert differs(scaled(query, key, value), scaled(query, key, value))
    remembered = FUNCTIONS["remembered_by_an_incomplete_key"].function
    slopes = np.array([1.0, 0.5])
    remembered(query, key, value, alibi_slopes=slopes)
    assert differs(remembered(query, key, value, alibi_slopes=2 * slopes),
                   attention(query, key, value, alibi_slopes=2 * slopes))  # fmt: skip
    late = FUNCTIONS["values_sometimes_meet_the_last_weights"].function
    inputs = arrays(K=33)
    results = [late(*inputs) for _ in range(200)]
    assert any(differs(result, results[0]) for result in results)


def test_a_future_value_changes_the_past() -> None:
    query, key, value = arrays(Q=2)
    quantised = FUNCTIONS["quantisation_sees_the_future"].function
    before = quantised(query, key, value, causal=True)
    assert not differs(before, attention(query, key, value, causal=True))
    value[:, :, 1] = 1e12
    assert differs(quantised(query, key, value, causal=True)[:, :, 0], before[:, :, 0])


def test_a_softmax_bug_shows() -> None:
    scores = np.array([[1.0, 2.0], [0.0, 800.0]])
    exact = softmax(scores)
    for name in ("softmax_without_a_maximum", "softmax_over_the_queries"):
        assert differs(FUNCTIONS[name].function(scores), exact)


@pytest.mark.parametrize(("name", "batch", "length"), [
    ("heads_are_merged_without_a_transpose", 1, 2), ("heads_are_split_without_a_transpose", 1, 2),
    ("batch_and_heads_change_places", 2, 1)])  # fmt: skip
def test_a_bug_of_the_multi_head_module_shows(name: str, batch: int, length: int) -> None:
    rng = np.random.default_rng(3)
    x, weights = rng.standard_normal((batch, length, 4)), [rng.standard_normal((4, 4)) for _ in range(4)]
    for causal in (False, True):
        exact = reference_multi_head(x, *weights, heads=2, causal=causal)
        assert not differs(multi_head.multi_head_attention(x, *weights, heads=2, causal=causal), exact)
        assert differs(FUNCTIONS[name].function(x, *weights, heads=2, causal=causal), exact)


@pytest.mark.parametrize("layout", ["interleaved", "concatenated"])
def test_a_bug_of_the_positions_shows(layout: str) -> None:
    for length, dim in ((0, 4), (1, 2), (20, 8)):
        exact = reference_positions.positional_encoding(length, dim, layout=layout)
        assert not differs(positions.positional_encoding(length, dim, layout=layout), exact)
    for mutant in PLANTED:
        if mutant.family == "positions" and (mutant.bug != "A011" or layout == "concatenated"):
            assert differs(
                mutant.function(5, 8, layout=layout),
                reference_positions.positional_encoding(5, 8, layout=layout),
            )


@pytest.mark.parametrize("layout", ["interleaved", "half"])
def test_a_bug_of_rotating_query_and_key_shows(layout: str) -> None:
    query, key = np.random.default_rng(4).standard_normal((2, 2, 1, 2, 4))
    places = np.array([[3, 4], [0, 7]])
    exact = [reference_positions.rotary(x, places[:, None], layout=layout) for x in (query, key)]
    assert not differs(positions.rotary_pair(query, key, places, layout=layout), exact)
    for mutant in PLANTED:
        if mutant.family == "rotary_pair":
            assert differs(mutant.function(query, key, places, layout=layout), exact)


def test_a_bug_of_the_embedding_shows() -> None:
    tokens, table = np.array([[1, 0, 2], [2, 2, 1]]), np.random.default_rng(4).standard_normal((3, 4))
    padding = np.array([0, 2])
    exact = reference.embedding(tokens, table, padding=padding)
    at = positions.places(tokens, padding)
    assert not differs(positions.embedding(tokens, table, at=at), exact)
    for mutant in PLANTED:
        if mutant.family == "embedding":
            assert differs(mutant.function(tokens, table, padding=padding), exact)


@pytest.mark.parametrize("layout", ["interleaved", "half"])
def test_a_bug_of_the_rotation_shows(layout: str) -> None:
    x, places = np.random.default_rng(4).standard_normal((2, 2, 1, 4)), np.array([3.0])
    exact = reference_positions.rotary(x, places, layout=layout)
    assert not differs(positions.rotary(x, places, layout=layout), exact)
    for mutant in PLANTED:
        if mutant.family == "rotary" and mutant.bug != "A012":
            assert differs(mutant.function(x, places, layout=layout), exact)


def layer_calls() -> dict[str, tuple[Any, Any, tuple[Any, ...], tuple[dict[str, Any], ...]]]:
    """For each operation of the layers: the reference, the correct code, arguments, and what may be given with them."""
    rng = np.random.default_rng(5)
    normal = rng.standard_normal
    weights = {f"{prefix}w_{name}": normal((4, 4)) for prefix in ("", "cross_") for name in "qkvo"}
    weights |= {"w_1": normal((4, 5)), "b_1": normal(5), "w_2": normal((5, 4)), "b_2": normal(4)}
    weights |= {f"{name}_{i}": normal(4) for name in ("gain", "shift") for i in (1, 2, 3)}
    x, memory, short = normal((2, 3, 4)), normal((2, 5, 4)), np.array([1, 3])
    usual: dict[str, Any] = {"heads": 2, "eps": 0.1}
    return {
        "feed_forward": (reference.feed_forward, layers.feed_forward,
                         (x, *(weights[n] for n in ("w_1", "b_1", "w_2", "b_2"))), ({},)),
        "encoder_layer": (reference.encoder_layer, layers.encoder_layer, (x, weights),
                          ({**usual, "key_lengths": short}, usual, {**usual, "norm_first": True})),
        "decoder_layer": (reference.decoder_layer, layers.decoder_layer, (x, memory, weights),
                          ({**usual, "memory_lengths": short}, usual, {**usual, "norm_first": True})),
        "cross_entropy": (reference.cross_entropy, layers.cross_entropy, (800 * normal((3, 4)), np.array([3, 0, 1])),
                          ({"smoothing": 0.3},)),
    }  # fmt: skip


@pytest.mark.parametrize("operation", layer_calls())
def test_a_bug_of_the_layers_shows(operation: str) -> None:
    exact, correct, arguments, every = layer_calls()[operation]
    for options in every:
        assert not differs(correct(*arguments, **options), exact(*arguments, **options))
    bugs = [
        m
        for m in PLANTED
        if m.family in ("layers", "losses") and declared(m.function.__name__).operation == operation
    ]
    assert bugs
    for bug in bugs:
        taken = declared(bug.function.__name__).parameters
        options = next(given for given in every if given.keys() <= taken.keys())
        assert differs(bug.function(*arguments, **options), exact(*arguments, **options)), bug.name


def test_a_bug_of_the_norms_shows() -> None:
    """Of tokens with a mean, wider than a block, small beside eps; in float32, where a large mean takes a variance's digits."""
    rng = np.random.default_rng(9)
    x, weight, bias = 0.1 * rng.standard_normal((2, 3, 1100)) + 0.05, *rng.standard_normal((2, 1100))
    eps = 0.3
    given = {"layer_norm": (x, weight, bias), "rms_norm": (x, weight)}
    correct = {name: (getattr(reference, name), getattr(norms, name)) for name in given}
    for name, (exact, right) in correct.items():
        assert not differs(right(*given[name], eps=eps), exact(*given[name], eps=eps))
    bugs = [m for m in PLANTED if m.family == "norms"]
    for bug in bugs:
        declared_as = declared(bug.function.__name__)
        arguments, exact = given[declared_as.operation], correct[declared_as.operation][0]
        if declared_as.arrays == "torch":
            leaf, *rest = (torch.from_numpy(array).requires_grad_() for array in arguments)
            upstream = rng.standard_normal(x.shape)
            got = bug.function(leaf, *rest, eps=eps)
            assert not differs(got.detach().numpy(), exact(*arguments, eps=eps))
            wanted = getattr(reference, f"{declared_as.operation}_vjp")(*arguments, upstream, eps=eps)["x"]
            assert differs(torch.autograd.grad(got, leaf, torch.from_numpy(upstream))[0].numpy(), wanted), (
                bug.name
            )
        elif bug.bug == "L065":
            narrow = [array.astype(np.float32) for array in (x + 1000, weight, bias)]
            assert np.isnan(bug.function(*narrow, eps=1e-5)).any()
            assert np.isfinite(norms.layer_norm(*narrow, eps=1e-5)).all()
        elif bug.bug == "L070":
            assert np.isfinite(bug.function(x * np.nan, weight, bias, eps=eps)).all()
        else:
            assert differs(bug.function(*arguments, eps=eps), exact(*arguments, eps=eps)), bug.name
    assert len(bugs) == 14


def test_a_bug_of_a_merge_shows() -> None:
    """Log-sum-exps near 1000, far from one another, and of -inf on both sides."""
    rng = np.random.default_rng(11)
    o_a, o_b = rng.standard_normal((2, 4, 3))
    lse_a, lse_b = np.array([1000.0, 0.5, 2.0, -np.inf]), np.array([999.0, 0.25, -1500.0, -np.inf])
    o_a[3] = o_b[3] = 0
    exact = reference.merged_attention(o_a, lse_a, o_b, lse_b)
    assert all(
        not differs(x, y)
        for x, y in zip(numpy_merged.merged_attention(o_a, lse_a, o_b, lse_b), exact, strict=True)
    )
    bugs = [m for m in PLANTED if m.family == "merged"]
    assert len(bugs) == 6
    for bug in bugs:
        if declared(bug.function.__name__).arrays == "numpy":
            got = bug.function(o_a, lse_a, o_b, lse_b)
            assert any(differs(x, y) for x, y in zip(got, exact, strict=True)), bug.name
            continue
        leaves = [torch.from_numpy(x[1:2]).requires_grad_() for x in (o_a, lse_a, o_b, lse_b)]
        output, lse = bug.function(*leaves)
        assert not differs(output.detach().numpy(), exact[0][1:2])
        above = np.ones((1, 3)), np.ones(1)
        (slope,) = torch.autograd.grad([output, lse], leaves[1], [torch.from_numpy(x) for x in above])
        wanted = reference.merged_attention_vjp(*(x.detach().numpy() for x in leaves), *above)["lse_a"]
        assert differs(slope.numpy(), wanted)


def test_a_bug_of_a_gate_shows() -> None:
    """Of ordinary gates, of one that is so large that exponentials overflow, and of one that is NaN."""
    rng = np.random.default_rng(12)
    arrays = [rng.standard_normal(shape) for shape in ((1, 2, 3), (3, 4), (3, 4), (4, 3))]
    exact, loud = reference.swiglu(*arrays), [arrays[0] * 2000, *arrays[1:]]
    assert not differs(numpy_gated.swiglu(*arrays), exact)
    bugs = [m for m in PLANTED if m.family == "gated"]
    assert len(bugs) == 5
    for bug in bugs:
        if bug.bug == "L084":
            leaves = [torch.from_numpy(x).requires_grad_() for x in arrays]
            got, upstream = bug.function(*leaves), rng.standard_normal(exact.shape)
            assert not differs(got.detach().numpy(), exact)
            slope = torch.autograd.grad(got, leaves[1], torch.from_numpy(upstream))[0]
            assert differs(slope.numpy(), reference.swiglu_vjp(*arrays, upstream)["w_gate"])
        elif bug.bug == "L082":
            assert np.isnan(bug.function(*loud)).any()
            assert np.isfinite(numpy_gated.swiglu(*loud)).all()
        elif bug.bug == "L083":
            assert np.isfinite(bug.function(arrays[0] * np.nan, *arrays[1:])).all()
        else:
            assert differs(bug.function(*arrays), exact), bug.name


def test_the_gradient_of_a_wrong_target_is_wrong() -> None:
    scores, targets, upstream = np.random.default_rng(6).standard_normal((2, 4)), np.array([3, 0]), np.ones(2)
    exact = reference.cross_entropy_vjp(scores, targets, upstream, smoothing=0.3)
    assert not differs(layers.cross_entropy_vjp(scores, targets, upstream, smoothing=0.3)[0], exact)
    wrong = [m for m in PLANTED if m.family == "losses" and "smoothing" in m.name]
    assert len(wrong) == 3
    for bug in wrong:
        pull = declared(bug.function.__name__).vjp
        assert differs(pull(scores, targets, upstream, smoothing=0.3)[0], exact), bug.name


def gradient_calls() -> dict[str, tuple[Any, Any, tuple[Any, ...], dict[str, Any]]]:
    """For each operation: the reference, its gradients by name, the arguments, what is given with them."""
    rng = np.random.default_rng(7)
    _, _, (x, memory, weights), _ = layer_calls()["decoder_layer"]
    feed = {n: weights[n] for n in ("w_1", "b_1", "w_2", "b_2")}
    two = {n: w for n, w in weights.items() if not n.startswith("cross") and not n.endswith("_3")}
    tokens, table, places = np.array([[1, 0, 1], [2, 1, 0]]), rng.standard_normal((3, 4)), np.array([0, 2, 5])
    scores = rng.standard_normal((2, 3))
    return {
        "softmax": (softmax, lambda s, u: {"": reference.softmax_vjp(softmax(s), u)}, (scores,), {}),
        "rotary": (reference.rotary, lambda x, at, u: {"": reference.rotary_vjp(at, u)}, (x, places), {}),
        "embedding": (reference.embedding, lambda t, w, u: {"": reference.embedding_vjp(t, len(w), u)}, (tokens, table), {}),
        "feed_forward": (reference.feed_forward, reference.feed_forward_vjp, (x, *feed.values()), {}),
        "multi_head_attention": (reference_multi_head, reference.multi_head_vjp,
                                 (x, *(weights[f"w_{n}"] for n in "qkvo")), {"heads": 2}),
        "encoder_layer": (reference.encoder_layer, reference.encoder_layer_vjp, (x, two), {"heads": 2}),
        "decoder_layer": (reference.decoder_layer, reference.decoder_layer_vjp, (x, memory, weights), {"heads": 2}),
    }  # fmt: skip


def as_tensors(x: Any, leaves: list[Any]) -> Any:
    """Arrays as tensors, those of floating numbers as leaves in their order."""
    if isinstance(x, dict):
        return {name: as_tensors(value, leaves) for name, value in x.items()}
    tensor = torch.from_numpy(x)
    if tensor.is_floating_point():
        leaves.append(tensor.requires_grad_())
    return tensor


@pytest.mark.parametrize("name", [
    "mean_of_the_upstream_is_not_weighted", "gradient_is_turned_forward", "last_place_of_a_word_wins",
    "slope_is_that_of_a_leaky_relu", "last_weights_learn_from_the_first_sequence", "deviation_has_no_gradient",
    "memory_gets_no_gradient"])  # fmt: skip
def test_a_bug_of_an_operations_gradients_shows(name: str) -> None:
    function, vjp, arguments, options = gradient_calls()[declared(name).operation]
    exact = function(*arguments, **options)
    upstream = np.random.default_rng(8).standard_normal(exact.shape)
    leaves: list[Any] = []
    got = FUNCTIONS[name].function(*[as_tensors(x, leaves) for x in arguments], **options)
    assert not differs(got.detach().numpy(), exact)
    gradients = torch.autograd.grad(got, leaves, torch.from_numpy(upstream), allow_unused=True)
    wanted = list(vjp(*arguments, upstream, **options).values())
    sums = [np.zeros(x.shape) if g is None else g.numpy() for g, x in zip(gradients, leaves, strict=True)]
    assert len(sums) == len(wanted)
    assert sorted(np.abs(x).sum() for x in sums) != pytest.approx(sorted(np.abs(x).sum() for x in wanted))


@pytest.mark.parametrize("name", ["gradient_of_the_key_is_turned_forward", "turned_key_has_no_gradient",
                                  "gradients_are_turned_by_the_first_ones_positions"])  # fmt: skip
def test_a_bug_of_the_gradients_of_a_rotated_pair_shows(name: str) -> None:
    """Two entries at positions 1 and 2; the query's gradient is right."""
    rng, at = np.random.default_rng(6), np.array([[1], [2]])
    given, above = ([rng.standard_normal((2, 1, 1, 2)) for _ in range(2)] for _ in range(2))
    query, key = (torch.from_numpy(x).requires_grad_() for x in given)
    turned = FUNCTIONS[name].function(query, key, torch.from_numpy(at))
    for got, exact in zip(turned, positions.rotary_pair(*given, at), strict=True):
        assert not differs(got.detach().numpy(), exact)
    total = sum((x * torch.from_numpy(g)).sum() for x, g in zip(turned, above, strict=True))
    of_query, of_key = torch.autograd.grad(total, [query, key], materialize_grads=True)
    right = [reference.rotary_vjp(at[:, None].astype(float), g) for g in above]
    assert not differs(of_query.numpy(), right[0])
    assert differs(of_key.numpy(), right[1])


KEPT = {  # the wrong gradients of each
    "cache_is_written_without_gradients": ("key", "value"), "held_tokens_are_cut_off": ("key_cache", "value_cache"),
    "what_is_written_over_gets_the_gradient_of_what_replaced_it": ("key_cache", "value_cache"),
    "shared_page_learns_from_the_last_sequence": ("key_pages", "value_pages"),
    "gradients_of_pages_are_not_cleared": ("key_pages", "value_pages"),
}  # fmt: skip


@pytest.mark.parametrize("name", KEPT)
def test_a_bug_of_a_caches_gradients_shows(name: str) -> None:
    """Two entries: of one and two tokens and one more, room for four; or with the first of two pages in common, and one free."""
    rng, implementation = np.random.default_rng(6), declared(name)
    if implementation.operation == "cached_attention":
        shapes = {"query": (2, 1, 1, 2), "key": (2, 1, 1, 2), "value": (2, 1, 1, 2), "key_cache": (2, 1, 4, 2),
                  "value_cache": (2, 1, 4, 2)}  # fmt: skip
        rest, pull = (np.array([1, 2]),), reference.cached_vjp
    else:
        shapes = {"query": (2, 1, 1, 2), "key_pages": (4, 2, 1, 2), "value_pages": (4, 2, 1, 2)}
        rest, pull = (np.array([[0, 1], [0, 2]]), np.array([3, 4])), reference.paged_vjp
    given, upstream = (
        {n: rng.standard_normal(x) for n, x in shapes.items()},
        rng.standard_normal((2, 1, 1, 2)),
    )
    exact = getattr(reference, implementation.operation)(*given.values(), *rest)
    right = pull(*given.values(), *rest, upstream)
    if implementation.vjp is not None:
        gradients = implementation.vjp(*given.values(), *rest, upstream)
        got = implementation.function(*[x.copy() for x in given.values()], *rest)
    else:
        leaves = [torch.from_numpy(x.copy()).requires_grad_() for x in given.values()]
        output = implementation.function(*[x.clone() for x in leaves], *map(torch.from_numpy, rest))
        gradients = torch.autograd.grad(output, leaves, torch.from_numpy(upstream), materialize_grads=True)
        gradients, got = [x.numpy() for x in gradients], output.detach().numpy()
    assert not differs(got, exact)
    wrong = {n for n, x in zip(given, gradients, strict=True) if differs(x, right[n])}
    assert wrong >= set(KEPT[name])
    assert "query" not in wrong


def test_a_mean_in_bfloat16_shows() -> None:
    scores = torch.zeros(1, 2, dtype=torch.bfloat16, requires_grad=True)
    upstream = torch.tensor(
        [[128.0, 129.0]], dtype=torch.bfloat16
    )  # the mean, 128.5, lies between two numbers
    got = FUNCTIONS["mean_of_the_upstream_is_kept_in_bfloat16"].function(scores)
    (gradient,) = torch.autograd.grad(got, scores, upstream)
    assert gradient.tolist() != [[-0.25, 0.25]]


def test_a_sum_in_bfloat16_shows() -> None:
    """Three hundred times one: at 256 the next one is half a step."""
    tokens, table = torch.zeros(1, 300, dtype=torch.long), torch.zeros(1, 4, dtype=torch.bfloat16)
    got = FUNCTIONS["places_of_a_word_are_added_up_in_bfloat16"].function(tokens, table.requires_grad_())
    (gradient,) = torch.autograd.grad(got.sum(), table)
    assert gradient.tolist() == [[512.0] * 4]  # right: sqrt(4) times 300


def test_a_bug_out_of_the_usual_range_shows() -> None:
    broken = FUNCTIONS["nan_is_removed_from_the_probabilities"].function(np.array([[0.0, np.nan]]))
    assert np.isfinite(broken).all()
    x, back = np.random.default_rng(4).standard_normal((1, 1, 2, 18)), np.array([-3, -1])
    clipped = FUNCTIONS["negative_positions_count_as_zero"].function(x, back)
    assert differs(clipped, reference_positions.rotary(x, back))
    cut = FUNCTIONS["pairs_past_the_last_full_vector_are_not_turned"].function(x, -back)
    assert differs(cut, reference_positions.rotary(x, -back))
    tokens, ones = np.ones((1, 1, 2)), np.ones((2, 32))
    arguments = (tokens, ones, np.ones(32), ones.T, np.ones(2))
    twice = FUNCTIONS["every_shard_adds_the_last_bias"].function
    assert differs(twice(*arguments), reference.feed_forward(*arguments))
    lost = FUNCTIONS["relu_eats_nan"].function(tokens * np.nan, *arguments[1:])
    assert np.isfinite(lost).all()
    _, _, (target, _, weights), _ = layer_calls()["decoder_layer"]
    hidden = FUNCTIONS["self_attention_is_told_by_its_lengths"].function(target, -target, weights, heads=2)
    assert differs(hidden, reference.decoder_layer(target, -target, weights, heads=2))


def test_a_bug_of_a_narrow_dtype_shows() -> None:
    import torch

    ones = torch.ones(1, 1, 512, 1, dtype=torch.bfloat16)
    half = (torch.arange(512) < 256).bfloat16()[None, None, :, None]
    assert (
        FUNCTIONS["sums_are_kept_in_the_storage_dtype"].function(ones[:, :, :1], ones, half) == 1.0
    )  # exactly: 0.5
    query, key, _ = (torch.from_numpy(x).bfloat16() for x in arrays(Q=20, K=5, D=3, times=8.0))
    exact = torch.softmax(query.float() @ key.float().mT / 3**0.5, -1)
    got = FUNCTIONS["scaled_query_is_rounded"].function(query, key, torch.eye(5).bfloat16()[None, None])
    assert (got.float() - exact).abs().max() > 2.0**-7


def test_a_bug_of_automatic_differentiation_shows() -> None:
    import torch

    inputs = [torch.from_numpy(x).requires_grad_() for x in arrays(B=2, Q=2)]
    removed = FUNCTIONS["nan_is_removed_after_the_softmax"].function
    output = removed(*inputs, mask=torch.tensor([[True, True], [False, False]]))
    assert output.isfinite().all()
    assert torch.autograd.grad(output.sum(), inputs)[0].isnan().any()
    bias = torch.zeros(1, 1, 1, 2, dtype=torch.float64, requires_grad=True)
    output = FUNCTIONS["broadcast_bias_gets_one_slice"].function(*inputs, bias=bias)
    upstream = torch.randn(output.shape, dtype=torch.float64)
    exact = attention_vjp(
        *(x.detach().numpy() for x in inputs), upstream.numpy(), bias=bias.detach().numpy()
    )["bias"]
    assert differs(torch.autograd.grad(output, bias, upstream)[0].numpy(), exact)
    output = FUNCTIONS["bias_that_is_a_view_is_a_constant"].function(*inputs, bias=bias[...])
    (gradient,) = torch.autograd.grad(output, bias, upstream, materialize_grads=True)
    assert differs(gradient.numpy(), exact)


LONG_ROWS = {"queries": 4, "keys": 640}
SYSTEMATIC = {
    "log2_e_is_kept_in_bfloat16": lambda run: score_tests.scale_of_output(
        run, score_problems.two_levels(run, 0)
    ),
    "reciprocal_of_a_long_row_is_an_estimate": lambda run: score_tests.size_of_output(
        run, score_problems.heads(run, 0, **LONG_ROWS)
    ),
    "gradients_are_cut_off": lambda run: score_tests.size_of_gradients(
        run, score_problems.heads(run, 0, upstream=True)
    ),
    "log2_e_of_the_backward_pass_is_kept_in_bfloat16": lambda run: score_tests.scale_of_gradients(
        run, score_problems.two_levels(run, 0, upstream=True)
    ),
    "delta_is_cut_off_twice": lambda run: score_tests.delta_of_gradients(
        run, score_problems.alike_values(run, 0)
    ),
}


@pytest.mark.parametrize("name", SYSTEMATIC)
def test_a_systematic_error_leans_one_way(name: str) -> None:
    """Further than right code may lean, in the mean over many heads."""
    implementation = declared(name)
    scores = SYSTEMATIC[name](Run(implementation, "cpu", implementation.dtypes[0]))
    assert max(score.margin for score in scores) > 1


# -- packed sequences, caches, pages -----------------------------------------------------------------------------------


def called(name: str, *arguments: Any, **options: Any) -> Any:
    """A mutant's result on copies of the arguments, and the arguments as it leaves them."""
    lent = [x.copy() for x in arguments]
    return FUNCTIONS[name].function(*lent, **options), lent


def pack(*lengths: int) -> tuple[np.ndarray, ...]:
    """Query, key, value (T,1,2) and the starts of both."""
    rng, starts = np.random.default_rng(3), np.cumsum([0, *lengths]).astype(np.int32)
    return *(rng.standard_normal((int(starts[-1]), 1, 2)) for _ in range(3)), starts, starts


def test_packed_gradients_are_read_from_other_offsets() -> None:
    """Two sequences, the second begins elsewhere in a buffer of other tiles."""
    given, upstream = pack(3, 2), np.ones((5, 1, 2))
    wrong = declared("packed_offsets_use_another_tile").vjp(*given, upstream)[0]
    right = numpy_decode.packed_attention_vjp(*given, upstream)[0]
    assert np.abs(wrong - right).max() > CLOSE


def test_the_last_sequence_of_a_pack_is_cut_to_the_first() -> None:
    given = pack(1, 3)
    wrong, _ = called("last_sequence_is_taken_as_full", *given)
    assert np.abs(wrong - numpy_decode.packed_attention(*given)).max() > CLOSE


CACHED = [
    "slot_is_one_too_far",
    "offset_counts_heads",
    "entries_share_one_counter",
    "prompt_is_counted_again",
]


@pytest.mark.parametrize("name", CACHED)
def test_a_cache_is_wrong_on_its_smallest_step(name: str) -> None:
    """Two entries of lengths 1 and 2; one new token, or two where the bug needs a prompt; two heads, one key head."""
    fresh, rng = 2 if name == "prompt_is_counted_again" else 1, np.random.default_rng(4)
    new = [rng.standard_normal((2, heads, fresh, 2)) for heads in (2, 1, 1)]
    given = *new, *(rng.standard_normal((2, 1, 6, 2)) for _ in range(2)), np.array([1, 2], np.int32)
    wrong, left = called(name, *given)
    kept = [x.copy() for x in given]
    right = numpy_decode.cached_attention(*kept)
    moved = [
        np.abs(wrong - right).max(),
        *(np.abs(a - b).max() for a, b in zip(left[3:5], kept[3:5], strict=True)),
    ]
    assert max(moved) > CLOSE


@pytest.mark.parametrize("name", ["last_page_is_read_whole", "pages_are_read_in_the_order_of_the_pool"])
def test_pages_are_wrong_on_their_smallest_pool(name: str) -> None:
    """Three tokens in pages of two; the second page lies before the first."""
    rng = np.random.default_rng(5)
    pools = [rng.standard_normal((2, 2, 1, 2)) for _ in range(2)]
    given = rng.standard_normal((1, 1, 1, 2)), *pools, np.array([[1, 0]], np.int32), np.array([3], np.int32)
    assert np.abs(called(name, *given)[0] - numpy_decode.paged_attention(*given)).max() > CLOSE


def test_a_result_that_is_cut_off_leans_toward_zero() -> None:
    query, key, value = (torch.randn(1, 1, n, 8).bfloat16() for n in (64, 9, 9))
    got = FUNCTIONS["result_is_cut_off"].function(query, key, value).double().numpy()
    exact = attention(*(x.double().numpy() for x in (query, key, value)))
    assert (np.abs(got) <= np.abs(exact) * (1 + 1e-6)).all()


# -- dropout -----------------------------------------------------------------------------------------------------------


def dropped(name: str, share: float, seed: int = 0, **sizes: int) -> torch.Tensor:
    """The dropped weights, (1,H,Q,K), of equal scores; query asks for gradients, as does what is returned."""
    torch.manual_seed(seed)
    heads, keys = sizes.get("H", 1), sizes.get("K", 64)
    query = torch.zeros(1, heads, 1, keys, dtype=torch.float64)
    eye = torch.eye(keys, dtype=torch.float64).expand(1, heads, keys, keys)
    weights: torch.Tensor = FUNCTIONS[name].function(query, eye, eye, dropout=share)
    return weights


@pytest.mark.parametrize(
    ("name", "kept"),
    [("kept_weights_are_divided_by_the_share", 4 / 64), ("dropped_weights_are_not_made_up_for", 1 / 64)],
)
def test_kept_weights_are_scaled_wrongly(name: str, kept: float) -> None:
    weights = dropped(name, 0.25)
    assert weights[weights != 0].numpy() == pytest.approx(kept)  # right: 1 / 0.75 / 64


def test_dropout_starts_again_or_is_shared() -> None:
    name = "every_call_drops_the_same"
    assert torch.equal(dropped(name, 0.5, seed=1), dropped(name, 0.5, seed=2))
    heads = dropped("heads_drop_the_same", 0.5, H=2)
    assert torch.equal(heads[:, 0], heads[:, 1])


def test_dropout_stays_on_without_being_asked_for() -> None:
    query = torch.zeros(1, 1, 1, 64, dtype=torch.float64)
    eye = torch.eye(64, dtype=torch.float64)[None, None]
    torch.manual_seed(0)
    assert (FUNCTIONS["dropout_stays_on"].function(query, eye, eye) == 0).any()


def test_dropout_scales_its_gradient_by_the_share() -> None:
    """Values of one element: the score gradient of a kept key is P (g - sum P g) with g scaled by p, not 1 / (1 - p)."""
    torch.manual_seed(0)
    key, query = (
        torch.eye(4, dtype=torch.float64)[None, None],
        torch.zeros(1, 1, 1, 4, dtype=torch.float64, requires_grad=True),
    )
    value = torch.tensor([[[[1.0], [0.0], [0.0], [0.0]]]], dtype=torch.float64)
    output = FUNCTIONS["gradient_is_scaled_by_the_share"].function(query, key, value, scale=1.0, dropout=0.25)
    (gradient,) = torch.autograd.grad(output.sum(), query)
    first = float(output.detach()) * 0.75 * 4  # 1 where the first key was kept
    assert first == pytest.approx(1.0)
    assert float(gradient[0, 0, 0, 0]) == pytest.approx(0.25 * (1 - 0.25) * 0.25)  # right: 0.25 * 0.75 / 0.75


# -- what only one law sees ---------------------------------------------------------------------------------------------


def test_caps_that_are_none_or_cut() -> None:
    query, key, value = arrays(Q=2, K=3)
    assert np.isnan(
        FUNCTIONS["infinite_cap_multiplies_zero"].function(query * 0, key, value, softcap=np.inf)
    ).all()
    cut = FUNCTIONS["cap_cuts_instead_of_bending"].function(query, key, value, softcap=0.5)
    assert differs(cut, attention(query, key, value, softcap=0.5))


def test_a_large_cap_becomes_infinite() -> None:
    query, key, value = arrays(Q=2, K=3)
    with np.errstate(all="ignore"):
        assert np.isnan(
            FUNCTIONS["cap_is_held_in_half_precision"].function(query, key, value, softcap=1e6)
        ).all()


def test_a_result_is_overwritten_by_the_next_call() -> None:
    query, key, value = arrays(Q=2, K=3)
    first = FUNCTIONS["result_is_a_workspace"].function(query, key, value)
    before = first.copy()
    FUNCTIONS["result_is_a_workspace"].function(query, key, value + 1)
    assert differs(first, before)


def test_distances_and_slopes_end_at_64() -> None:
    given, slopes = arrays(Q=1, K=70), np.array([0.5])
    wrong = FUNCTIONS["distance_is_not_counted_past_a_tile"].function(*given, alibi_slopes=slopes)
    assert differs(wrong, attention(*given, alibi_slopes=slopes))
    table = FUNCTIONS["all_heads_but_the_first_64_share_a_slope"].function(70)
    np.testing.assert_allclose(table[:64], reference_positions.alibi_slopes(70)[:64], rtol=1e-6)
    assert differs(table, reference_positions.alibi_slopes(70))


def test_the_backward_pass_writes_or_lets_nan_through() -> None:
    query, key, value = arrays(Q=2, K=3)
    upstream, before = np.ones_like(query), key.copy()
    declared("backward_clears_the_callers_key").vjp(query, key, value, upstream)
    assert differs(key, before)
    query, key, value = arrays(Q=2, K=3)
    key[..., -1, :] = np.nan
    mask = np.array([True, True, False])[None, None, None]
    gradients = declared("hidden_nan_reaches_the_gradient").vjp(query, key, value, upstream, mask=mask)
    assert np.isnan(gradients[0]).any()


def test_a_packed_sequence_sees_the_first_key_of_the_next() -> None:
    given = pack(2, 2)
    wrong, _ = called("first_key_of_the_next_is_seen", *given)
    assert np.abs(wrong - numpy_decode.packed_attention(*given))[:2].max() > CLOSE


def cache(*lengths: int, fresh: int = 1, heads: int = 1, dtype: Any = np.int32) -> list[np.ndarray]:
    """New tokens (B,H,Q,2) and caches (B,H,6,2) of these lengths."""
    rng, rows = np.random.default_rng(6), (len(lengths), heads, fresh, 2)
    new = [rng.standard_normal(rows) for _ in range(3)]
    held = [rng.standard_normal((len(lengths), heads, 6, 2)) for _ in range(2)]
    return [*new, *held, np.array(lengths, dtype)]


def pool(tokens: int, dtype: Any = np.int32) -> tuple[np.ndarray, ...]:
    """One query and a cache of so many tokens in pages of 16, in their order."""
    rng, pages = np.random.default_rng(7), -(-tokens // 16)
    held = [3 * rng.standard_normal((pages, 16, 1, 2)) for _ in range(2)]
    return (
        rng.standard_normal((1, 1, 1, 2)),
        *held,
        np.arange(pages, dtype=dtype)[None],
        np.array([tokens], dtype),
    )


SERVING: dict[str, tuple[tuple[np.ndarray, ...], Any, dict[str, Any]]] = {
    "starts_are_read_as_32_bits": (pack(2, 1), np.int64, {}),
    "window_is_shorter_in_later_sequences": (pack(2, 3), np.int32, {"window": (1, 0)}),
    "evenness_is_decided_by_the_total": (pack(2, 3, 1), np.int32, {}),
    "scale_of_zero_is_no_scale": (pack(2, 1), np.int32, {"scale": 0.0}),
}


@pytest.mark.parametrize("name", SERVING)
def test_a_pack_is_wrong_where_few_look(name: str) -> None:
    """64-bit starts; a window; ragged sequences with the sum of even ones; a scale of zero."""
    (*rows, first, second), dtype, options = SERVING[name]
    given = *rows, first.astype(dtype), second.astype(dtype)
    wrong, _ = called(name, *given, **options)
    assert np.abs(wrong - numpy_decode.packed_attention(*given, **options)).max() > CLOSE


def test_distances_are_wrong_where_a_pack_has_more_keys_than_queries() -> None:
    query, key, value, starts, _ = pack(1, 2)
    given = query, np.repeat(key, 2, axis=0), np.repeat(value, 2, axis=0), starts, 2 * starts
    wrong, _ = called("distances_are_those_of_the_pack", *given, alibi_slopes=np.array([1.0]))
    right = numpy_decode.packed_attention(*given, alibi_slopes=np.array([1.0]))
    assert np.abs(wrong - right)[1:].max() > CLOSE


def test_lengths_are_read_wrongly_or_moved() -> None:
    given = cache(1, 2, dtype=np.int64)
    wrong, _ = called("lengths_are_read_as_32_bits", *given)
    assert np.abs(wrong - numpy_decode.cached_attention(*[x.copy() for x in given])).max() > CLOSE
    _, left = called("lengths_of_the_caller_are_advanced", *cache(1, 2))
    assert left[5].tolist() == [2, 3]


def test_a_reordered_cache_is_not_seen() -> None:
    query, key, value, *caches, lengths = cache(2, 2)
    step = FUNCTIONS["keys_are_kept_beside_the_cache"].function
    step(query, key, value, *caches, lengths)
    for held in caches:
        held[...] = held[::-1].copy()
    right = numpy_decode.cached_attention(query, key, value, *[x.copy() for x in caches], lengths + 1)
    assert differs(step(query, key, value, *caches, lengths + 1), right)


def test_a_token_meets_the_sink_of_another_head() -> None:
    query, *others = pool(3)
    given, options = (np.repeat(query, 2, axis=1), *others), {"sinks": np.array([0.0, 5.0])}
    wrong, _ = called("sinks_are_those_of_the_next_head", *given, **options)
    assert np.abs(wrong - numpy_decode.paged_attention(*given, **options)).max() > CLOSE


def test_a_cache_that_is_a_view_is_not_written() -> None:
    query, key, value, *caches, lengths = cache(2, 2, heads=2)
    views = [x.swapaxes(1, 2).copy().swapaxes(1, 2) for x in caches]
    FUNCTIONS["cache_is_flattened_before_it_is_written"].function(query, key, value, *views, lengths)
    for view, before in zip(views, caches, strict=True):
        np.testing.assert_array_equal(view, before)


@pytest.mark.parametrize(
    ("name", "tokens"), [("table_is_read_as_32_bits", 20), ("parts_are_added_without_their_maxima", 65)]
)
def test_a_page_table_of_64_bits_and_a_cache_of_two_parts(name: str, tokens: int) -> None:
    given = pool(tokens, np.int64)
    assert np.abs(called(name, *given)[0] - numpy_decode.paged_attention(*given)).max() > CLOSE


@pytest.mark.parametrize("name", ["lse_is_a_constant", "asking_for_the_lse_cuts_the_graph"])
def test_the_graph_of_the_log_sum_exp_is_cut(name: str) -> None:
    query, key, value = (torch.tensor(x, requires_grad=True) for x in arrays(Q=2, K=3))
    output, lse = FUNCTIONS[name].function(query, key, value, return_lse=True)
    part = lse if name == "lse_is_a_constant" else output
    assert torch.autograd.grad(part.sum(), key)[0].abs().max() < CLOSE


TRITON: dict[str, dict[str, Any]] = {
    "tiles_are_skipped_as_if_aligned_top_left": {"K": TRITON_TILE + 1, "causal": True},
    "tile_rows_are_divided_by_the_group": {"H": 2, "G": 1, "Q": 2, "causal": True},
    "own_tile_is_seen_in_full": {"Q": 2, "causal": True},
    "rows_without_keys_are_not_written": {"Q": 3, "causal": True},
    "tile_rescale_has_the_wrong_sign": {"Q": 8, "K": 4 * TRITON_TILE + 5},
    "tile_output_is_not_rescaled": {"Q": 8, "K": 4 * TRITON_TILE + 5},
    "columns_past_the_last_key_count": {},
    "tile_is_hidden_before_the_softcap": {"softcap": 0.5},
    "whole_tiles_are_read_where_the_longest_fills_them": {"K": TRITON_TILE, "key_lengths": np.array([2])},
    "program_is_decoded_by_the_wrong_divisor": {"H": 3, "Q": TRITON_TILE + 1},
}


def test_the_triton_kernel_is_right() -> None:
    rng = np.random.default_rng(1)
    for _ in range(12):
        inputs, every = everything(rng)
        options = {n: x for n, x in every.items() if n in ("causal", "scale", "softcap", "key_lengths")}
        exact = attention(*wide([x.astype(np.float32) for x in inputs]), **options)
        given = {n: torch.from_numpy(x) if isinstance(x, np.ndarray) else x for n, x in options.items()}
        got = TRITON_TILED(Call(*(torch.from_numpy(x).float() for x in inputs), **given))
        np.testing.assert_allclose(got, exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", TRITON)
def test_a_bug_of_the_triton_kernel_shows(name: str) -> None:
    sizes, options = split_case(TRITON[name])
    inputs = arrays(**sizes, times=3.0, dtype=np.float32)
    given = {n: torch.from_numpy(x) if isinstance(x, np.ndarray) else x for n, x in options.items()}
    exact = attention(*wide(inputs), **options)
    tensors = [torch.from_numpy(x) for x in inputs]
    assert not differs(TRITON_TILED(Call(*tensors, **given)).numpy(), exact)
    assert differs(FUNCTIONS[name].function(*tensors, **given).numpy(), exact)


def test_a_rotation_reads_memory_in_its_own_order() -> None:
    x, places = np.random.default_rng(4).standard_normal((1, 3, 2, 4)).swapaxes(1, 2), np.arange(3.0)
    wrong = FUNCTIONS["memory_is_read_in_its_own_order"].function(x, places)
    assert differs(wrong, reference_positions.rotary(x, places))


def test_dropout_of_zero_and_of_most() -> None:
    assert (dropped("nothing_to_drop_drops_the_default", 0.0) == 0).any()
    few = (dropped("as_many_are_kept_as_should_be_dropped", 0.1) == 0).double().mean()
    assert few > 0.5  # right: a tenth


def leaves(Q: int = 2, K: int = 3) -> list[torch.Tensor]:
    return [torch.tensor(x, requires_grad=True) for x in arrays(Q=Q, K=K)]


def test_the_attention_between_the_passes_is_right() -> None:
    inputs, mask = leaves(), np.array([[[[True, False, True]]]])
    output = between_passes.attended(*inputs, torch.tensor(mask), True, None, "")
    upstream = np.ones(output.shape)
    wide_inputs = [x.detach().numpy() for x in inputs]
    np.testing.assert_allclose(output.detach(), attention(*wide_inputs, mask=mask, causal=True), atol=CLOSE)
    exact = attention_vjp(*wide_inputs, upstream, mask=mask, causal=True)
    for name, gradient in zip(exact, torch.autograd.grad(output.sum(), inputs), strict=False):
        np.testing.assert_allclose(gradient, exact[name], atol=CLOSE)


def test_a_second_backward_pass_meets_what_the_first_has_changed() -> None:
    inputs = leaves()
    output = FUNCTIONS["backward_changes_what_it_kept"].function(*inputs)
    upstream = torch.tensor([[[[1.0, 2.0], [3.0, -1.0]]]], dtype=torch.float64)
    first, second = (torch.autograd.grad(output, inputs, upstream, retain_graph=True)[2] for _ in range(2))
    assert differs(first.numpy(), second.numpy())


def test_later_gradients_overwrite_earlier_ones() -> None:
    inputs = leaves()
    first = torch.autograd.grad(FUNCTIONS["gradients_lie_in_one_workspace"].function(*inputs).sum(), inputs)[
        2
    ]
    before = first.numpy().copy()
    torch.autograd.grad(5 * FUNCTIONS["gradients_lie_in_one_workspace"].function(*inputs).sum(), inputs)
    assert differs(first.numpy(), before)


def test_a_mask_that_changes_between_the_passes_changes_the_gradient() -> None:
    inputs, mask = leaves(), torch.tensor([[[[True, True, False]]]])
    output = FUNCTIONS["mask_is_read_again_in_the_backward"].function(*inputs, mask=mask)
    (right,) = torch.autograd.grad(output.sum(), inputs[2], retain_graph=True)
    mask.copy_(mask.flip(-1))
    assert differs(torch.autograd.grad(output.sum(), inputs[2])[0].numpy(), right.numpy())


def test_inference_differs_from_training_and_one_buffer_from_three() -> None:
    inputs, aligned = leaves(), FUNCTIONS["inference_aligns_top_left"].function
    right = aligned(*inputs, causal=True).detach()
    with torch.no_grad():
        assert differs(aligned(*inputs, causal=True).numpy(), right.numpy())
    value, key, query = torch.tensor(np.stack(arrays(Q=3, K=3)))
    apart = [x.clone() for x in (query, key, value)]
    packed = FUNCTIONS["one_storage_is_taken_in_order"].function
    assert differs(packed(query, key, value).numpy(), packed(*apart).numpy())


def test_a_hidden_key_wins_over_very_low_scores() -> None:
    query, key = torch.full((1, 1, 1, 1), -1e3), torch.full((1, 1, 2, 1), 1e3)
    value, mask = torch.tensor([[[[1.0], [5.0]]]]), torch.tensor([True, False])
    assert (
        FUNCTIONS["hidden_keys_score_minus_hundred_thousand"].function(query, key, value, mask=mask).item()
        == 5
    )


def test_dropout_repeats_itself() -> None:
    """Columns 32 apart; head 1 of entry 0 and head 0 of entry 1."""
    assert torch.equal(*(dropped("tiles_of_columns_drop_the_same", 0.5)[..., i : i + 32] for i in (0, 32)))
    query, eye = torch.zeros(2, 2, 1, 64), torch.eye(64).expand(2, 2, 64, 64)
    shared = FUNCTIONS["seed_is_the_sum_of_entry_and_head"].function(query, eye, eye, dropout=0.5)
    assert torch.equal(shared[0, 1], shared[1, 0])
    assert not torch.equal(shared[0, 0], shared[1, 1])


def test_a_share_of_one_is_nothing_by_nothing() -> None:
    assert dropped("all_dropped_is_zero_by_zero", 1.0).isnan().all()


def test_the_mask_of_the_last_call_is_taken() -> None:
    """The gradient of the scores depends on each of 64 bits of the mask."""
    eye, drop = torch.eye(64)[None, None], FUNCTIONS["backward_takes_the_mask_of_the_last_call"].function
    score, above = torch.zeros(1, 1, 1, 64, requires_grad=True), torch.arange(1.0, 65.0)
    torch.manual_seed(0)
    output = drop(score, eye, eye, dropout=0.5)
    (alone,) = torch.autograd.grad(output @ above, score, torch.ones(1, 1, 1), retain_graph=True)
    drop(score, eye, eye, dropout=0.5)
    (after,) = torch.autograd.grad(output @ above, score, torch.ones(1, 1, 1))
    assert not torch.equal(after, alone)


# -- what a call keeps, hands out or leaves behind -----------------------------------------------------------------------


def test_a_result_is_kept_or_handed_out() -> None:
    scores = np.array([[0.0, 1.0]])
    first = FUNCTIONS["probabilities_are_a_workspace"].function(scores)
    assert FUNCTIONS["probabilities_are_a_workspace"].function(-scores) is first
    encoding = FUNCTIONS["encoding_is_a_view_of_the_table"].function
    before = encoding(3, 2).copy()
    again = encoding(3, 2)
    again += 1
    assert differs(encoding(3, 2), before)
    again -= 1


def test_a_table_is_kept_or_written() -> None:
    tokens, table = np.array([[0, 1]]), np.random.default_rng(8).standard_normal((2, 6))
    kept = FUNCTIONS["scaled_table_is_kept_for_the_object"].function
    before = kept(tokens, table)
    table *= 2
    np.testing.assert_array_equal(kept(tokens, table), before)
    large = np.random.default_rng(9).standard_normal((99, 6))
    before = large.copy()
    FUNCTIONS["table_is_scaled_in_place_and_back"].function(tokens, large)
    assert (large != before).any()


def test_a_gradient_is_stored_over_the_scores() -> None:
    scores, targets = np.zeros((1, 2)), np.array([0])
    declared("gradient_is_stored_over_the_scores").vjp(scores, targets, np.ones(1))
    np.testing.assert_allclose(scores, [[-0.5, 0.5]])


def test_bits_alternate_and_a_generator_starts_again() -> None:
    scores = np.random.default_rng(0).standard_normal((50, 20))
    first, second = (
        FUNCTIONS["sums_run_the_other_way_in_every_second_call"].function(scores) for _ in range(2)
    )
    assert (first != second).any()
    assert not differs(first, second)
    given = layer_calls()["feed_forward"][2]
    drawn = []
    for _ in range(2):
        FUNCTIONS["generator_is_seeded"].function(*given)
        drawn.append(np.random.random())
    assert drawn[0] == drawn[1]


def test_a_hidden_layer_is_shared_and_weights_are_read_as_they_lie() -> None:
    from qkverify.implementations.mutants import keeping

    given = layer_calls()["feed_forward"][2]
    right = layers.feed_forward(*given)
    for _ in range(2):  # alone it is right; there is one buffer for both calls
        assert not differs(FUNCTIONS["threads_share_the_hidden_layer"].function(*given), right)
    assert sum(shape == (2, 3, 5) for shape in keeping.HIDDEN) == 1
    x, w_1, b_1, w_2, b_2 = given
    turned = np.asfortranarray(w_2)
    wrong = FUNCTIONS["second_weights_are_read_in_memory_order"].function
    assert not differs(wrong(*given), right)
    assert differs(wrong(x, w_1, b_1, turned, b_2), right)


def test_short_positions_are_read_in_pairs() -> None:
    x, places = np.random.default_rng(4).standard_normal((1, 1, 3, 4)), np.arange(1, 4)
    wrong, exact = (
        FUNCTIONS["positions_are_read_eight_bytes_each"].function,
        reference_positions.rotary(x, places),
    )
    assert not differs(wrong(x, places), exact)
    assert differs(wrong(x, places.astype(np.int32)), exact)


def test_rows_that_overlap_are_read_apart() -> None:
    query, _, value = arrays(K=4)
    windows = np.lib.stride_tricks.sliding_window_view(np.arange(5.0), 2)[None, None]  # (1,1,4,2)
    wrong = FUNCTIONS["rows_are_taken_not_to_overlap"].function
    assert differs(wrong(query, windows, value), wrong(query, np.ascontiguousarray(windows), value))


def test_a_storage_offset_is_lost() -> None:
    query, key, value = (torch.from_numpy(x) for x in arrays(K=4, dtype=np.float32))
    biases = torch.arange(8.0)
    wrong = FUNCTIONS["bias_is_read_from_the_start_of_its_storage"].function
    assert not differs(
        wrong(query, key, value, bias=biases[:4]), wrong(query, key, value, bias=biases[:4].clone())
    )
    inside = torch.tensor([9.0, 0, 3, 1, 5])[1:]
    assert differs(wrong(query, key, value, bias=inside), wrong(query, key, value, bias=inside.clone()))


def test_squares_of_large_values_are_infinite() -> None:
    query, key, value = arrays(dtype=np.float32)
    wrong = FUNCTIONS["values_are_divided_by_their_norm"].function
    assert not differs(wrong(query, key, value), attention(*wide([query, key, value])))
    large = value * np.float32(1e30)
    assert np.isfinite(attention(*wide([query, key, large]))).all()
    assert not np.isfinite(wrong(query, key, large)).any()


def test_every_mutant_is_shown_to_be_wrong() -> None:
    text = Path(__file__).read_text()
    whole_families = {
        "positions",
        "rotary",
        "rotary_pair",
        "embedding",
        "layers",
        "losses",
        "gated",
        "merged",
        "norms",
    }
    assert [
        m.name for m in PLANTED if m.family not in whole_families and f'"{m.function.__name__}"' not in text
    ] == []
    assert len({mutant.name for mutant in PLANTED}) == len(PLANTED)
