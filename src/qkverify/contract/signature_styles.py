"""How the libraries of the field name and lay out the arguments of attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from qkverify.contract import losses
from qkverify.contract.operations import DESCRIBED
from qkverify.contract.options import ATTENTIONS, FURTHER, OPERATIONS, OPTIONS


@dataclass(frozen=True)
class SignatureStyle:
    """How one library of the field writes an attention call: `names` maps its parameters to ours."""

    marks: frozenset[str]  # parameters that tell this convention from the others
    names: Mapping[str, str]
    layout: str = "BHLD"
    combined_mask: bool = False  # one parameter takes the boolean mask or the bias
    exclusive: tuple[tuple[str, str], ...] = ()  # pairs of options that it refuses together
    requires: tuple[str, ...] = ()  # sizes that it accepts
    unbounded: int | None = (
        None  # how an open side of a window is written; None: a side longer than any sequence
    )
    semantics: Mapping[str, str] = field(default_factory=dict)


SIGNATURE_STYLES: Mapping[str, SignatureStyle] = MappingProxyType(
    {
        # torch.nn.functional.scaled_dot_product_attention
        "torch": SignatureStyle(
            marks=frozenset({"attn_mask", "is_causal", "dropout_p"}),
            names={
                "attn_mask": "mask",
                "is_causal": "causal",
                "scale": "scale",
                "enable_gqa": "grouped_heads",
                "dropout_p": "dropout",
            },
            combined_mask=True,
            exclusive=(("causal", "mask"), ("causal", "bias")),
        ),
        # jax.nn.dot_product_attention: (B, L, H, D), value size equal to key size
        "jax": SignatureStyle(
            marks=frozenset({"is_causal", "key_value_seq_lengths"}),
            names={
                "mask": "mask",
                "bias": "bias",
                "is_causal": "causal",
                "scale": "scale",
                "local_window_size": "window",
                "key_value_seq_lengths": "key_lengths",
                "return_residual": "return_lse",
            },
            layout="BLHD",
            requires=("E == D",),
        ),
        # flash_attn.flash_attn_func: (B, L, H, D)
        "flash-attn": SignatureStyle(
            marks=frozenset({"softmax_scale", "window_size"}),
            names={
                "causal": "causal",
                "softmax_scale": "scale",
                "window_size": "window",
                "softcap": "softcap",
                "alibi_slopes": "alibi_slopes",
                "dropout_p": "dropout",
                "max_seqlen_q": "longest_query",
                "max_seqlen_k": "longest_key",
            },
            layout="BLHD",
            unbounded=-1,
            semantics={"causal_alignment": "bottom-right"},
        ),
        # the Attention operator of ONNX (opset 23), four-dimensional inputs
        "onnx": SignatureStyle(
            marks=frozenset({"attn_mask", "is_causal", "softcap"}),
            names={"attn_mask": "mask", "is_causal": "causal", "scale": "scale", "softcap": "softcap"},
            combined_mask=True,
        ),
    }
)


# Other spellings of our own names, accepted in a function that follows none of the conventions above.
SPELLINGS: Mapping[str, str] = MappingProxyType(
    {
        "attn_mask": "mask",
        "attention_mask": "mask",
        "key_padding_mask": "mask",
        "padding_mask": "mask",
        "src_mask": "mask",
        "valid_lens": "key_lengths",
        "valid_len": "key_lengths",
        "attn_bias": "bias",
        "attention_bias": "bias",
        "position_bias": "bias",
        "is_causal": "causal",
        "softmax_scale": "scale",
        "sm_scale": "scale",
        "scaling": "scale",
        "qk_scale": "scale",
        "window_size": "window",
        "local_window_size": "window",
        "logit_cap": "softcap",
        "logits_soft_cap": "softcap",
        "soft_cap": "softcap",
        "logit_softcap": "softcap",
        "attn_logit_softcapping": "softcap",
        "s_aux": "sinks",
        "seq_lens": "key_lengths",
        "kv_lengths": "key_lengths",
        "key_value_seq_lengths": "key_lengths",
        "enable_gqa": "grouped_heads",
        "dropout_p": "dropout",
        "dropout_rate": "dropout",
        "max_seqlen_q": "longest_query",
        "max_seqlen_k": "longest_key",
        "max_q": "longest_query",
        "max_k": "longest_key",
    }
)


def signature_style_of(names: Sequence[str], arrays: str) -> str:
    """The convention whose marks all appear among the parameters; where two fit, the more specific one."""
    fitting = [name for name, convention in SIGNATURE_STYLES.items() if convention.marks <= set(names)]
    fitting.sort(key=lambda name: (name == arrays, len(SIGNATURE_STYLES[name].marks)))
    return fitting[-1] if fitting else "qkverify"


def options_of(names: Sequence[str], convention: SignatureStyle | None, operation: str) -> dict[str, str]:
    """Canonical option -> own parameter, for the options that a signature takes."""
    required = len(OPERATIONS[operation])
    table = convention.names if convention else {**SPELLINGS, **{name: name for name in (*OPTIONS, *FURTHER)}}
    if operation not in ATTENTIONS:
        spelled = {other: name for name, others in DESCRIBED[operation].spellings.items() for other in others}
        spelled |= losses.SPELLINGS if operation == "cross_entropy" else {}
        return {spelled.get(name, name): name for name in names[required:] if not name.startswith("_")}
    # Where two parameters mean the same, the first counts, but a mask of padding after one of all axes.
    known = sorted((name for name in names[required:] if name in table), key=lambda name: "padding" in name)
    parameters: dict[str, str] = {}
    for name in known:
        parameters.setdefault(table[name], name)
    if convention is not None and convention.combined_mask and "mask" in parameters:
        parameters["bias"] = parameters["mask"]
    return parameters
