"""The trained model, run with our attention, is the model: every step against transformers' own, on transformers' own inputs.

Each step gets exactly what the model gave to it, and the model's float32 result must lie within the bound that is derived for
that step. So the steps are the model's, one by one, and nothing has to be said of how errors grow through six layers.
"""

from __future__ import annotations

import numpy as np
import pytest

from qkverify.contract import registry
from qkverify.errors import UsageError
from qkverify.problem import pretrained
from qkverify.problem.texts import ANIMAL, alice
from qkverify.reference.attention import weights as attention_weights
from qkverify.reference.layers import linear
from qkverify.reference.multi_head import multi_head_attention
from qkverify.reference.scores import scores
from qkverify.rounding import Bounded, Precision
from qkverify.runs.assertions import assert_within_bound

FLOAT32, FLOAT64 = Precision.plain("float32"), Precision.plain("float64")
needs_model = pytest.mark.skipif(pretrained.lacking() is not None, reason=str(pretrained.lacking()))


def bounded(array, precision=FLOAT32):
    return Bounded(np.asarray(array, np.float64), 0.0, precision)


def theirs(text):
    """What transformers' BertModel computes, by step and layer: (1,L,...), float64 of its float32."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = transformers.BertModel.from_pretrained(pretrained.folder(), attn_implementation="eager").eval()
    by_step = {}

    def keep(name):
        def hook(module, inputs, output):
            by_step[name] = (output[0] if isinstance(output, tuple) else output).double().numpy()

        return hook

    for i, layer in enumerate(model.encoder.layer):
        for name, module in (("context", layer.attention.self), ("mixed", layer.attention.output.dense),
                             ("middle", layer.attention.output), ("inner", layer.intermediate),
                             ("outer", layer.output.dense), ("out", layer.output)):  # fmt: skip
            module.register_forward_hook(keep((name, i)))
    numbers, _ = pretrained.tokenise(text, longest=128)
    with torch.no_grad():
        output = model(torch.tensor([numbers]), output_hidden_states=True, output_attentions=True)
    by_step |= {("in", i): state.double().numpy() for i, state in enumerate(output.hidden_states)}
    by_step |= {("weights", i): weights.double().numpy() for i, weights in enumerate(output.attentions)}
    return numbers, by_step


@pytest.fixture(scope="module", params=["sentence", "page"])
def run(request):
    return theirs(ANIMAL if request.param == "sentence" else alice())


def steps(model, layer, given):
    """The bound of every step of a layer, from the model's own input to it, by the name under which its result was kept."""
    w = {name: bounded(array) for name, array in model.layer(layer).items()}
    x, middle = bounded(given["in", layer]), bounded(given["middle", layer])
    query, key, _ = pretrained.projected(x, w, model.heads)
    alone = {**w, "w_out": bounded(np.eye(x.shape[-1])), "b_out": bounded(np.zeros(x.shape[-1]))}
    return {
        "weights": attention_weights(scores(query, key)),
        "context": pretrained.mixed(x, alone, model.heads, multi_head_attention),
        "mixed": linear(bounded(given["context", layer]), w["w_out"], w["b_out"]),
        "middle": pretrained.normed(x + bounded(given["mixed", layer]), w, 1, model.eps),
        "inner": pretrained.inner(middle, w),
        "outer": pretrained.outer(bounded(given["inner", layer]), w),
        "out": pretrained.normed(middle + bounded(given["outer", layer]), w, 2, model.eps),
    }


@needs_model
def test_every_step_of_every_layer_is_the_models_own(run):
    _, given = run
    model = pretrained.load()
    for layer in range(model.layers):
        for name, bound in steps(model, layer, given).items():
            assert np.isfinite(bound.errors).all(), name
            assert_within_bound(
                Bounded(given[name, layer], bound.errors), bound.value, what=f"{name} of layer {layer}"
            )


@needs_model
def test_the_embeddings_are_the_models_own(run):
    numbers, given = run
    bound = pretrained.embedded(pretrained.load(), numbers, bounded)
    assert_within_bound(Bounded(given["in", 0], bound.errors), bound.value, what="embedding")


@needs_model
def test_the_bounds_are_narrow_enough_to_see_a_wrong_step(run):
    """GELU by its usual approximation, no bias at the output, the norm's other epsilon, scores of the wrong scale."""
    _, given = run
    model = pretrained.load()
    bound, w = steps(model, 0, given), model.layer(0)
    z = linear(given["middle", 0], w["w_inner"], w["b_inner"])
    approximated = 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))
    x, (query, key, _) = given["in", 0], pretrained.projected(given["in", 0], w, model.heads)
    wrong = {
        "inner": approximated,
        "mixed": given["context", 0] @ w["w_out"],
        "weights": attention_weights(scores(query, key, scale=x.shape[-1] ** -0.5)),
        "context": np.roll(given["context", 0], query.shape[-1], axis=-1),  # heads in another order
    }
    for name, value in wrong.items():
        assert (np.abs(value - bound[name].value) > bound[name].errors).any(), name


@needs_model
def test_our_run_is_made_of_the_same_steps():
    """In float64, with the multi-head attention and the attention weights of implementations, against the reference."""
    trace, model = pretrained.trace(ANIMAL), pretrained.load()
    multi_head = registry.find("numpy_multi_head")[0].function
    for layer in range(model.layers):
        plain = model.layer(layer)
        w, x = (
            {name: bounded(array, FLOAT64) for name, array in plain.items()},
            bounded(trace.states[layer], FLOAT64),
        )
        mixed = pretrained.mixed(x, w, model.heads, multi_head_attention)
        got = pretrained.mixed(trace.states[layer], plain, model.heads, multi_head)
        assert_within_bound(
            Bounded(got, 2 * mixed.errors), mixed.value
        )  # twice: the reference rounds as well
        weights = attention_weights(scores(*pretrained.projected(x, w, model.heads)[:2]))
        assert_within_bound(Bounded(trace.attention[layer], 2 * weights.errors), weights.value)
        assert np.array_equal(
            trace.states[layer + 1],
            pretrained.layer(trace.states[layer], plain, model.heads, model.eps, multi_head),
        )


@needs_model
def test_the_tokens_are_those_of_transformers():
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(pretrained.folder())
    for text in (ANIMAL, alice()):
        expected = tokenizer(text, truncation=True, max_length=512, padding=False)["input_ids"]
        assert pretrained.tokenise(text)[0] == expected
    assert pretrained.tokenise(ANIMAL)[1][:4] == ["[CLS]", "the", "animal", "didn"]


def test_without_the_extra_a_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setattr(pretrained, "_importable", lambda name: name != "tokenizers")
    with pytest.raises(UsageError, match=r"needs tokenizers, .* pip install tokenizers"):
        pretrained.folder()


@pytest.mark.parametrize("x", [-9.0, -2.5, -1.0, -1e-3, 0.0, 0.7, 3.0])
def test_the_error_of_erf_covers_what_its_argument_may_be(x):
    error = 0.05
    bounded = pretrained.erf(Bounded(np.array(x), np.array(error), FLOAT64))
    nearby = pretrained.erf(np.linspace(x - error, x + error, 101))
    assert (np.abs(nearby - bounded.value) <= bounded.errors).all()
