"""The contract: capabilities from signatures, foreign conventions, declarations that are checked."""

from __future__ import annotations

import numpy as np
import pytest

from qkverify import implementation, verify
from qkverify.contract import OPTIONS, describe
from qkverify.contract.registry import find
from qkverify.errors import LawViolation, UnsupportedCase, UsageError
from qkverify.probes.conventions import detect
from qkverify.problem.attention_problem import Problem
from qkverify.runs.run import Run
from qkverify.verification.checking import Cell, check_cell


def right(query, key, value, *, mask=None, causal=False):
    return query


def test_the_signature_is_the_list_of_what_is_offered():
    implementation = describe(right)
    assert implementation.offers == {"mask", "causal"}
    assert set(implementation.not_offered) == {*OPTIONS, "gradients"} - {"mask", "causal"}
    with pytest.raises(UnsupportedCase, match="does not offer softcap"):
        implementation.keywords({"softcap": 1.0})


def test_torch_names_and_layout_are_known():
    torch = pytest.importorskip("torch", reason="needs torch")
    implementation = describe(torch.nn.functional.scaled_dot_product_attention)
    assert (implementation.arrays, implementation.convention, implementation.layout) == (
        "torch",
        "torch",
        "BHLD",
    )
    assert implementation.offers == {"mask", "bias", "causal", "scale", "dropout", "gradients"}
    assert implementation.keywords({"causal": True, "scale": 0.5}, grouped=True) == {
        "is_causal": True,
        "scale": 0.5,
        "enable_gqa": True,
    }


def test_jax_names_and_layout_are_known():
    jax = pytest.importorskip("jax", reason="needs jax")
    implementation = describe(jax.nn.dot_product_attention)
    assert (implementation.arrays, implementation.convention, implementation.layout) == ("jax", "jax", "BLHD")
    assert implementation.keywords({"key_lengths": [3], "window": (1, None)})["key_value_seq_lengths"] == [3]


def test_flash_attention_names_and_open_windows_are_known():
    def flash_attn_func(
        q,
        k,
        v,
        dropout_p=0.0,
        softmax_scale=None,
        causal=False,
        window_size=(-1, -1),
        softcap=0.0,
        alibi_slopes=None,
    ): ...

    implementation = describe(flash_attn_func, arrays="torch")
    assert (implementation.convention, implementation.layout) == ("flash-attn", "BLHD")
    assert implementation.keywords({"window": (3, None), "scale": 0.25}) == {
        "window_size": (3, -1),
        "softmax_scale": 0.25,
    }


def test_onnx_names_are_known():
    def Attention(Q, K, V, attn_mask=None, is_causal=0, scale=None, softcap=0.0): ...

    implementation = describe(Attention)
    assert implementation.convention == "onnx"
    assert implementation.offers == {"mask", "bias", "causal", "scale", "softcap"}


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        ({"dtypes": ("float23",)}, "Did you mean 'float32'"),
        ({"causal_alignment": "bottomright"}, "Did you mean 'bottom-right'"),
        ({"causal_aligment": "top-left"}, "Did you mean 'causal_alignment'"),
        ({"requires": ("D <= __import__('os')",)}, "may only compare the sizes"),
        ({"requires": ("D <",)}, "is not an expression"),
        ({"operation": "atention"}, "Did you mean 'attention'"),
    ],
)
def test_a_wrong_declaration_is_named(declared, said):
    with pytest.raises(UsageError, match=said.replace("(", r"\(")):
        implementation(**declared)(right)


def test_sizes_are_judged_by_the_rules_that_speak_of_them():
    implementation = describe(right, requires=("E == D", "D <= 64"))
    assert implementation.accepts({"D": 64}) is None
    assert implementation.accepts({"D": 65}) == "D <= 64"
    assert implementation.accepts({"D": 8, "E": 9}) == "E == D"


def test_an_operation_that_cannot_be_told_lists_the_forms():
    with pytest.raises(UsageError, match="multi_head_attention"):
        describe(lambda a, b: a)


def softmax_over(scores, value):
    weights = np.exp(scores - np.max(scores, axis=-1, keepdims=True, initial=-1e30))
    return weights / weights.sum(-1, keepdims=True) @ value


def top_left(query, key, value, *, causal=False, mask=None):
    scores = query @ key.swapaxes(-1, -2) * query.shape[-1] ** -0.5
    if causal:
        scores = np.where(np.tril(np.ones(scores.shape[-2:], bool)), scores, -1e30)
    return softmax_over(scores if mask is None else np.where(mask, scores, -1e30), value)


def test_undeclared_conventions_are_found_out():
    conventions = {
        name: choice.value for name, choice in detect(describe(top_left), "cpu", "float64").items()
    }
    assert conventions["causal_alignment"] == "top-left"
    assert conventions["empty_rows"] == "uniform"
    assert conventions["masked_values"] == "read"
    assert conventions["deterministic"] == "yes"


def test_a_declared_convention_is_enforced():
    implementation = describe(top_left, name="lies", causal_alignment="bottom-right", dtypes=("float64",))
    with pytest.raises(LawViolation, match="causal aligned top-left; bottom-right is declared"):
        verify(implementation, profile="quick").raise_for_failures()


def test_only_refusals_count_as_not_offered():
    def refuses(query, key, value):
        raise UnsupportedCase("nothing works")

    def breaks(query, key, value):
        raise RuntimeError("boom")

    refused = verify(describe(refuses, dtypes=("float32",)), profile="glance").verdicts
    assert {v.law for v in refused if v.outcome != "not offered"} == {
        "mismatched_sizes_raise"
    }  # it does raise there
    broken = list(check_cell(Cell(describe(breaks, dtypes=("float32",)), "cpu", "float32"), examples=5))
    assert {v.law for v in broken if v.outcome == "passed"} == {"mismatched_sizes_raise"}
    assert "failed" in {v.outcome for v in broken}


def test_targets_are_names_modules_files_and_functions(tmp_path):
    file = tmp_path / "kernel.py"
    file.write_text("def attention(query, key, value): return query\n")
    assert find("numpy_textbook")[0].name == "numpy_textbook"
    assert find(f"{file}:attention")[0].name == "kernel:attention"
    assert find("qkverify.reference.attention:attention")[0].operation == "attention"
    assert find(right)[0].function is right


def test_a_layout_with_lengths_first_is_transposed_both_ways():
    def lengths_first(query, key, value):
        assert query.shape == (1, 5, 2, 3)
        return query

    implementation = describe(lengths_first, layout="BLHD", arrays="numpy")
    x = np.arange(30, dtype=np.float32).reshape(1, 2, 5, 3)
    run = Run(implementation, "cpu", "float32")
    np.testing.assert_array_equal(run.values(Problem(query=x, key=x, value=x)), x)


def test_one_dtype_device_or_rule_alone_is_a_list_of_one():
    implementation = describe(
        lambda query, key, value: query, arrays="numpy", dtypes=("float32"), devices="cpu", requires="G == H"
    )
    assert (implementation.dtypes, implementation.devices, implementation.requires) == (
        ("float32",),
        ("cpu",),
        ("G == H",),
    )
