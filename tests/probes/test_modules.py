"""Classes and instances of torch.nn.Module as targets: what is found out of them, and that a wrong one stays wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import Phase

import qkverify
from qkverify import probes
from qkverify.contract import adapters
from qkverify.counterexamples.diagnosis import trial_of
from qkverify.counterexamples.diagnosis.deadline import Deadline
from qkverify.counterexamples.diagnosis.operations import claim_about
from qkverify.errors import LawViolation, NothingVerified, UsageError
from qkverify.runs.run import Run
from qkverify.verification.checking import laws_named, verify

STYLES = Path(__file__).with_name("module_styles.py")
AGREES = "multi_head_agrees_with_reference"


def of(name):
    (implementation,) = probes.find(f"{STYLES}:{name}")
    return implementation


def said(name):
    return "\n".join(of(name).remarks)


def holds(implementation, *laws):
    verification = verify(implementation, dtypes=("float32",), profile="glance", laws=laws)
    return bool(verification.verdicts) and not verification.failures


def check_without_shrinking(implementation):
    (law,) = laws_named([AGREES])
    law.check(Run(implementation), max_examples=8, seed=1, phases=(Phase.generate,))


RIGHT = {
    "FusedWithConfiguration": (
        "c_attn.weight is query, key and value, side by side, (out,in); c_proj.weight is the output's", "it is always causal"),
    "Clones": (
        "linears.0.weight is query, (out,in); linears.1.weight is key, (out,in); linears.2.weight is value, (out,in); "
        "linears.3.weight is the output's", "mask is a mask (B,L,L), bool, True where a token is seen"),
    "SequenceFirst": ("tokens are (L,B,M)", "mask is a mask (L,L,B), bool, True where a token is seen"),
    "WithoutProjection": (
        "it has no projection of its output", "attention_mask is a mask (L,L), added to the scores, -inf", "0 is the output"),
    "Vision": ("qkv.weight is query, key and value, side by side", "it has no mask and is not causal"),
    "HeadByHead": ("qkv.weight is query, key and value, head by head",),
    "ListOfHeads": ("heads.0.key.weight is key of one head", "it is always causal"),
    "multi_head": (
        "an instance of MultiheadAttention: 3 heads of size 8", "attn_mask is a mask (L,L), bool, True where a token is hidden"),
    "short": ("sequences of at most 9 tokens",),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_what_a_style_is_is_found_out_and_printed_and_holds(name):
    implementation = of(name)
    for sentence in RIGHT[name]:
        assert sentence in "\n".join(implementation.remarks)
    assert holds(implementation, AGREES, "multi_head_gradients_agree_with_reference")


@pytest.mark.parametrize("name", ["MultiheadAttention", "modules.activation.MultiheadAttention"])
def test_a_class_of_torch_is_a_target_by_its_module(name):
    (implementation,) = probes.find(f"torch.nn:{name}")
    assert "tokens are (L,B,M)" in "\n".join(implementation.remarks)
    assert holds(implementation, AGREES)


@pytest.mark.parametrize("name", [f"{STYLES}:encoder", "torch.nn:TransformerEncoderLayer"])
def test_an_encoder_layer_is_one(name):
    (implementation,) = probes.find(name)
    assert implementation.operation == "encoder_layer"
    assert (
        "src_key_padding_mask is a mask of padding (B,L), bool, True where a token is hidden"
        in implementation.remarks
    )
    assert ("norm_first" in implementation.parameters) is ("nn" in name)  # an instance has it as it is
    assert holds(
        implementation,
        "encoder_agrees_with_reference",
        "encoder_gradients_agree_with_reference",
        "encoder_padding_*",
    )


def test_a_mask_of_padding_that_is_ignored_is_broken():
    (law,) = laws_named(["encoder_padding_has_no_influence"])
    with pytest.raises(LawViolation):
        law.check(Run(of("PaddingIgnored")), max_examples=8, seed=1, phases=(Phase.generate,))


def test_what_is_always_causal_is_given_no_other_problem():
    run = Run(of("FusedWithConfiguration"))
    (law,) = laws_named([AGREES])
    law.check(run, max_examples=8, seed=1)
    assert run.refused == 0


BUGS = {
    "WithoutScale": "without a scale",
    "MaskIgnored": "without causality",
    "NotTransposedBack": "whose heads are merged without a transpose",
    "OneTokenTooMany": "whose tokens see one token of the future",
    "SoftmaxOverQueries": "whose softmax is taken over the queries instead of the keys",
    "ProjectionForgotten": "without the projection of its output",
    "ClonesWithoutScale": "without a scale",
    "SequenceFirstWrongAxis": "whose softmax is taken over the queries instead of the keys",
    "ValuesForKeys": "with the weights of keys and values exchanged",
}


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_broken_with_its_cause_whatever_the_weights_might_be(name):
    implementation = of(name)
    with pytest.raises(LawViolation):
        check_without_shrinking(implementation)
    run = Run(implementation)
    trial = trial_of(run)
    trial.seconds = 60.0
    claim = claim_about(run, Deadline(60.0), trial)
    assert claim is not None
    assert BUGS[name] in claim.sentence


REFUSED = {
    "NamelessSize": "its argument 'zork' could mean anything\n  say what it is: --sizes zork=WHAT, or in the file: attention = "
                    "qkverify.module(NamelessSize, sizes={'zork': ...})",
    "UnknownParameter": "has a parameter 'offset' of shape (3, 7), whose name does not say what it is\n  say what it is: "
                        "--weights offset=WHAT, or in the file: attention = "
                        "qkverify.module(UnknownParameter, weights={'offset': ...})",
    "RaisesAlways": "raises an error on the plainest call, x of shape (2, 5, 12): RuntimeError: not today",
    "Normed": "has a norm, 'layer_norm', which multi_head_attention has not",
    "OneMatrixForAllHeads": "is not multi-head attention with a matrix for all heads together: qkv.weight has shape (12, 4), and "
                            "(36, 12) is given",
    "Residual": "adds its input to the result, which is more than attention",
    "Rotary": "has a rotary embedding, which multi_head_attention has no option for",
    "gelu": "has gelu, and that of encoder_layer relu",
    "NoModule": "is a class, and no torch.nn.Module",
    "GemmaMLP": "the gate of GemmaMLP has gelu, and that of swiglu SiLU",
    "norm_without_bias": "whose weights are weight and bias, one axis each, and its parameters are: weight (8,)",
    "table": "a table of embeddings alone is no operation of qkverify",
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_taken_is_refused_with_the_way_round(name):
    with pytest.raises(NothingVerified) as refusal:
        of(name)
    assert REFUSED[name] in str(refusal.value)


def test_what_no_law_reaches_is_said_in_the_last_line():
    reached = verify(of("multi_head"), dtypes=("float32",), profile="glance", laws=("multi_head_*",))
    (lacking,) = reached.unverified.values()
    assert {"biases", "cross-attention", "other masks"} <= {*lacking}
    (outcome,) = reached.outcomes.values()
    assert "biases (zero in all calls)" in str(outcome)
    assert outcome.exit_code(strict=True) == 4


def styles():
    of("softmax")
    return probes.registry.load_file(STYLES)


def test_what_a_name_does_not_say_the_user_does():
    sized = qkverify.module(styles().NamelessSize, sizes={"zork": "width"})
    assert holds(sized, AGREES)
    kept = qkverify.module(styles().UnknownParameter, weights={"offset": "zero"})
    assert holds(kept, AGREES)


def test_the_users_word_for_a_weight_counts_and_is_judged():
    """Said to be side by side, what is head by head is broken; said to hold values for keys, exchanged matrices are right."""
    wrong = qkverify.module(styles().HeadByHead, weights={"qkv.weight": "qkv side by side"})
    with pytest.raises(LawViolation):
        check_without_shrinking(probes.fitted(wrong))
    exchanged = qkverify.module(styles().ValuesForKeys, weights={"qkv.weight": "qvk"})
    assert holds(exchanged, AGREES)


@pytest.mark.parametrize(
    ("weights", "words"),
    [({"nothing.weight": "q"}, "unknown parameter 'nothing.weight'"), ({"qkv.weight": "xyz"}, "'qkv.weight' is 'xyz'")],
)  # fmt: skip
def test_a_word_that_is_none_is_a_mistake_of_the_user(weights, words):
    with pytest.raises(UsageError, match=words):
        probes.fitted(qkverify.module(styles().Vision, weights=weights))


def test_only_a_module_is_declared_as_one():
    with pytest.raises(UsageError, match=r"takes a class or an instance of torch\.nn\.Module, not int"):
        qkverify.module(3)


@pytest.mark.parametrize(
    ("name", "operation", "law"),
    [
        ("loss", "cross_entropy", "label_smoothing_agrees_with_reference"),
        ("smoothed_loss", "cross_entropy", "label_smoothing_agrees_with_reference"),
        ("softmax", "softmax", "softmax_agrees_with_formula"),
        ("ScaledDotProduct", "attention", "agrees_with_reference"),
        ("SinusoidalPositions", "positional_encoding", "positions"),
    ],
)
def test_modules_without_weights_are_functions_of_their_operation(name, operation, law):
    implementation = of(name)
    assert implementation.operation == operation
    assert holds(implementation, law)


@pytest.mark.parametrize(
    ("name", "operation", "remark"),
    [
        ("norm", "layer_norm", "an instance of LayerNorm for 8 features"),
        ("root_mean_square", "rms_norm", "weight is the weight"),
        ("LayerNorm", "layer_norm", "a_2 is the weight\nb_2 is the bias"),
        ("LlamaRMSNorm", "rms_norm", "weight is the weight"),
        ("GemmaRMSNorm", "rms_norm", "weight is the weight"),
    ],
)
def test_norms_are_taken_as_they_are(name, operation, remark):
    implementation = of(name)
    assert implementation.operation == operation
    assert remark in said(name)
    assert implementation.offers >= (
        {"gradients"} if name in ("norm", "root_mean_square") else {"gradients", "eps"}
    )
    assert holds(implementation, f"{operation}_agrees_with_reference", "norm_gradients_agree_with_reference")


GATED = ("swiglu_agrees_with_reference", "swiglu_gradients_agree_with_reference")


@pytest.mark.parametrize("name", ["LlamaMLP", "mlp"])
def test_gated_networks_are_taken_as_they_are(name):
    assert of(name).operation == "swiglu"
    assert "gate_proj.weight is w_gate, (out,in)" in said(name)
    assert holds(of(name), *GATED)


def test_a_gated_network_that_is_wrong_is_broken():
    assert not holds(of("ActivatedProduct"), GATED[0])


def test_an_inner_width_that_its_name_does_not_say_the_user_does():
    with pytest.raises(NothingVerified, match=r'sizes=\{"\.\.\.": "inner"\}'):
        of("NumberedMLP")
    sized = qkverify.module(styles().NumberedMLP, sizes={"hidden_dim": "inner"})
    assert holds(sized, GATED[0])


@pytest.mark.filterwarnings("ignore:std")
def test_a_norm_with_the_deviation_of_a_sample_is_broken():
    assert not holds(of("SampleLayerNorm"), "layer_norm_agrees_with_reference")


def test_building_leaves_the_random_state_as_it_was():
    module = styles()
    torch.manual_seed(7)
    before = torch.get_rng_state()
    probes.fitted(qkverify.module(module.Vision))
    assert torch.equal(torch.get_rng_state(), before)


def test_an_instance_is_not_changed():
    instance = styles().multi_head
    before = {name: x.clone() for name, x in instance.state_dict().items()}
    assert holds(of("multi_head"), AGREES)
    assert instance.training
    assert all(torch.equal(x, before[name]) for name, x in instance.state_dict().items())


ATTEND = """
import torch

class Attend(torch.nn.Module):
    def forward(self, q, k, v, pad=None):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        scores = q @ k.mT * q.shape[-1] ** -0.5
        scores = scores if pad is None else scores.masked_fill(pad[:, None, None], -torch.inf)
        return (scores.softmax(-1) @ v).transpose(1, 2), scores

class Last(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj = torch.nn.Linear(4, 4)

    def forward(self, x):
        return x
"""


def test_what_is_said_of_a_function_can_be_said_of_a_module_without_weights(tmp_path):
    (tmp_path / "attend.py").write_text(ATTEND)
    said = "--layout BLHD --returns 0 --parameters pad=mask --mask hidden:BK"
    (implementation,) = probes.find(f"{tmp_path / 'attend.py'}:Attend {said}")
    assert adapters.written(implementation.adapters) == said
    assert (implementation.layout, implementation.returns, implementation.mask_form) == (
        "BLHD",
        0,
        "hidden:BK",
    )
    assert not verify(
        implementation, dtypes=("float64",), profile="glance", laws=("agrees_with_reference",)
    ).failures
    with pytest.raises(
        UsageError, match=r"layout cannot be said of a module .*\n .*: weights, sizes, operation"
    ):
        probes.find(f"{tmp_path / 'attend.py'}:Last --layout BLHD")
