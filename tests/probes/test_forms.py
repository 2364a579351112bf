"""Forms of a call that a function shows: what is a mask, always causal, an output parameter, the order of axes."""

from __future__ import annotations

import textwrap

import numpy as np
import pytest

from qkverify import probes
from qkverify.contract import mask_forms
from qkverify.errors import UnsupportedCase, UsageError
from qkverify.verification.checking import verify

from .written import found_in_a_file

LAWS = ("agrees_with_reference", "masked_keys_have_no_influence")
HEAD = """
import numpy as np
import torch


def softmax(scores):
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)
"""
MASKED = """
def attention(q, k, v, {name}=None):
    scores = q @ k.swapaxes(-1, -2) * np.asarray({scale}, q.dtype)
    if {name} is not None:
        {line}
    return softmax(scores) @ v
"""
TORCH_MASKED = MASKED.replace("np.asarray({scale}, q.dtype)", "{scale}").replace(
    "softmax(scores)", "scores.softmax(-1)"
)
RIGHT, WRONG = "q.shape[-1] ** -0.5", "1.02 * q.shape[-1] ** -0.5"


@pytest.fixture
def fitted(tmp_path, monkeypatch):
    """The function `attention` of a file with this text, with what its first calls show."""
    monkeypatch.chdir(tmp_path)

    return lambda text: found_in_a_file(tmp_path, HEAD, text, "attention")


def broken(implementation, laws=LAWS):
    result = verify(implementation, dtypes=("float32",), profile="quick", laws=laws)
    assert any(verdict.outcome in ("passed", "failed") for verdict in result.verdicts)
    return [
        verdict
        for verdict in result.verdicts
        if verdict.outcome != "not offered" and verdict.outcome != "passed"
    ]


MASKS = [
    ("mask", "scores = np.where(mask, scores, -1e30)", "", MASKED),
    ("mask", "scores = np.where(mask, -np.inf, scores)", "hidden:BHQK", MASKED),
    ("mask", "scores = np.where(mask[:, None, None], scores, -1e30)", "visible:BK", MASKED),
    ("key_padding_mask", "scores = scores.masked_fill(key_padding_mask[:, None, None], float('-inf'))", "hidden:BK",
     TORCH_MASKED),
    ("attention_mask", "scores = scores + attention_mask", "additive:BHQK", TORCH_MASKED),
    ("attention_mask", "scores = scores + (1 - attention_mask[:, None, None]) * -1e30", "int:BK", TORCH_MASKED),
    ("mask", "scores = torch.where(mask[:, None], -1e30, scores)", "hidden:BQK", TORCH_MASKED),
    ("mask", "scores = scores.masked_fill(mask.view(1, 1, *mask.shape) == 0, -1e9)", "visible:QK", TORCH_MASKED),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "line", "form", "text"), MASKS, ids=[f"{m[2]}-{i}" for i, m in enumerate(MASKS)]
)
def test_what_a_mask_is_is_found_out_although_the_scale_is_wrong(fitted, name, line, form, text):
    implementation = fitted(text.format(name=name, line=line, scale=RIGHT))
    assert implementation.mask_form == form
    said = [remark for remark in implementation.remarks if remark.startswith(f"{name} is")]
    assert said == ([f"{name} is {mask_forms.words(form)}"] if form else [])
    assert not broken(implementation)
    wrong = fitted(text.format(name=name, line=line, scale=WRONG))
    assert wrong.mask_form == form
    (verdict,) = broken(wrong, ("agrees_with_reference",))
    assert "mask" not in verdict.counterexample.problem


@pytest.mark.parametrize("line", [
    "scores = np.where(np.roll(mask, 1, -1), scores, -1e30) if mask.dtype == bool else scores + mask",
    "pass",
    "scores = np.where(mask[:, :1], scores, -1e30)",  # the mask of the first head for all
    "scores = np.where(mask[:1], scores, -1e30)",  # that of the first batch entry
    "scores = np.where(np.roll(mask, 1, -1), scores, -1e30)",
])  # fmt: skip
def test_a_mask_that_is_used_wrongly_is_no_form(fitted, line):
    implementation = fitted(MASKED.format(name="mask", line=line, scale=RIGHT))
    assert implementation.mask_form == ""
    assert broken(implementation)


def test_a_mask_that_misses_a_key_is_still_a_form_and_broken(fitted):
    line = "scores[..., :-1] = np.where(mask[:, None, None, :-1], scores[..., :-1], -1e30)"
    implementation = fitted(MASKED.format(name="mask", line=line, scale=RIGHT))
    assert implementation.mask_form == "visible:BK"
    assert any("mask" in verdict.counterexample.problem for verdict in broken(implementation))


CAUSAL = """
def attention(q, k, v):
    scores = q @ k.mT * q.shape[-1] ** -0.5 * {factor}
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu({diagonal})
    return scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v
"""


@pytest.mark.parametrize(("factor", "right"), [(1, True), (1.02, False)])
def test_a_function_that_is_always_causal_is_verified_as_that(fitted, factor, right):
    implementation = fitted(CAUSAL.format(diagonal=1, factor=factor))
    assert implementation.always == ("causal",)
    assert "always causal: a query sees no later key, and nothing switches that off" in implementation.remarks
    assert (not broken(implementation)) == right


@pytest.mark.parametrize("diagonal", [0, 2, 3])
def test_a_causal_mask_at_the_wrong_diagonal_is_not_always_causal(fitted, diagonal):
    implementation = fitted(CAUSAL.format(diagonal=diagonal, factor=1))
    assert implementation.always == ()
    assert any("is not causal: query" in remark for remark in implementation.remarks) or diagonal == 0
    assert broken(implementation)


LAYOUTS = {"BHLD": "x", "BLHD": "x.swapaxes(1, 2)", "LBHD": "x.permute(1, 2, 0, 3)", "BLD": "x[:, None]",
           "LBD": "x.swapaxes(0, 1)[:, None]", "LD": "x[None, None]"}  # fmt: skip
BACK = {"BHLD": "x", "BLHD": "x.swapaxes(1, 2)", "LBHD": "x.permute(2, 0, 1, 3)", "BLD": "x[:, 0]",
        "LBD": "x[:, 0].swapaxes(0, 1)", "LD": "x[0, 0]"}  # fmt: skip


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_order_of_axes_is_found_out_although_the_scale_is_wrong(fitted, layout, causal):
    text = f"""
    def attention(query, key, value):
        assert query.ndim == {len(layout)}
        query, key, value = ({LAYOUTS[layout]} for x in (query, key, value))
        x = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal={causal}, scale=SCALE)
        return {BACK[layout]}
    """
    assert fitted(text.replace("SCALE", "None")).layout == layout
    assert fitted(text.replace("SCALE", "1.02")).layout == layout


@pytest.mark.parametrize("signature", ["q, k, v, out", "out, q, k, v", "Q, K, V, O, causal=False"])
@pytest.mark.parametrize("right", [True, False])
def test_an_output_parameter_is_given_an_array_of_nan(fitted, signature, right):
    name = "O" if "O" in signature else "out"
    query, key, value = (x for x in signature.replace(" ", "").split(",") if x.lower() in "qkv")
    text = f"""
    def attention({signature}):
        result = torch.nn.functional.scaled_dot_product_attention({query}, {key}, {value})
        {name}{"[...]" if right else "[..., :-1, :]"} = result{"" if right else "[..., :-1, :]"}
    """
    if "causal" in signature:
        text = text.replace(f"{value})", f"{value}, is_causal=causal)")
    implementation = fitted(text)
    assert implementation.output_parameter == name
    assert (
        f"writes its output to the parameter {name}, which is NaN before the call" in implementation.remarks
    )
    assert (not broken(implementation, ("agrees_with_reference",))) == right


def test_a_mask_is_given_over_the_axes_of_its_form_alone():
    sizes = {"B": 2, "H": 3, "Q": 4, "K": 5}
    mask = np.array([[True] * 5, [True, False] * 2 + [True]]).reshape(2, 1, 1, 5)
    taken = mask_forms.as_taken(mask, "additive:BK", sizes, np.float32)
    assert taken.dtype == np.float32
    assert taken.tolist() == [[0.0] * 5, [0.0, -np.inf] * 2 + [0.0]]
    assert mask_forms.as_taken(mask, "hidden:B11K", sizes, np.float32).shape == (2, 1, 1, 5)
    with pytest.raises(UnsupportedCase, match=r"its mask is \(Q,K\): it cannot differ along other axes"):
        mask_forms.as_taken(mask, "visible:QK", sizes, np.float32)


@pytest.mark.parametrize(
    ("form", "said"), [("inverted", "unknown kind of mask"), ("hidden:KB", "unknown axes of a mask")]
)
def test_a_form_that_does_not_exist_is_refused(form, said):
    with pytest.raises(UsageError, match=said):
        mask_forms.checked(form)


@pytest.mark.parametrize(("line", "form"), [
    ("scores.masked_fill(mask == 0, -1e9)", ""),
    ("scores + mask", "additive:BHQK"),
    ("scores.masked_fill(mask[:, None, None], -1e9)", "hidden:BK"),
])  # fmt: skip
def test_a_mask_that_may_not_be_none_is_one_that_hides_nothing(fitted, line, form):
    implementation = fitted(f"""
    def attention(q, k, v, mask):
        scores = q @ k.mT * q.shape[-1] ** -0.5
        return ({line}).softmax(-1) @ v
    """)
    assert implementation.neutral == {"mask": "every key"}
    assert implementation.mask_form == form
    assert not broken(implementation)


@pytest.mark.parametrize("parameters", ["training=True", "deterministic=False", "dropout_p, training"])
def test_what_switches_chance_off_is_passed(fitted, parameters):
    name = "deterministic" if "deterministic" in parameters else "training"
    rate = "dropout_p" if "dropout_p" in parameters else "0.3"
    implementation = fitted(f"""
    def attention(q, k, v, {parameters}):
        weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
        return torch.nn.functional.dropout(weights, {rate}, {"not " if name == "deterministic" else ""}{name}) @ v
    """)
    assert implementation.constants == {name: name == "deterministic"}
    assert (
        f"{name}={name == 'deterministic'} is passed, so that nothing is left to chance"
        in implementation.remarks
    )
    assert "dropout" not in implementation.offers
    assert not broken(implementation)


@pytest.mark.parametrize("parameter", ["num_heads", "n_heads=4"])
def test_a_number_of_heads_is_one_where_arrays_have_no_axis_of_heads(fitted, parameter):
    name = parameter.partition("=")[0]
    implementation = fitted(f"""
    def attention(q, k, v, {parameter}):
        batch, length, size = q.shape
        q, k, v = (x.unflatten(-1, ({name}, -1)).transpose(1, 2) for x in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    """)
    assert (implementation.layout, implementation.constants, implementation.unknown) == ("BLD", {name: 1}, ())
    assert not broken(implementation)


def test_a_function_that_raises_unless_it_is_causal_is_verified_as_causal(fitted):
    implementation = fitted("""
    def attention(q, k, v, causal=True):
        if not causal:
            raise NotImplementedError("causal only")
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    """)
    assert (implementation.always, implementation.neutral) == (("causal",), {})
    assert not broken(implementation)


def test_axes_of_length_first_have_no_batch_of_stride_zero(fitted):
    implementation = fitted("""
    def attention(q, k, v):
        q, k, v = (x.permute(1, 2, 0, 3) for x in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v).permute(2, 0, 1, 3)
    """)
    assert implementation.layout == "LBHD"
    assert not broken(implementation, ("stride_zero_batch", "agrees_with_reference"))


def test_top_left_is_found_where_no_fewer_queries_than_keys_are_taken(fitted):
    implementation = fitted("""
    def attention(q, k, v):
        scores = q @ k.mT * q.shape[-1] ** -0.5
        later = torch.ones(q.shape[-2], q.shape[-2], dtype=torch.bool).triu(1)[:, : k.shape[-2]]
        return scores.masked_fill(later, float("-inf")).softmax(-1) @ v
    """)
    assert (implementation.always, "Q >= K" in implementation.requires) == (("causal",), True)
    assert not broken(implementation, ("agrees_with_reference",))


def test_what_is_found_is_printed_as_a_declaration_that_means_the_same(fitted):
    text = """
    def attention(q, k, v, out, key_padding_mask=None):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        visible = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
        if key_padding_mask is not None:
            visible = visible & ~key_padding_mask[:, None, None]
        scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~visible, -1e9)
        out[...] = (scores.softmax(-1) @ v).transpose(1, 2)
    """
    implementation = fitted(text)
    line, behind = implementation.remarks[-2:]
    assert behind == (
        "or, behind the target on a command line: --layout BLHD --mask hidden:BK --always causal --output out"
    )
    line = line.removeprefix("to declare this: ")
    assert line.startswith(
        '@implementation(layout="BLHD", mask="hidden:BK", always="causal", output="out", requires=('
    )
    declared = fitted(f"from qkverify import implementation\n\n\n{line}\n{textwrap.dedent(text).strip()}\n")
    assert declared.declared
    for name in ("layout", "mask_form", "always", "output_parameter", "offers", "parameters"):
        assert getattr(declared, name) == getattr(implementation, name), name
    assert not broken(implementation, ("agrees_with_reference",))
    assert not broken(declared, ("agrees_with_reference",))


@pytest.mark.parametrize("shape", ["[:, None, None]", ""])
def test_what_a_row_without_keys_gets_is_found_where_lengths_must_be_equal(fitted, shape):
    implementation = fitted(f"""
    def attention(q, k, v, mask=None):
        scores = q @ k.mT * q.shape[-1] ** -0.5
        scores = scores.masked_fill(torch.ones(2 * q.shape[-2:-1], dtype=torch.bool).triu(1), -1e30)
        if mask is not None:
            scores = scores.masked_fill(~mask{shape}, -1e30)
        return scores.softmax(-1) @ v
    """)
    assert implementation.always == ("causal",)
    assert implementation.mask_form == ("visible:BK" if shape else "")
    assert not broken(implementation, ("agrees_with_reference",))


ADDED = """
import numpy as np

def attention(query, key, value, pad_mask=None):
    query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
    scores = query @ key.swapaxes(-1, -2) * query.dtype.type(query.shape[-1] ** -0.5)
    scores = scores if pad_mask is None else scores + pad_mask[:, None, None]
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return None, (weights / weights.sum(-1, keepdims=True) @ value).swapaxes(1, 2)
"""


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("--layout BLHD --mask additive:BK --returns 1", ""),
        (
            "--layout BHLD",
            "--layout BHLD was said, and its first call is right with --layout BLHD --returns 1",
        ),
        (
            "--mask hidden:BK",
            "pad_mask is said to be (B,K), True = hidden; its first calls show (B,K), added to",
        ),
    ],
)
def test_what_is_said_is_held_to_and_what_the_function_shows_instead_is_told(tmp_path, said, shown):
    (tmp_path / "added.py").write_text(ADDED)
    (implementation,) = probes.find(f"{tmp_path / 'added.py'}:attention --parameters pad_mask=mask {said}")
    for name, value in implementation.adapters.items():
        if name == "mask":
            assert implementation.mask_form == value
        elif name in ("layout", "returns"):
            assert getattr(implementation, name) == value
    told = [remark for remark in implementation.remarks if " said" in remark]
    assert [remark.startswith(shown) for remark in told] == ([True] if shown else [])


TWO_OR_FOUR = """
import numpy as np

def attention(query, key, value, mask=None):
    scores = query @ key.swapaxes(-1, -2) * query.dtype.type(query.shape[-1] ** -0.5)
    if mask is not None:
        mask = mask[:, None, None] if mask.ndim == 2 else mask
        scores = np.where(mask, scores, -1e30)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ value
"""
SLICED = TWO_OR_FOUR.replace("        mask = mask[:, None, None] if mask.ndim == 2 else mask\n", "").replace(
    "np.where(mask, ", "np.where(mask[:, :, :, : key.shape[2]], "
)  # as models write it whose masks may be longer than the keys


@pytest.mark.parametrize(
    ("text", "form", "said"),
    [
        (TWO_OR_FOUR, "visible:4D", "of two axes it is (B,K)"),
        (TWO_OR_FOUR.replace("np.where(mask, ", "np.where(~mask, "), "hidden:4D", "of two axes it is (B,K)"),
        (TWO_OR_FOUR.replace("[:, None, None]", "[:, None]").replace("== 2", "== 3"), "visible:4D", "three axes it is (B,Q,K)"),
        (TWO_OR_FOUR.replace("[:, None, None]", ""), "", ""),
        (SLICED, "visible:4D", "of fewer axes it makes an error"),
        (SLICED.replace("np.where(mask[", "np.where(~mask["), "hidden:4D", "of fewer axes it makes an error"),
    ],
)  # fmt: skip
def test_a_mask_of_fewer_axes_that_is_no_last_part_of_four_is_not_given(tmp_path, text, form, said):
    implementation = found_in_a_file(tmp_path, text, "", "attention")
    assert implementation.mask_form == form
    assert [said in remark for remark in implementation.remarks if "not verified with fewer" in remark] == [
        True
    ] * bool(said)
    assert not broken(implementation, ("mask_broadcasts", "agrees_with_reference"))


def test_a_mask_of_two_axes_that_is_read_wrongly_is_found(tmp_path):
    wrong = TWO_OR_FOUR.replace(
        "[:, None, None]", "[:, None, None] & (np.arange(query.shape[2]) < 2)[:, None]"
    )
    implementation = found_in_a_file(tmp_path, wrong, "", "attention")
    assert implementation.mask_form == ""
    assert broken(implementation, ("mask_broadcasts",))


def test_a_planted_error_in_a_mask_of_four_axes_is_found(tmp_path):
    wrong = TWO_OR_FOUR.replace("np.where(mask, ", "np.where(mask[..., :1, :], ")
    implementation = found_in_a_file(tmp_path, wrong, "", "attention")
    assert broken(implementation, ("agrees_with_reference",))
