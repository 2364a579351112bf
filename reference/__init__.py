"""The truth that implementations are judged by: float64, plain NumPy, one line per step, like the formula.

The code also runs on NumPy duck arrays (NEP 13, NEP 18), which is how each formula yields its own rounding
bound: see `qkverify.rounding.Bounded`. So what is done to the arguments keeps to these operations:

    + - * / ** @ and comparisons; np.exp log tanh sin cos sqrt maximum heaviside isfinite; np.sum, np.max (axis,
    keepdims, initial); np.where swapaxes reshape repeat concatenate stack broadcast_to; indexing, .shape, .ndim;

and np.positive, under the name `stored`: here an implementation writes to memory, in its output dtype; and np.copy,
under the name `merged`: here it may have put results of splits together. What never rounds (masks, distances, the
identity) is plain NumPy. Sizes are checked, nothing else. Arguments are arrays, never lists.
"""

from qkverify.reference.attention import attention, stored, weights
from qkverify.reference.attention_vjp import attention_vjp
from qkverify.reference.attention_vjp_in_steps import attention_vjp_in_steps
from qkverify.reference.cached_vjp import cached_vjp
from qkverify.reference.caches import cached_attention, paged_attention
from qkverify.reference.embedding import embedding
from qkverify.reference.encoder_decoder import decoder_layer, encoder_layer
from qkverify.reference.encoder_decoder_vjp import decoder_layer_vjp, encoder_layer_vjp
from qkverify.reference.gated import silu, swiglu, swiglu_vjp
from qkverify.reference.layers import feed_forward
from qkverify.reference.layers_vjp import feed_forward_vjp
from qkverify.reference.losses import cross_entropy, cross_entropy_vjp, smoothed
from qkverify.reference.masks import distance, visible
from qkverify.reference.merging import merged_attention, merged_attention_vjp
from qkverify.reference.multi_head import merge_heads, multi_head_attention, split_heads
from qkverify.reference.multi_head_vjp import multi_head_vjp
from qkverify.reference.norms import layer_norm, rms_norm
from qkverify.reference.norms_vjp import layer_norm_vjp, rms_norm_vjp
from qkverify.reference.paged_vjp import paged_vjp
from qkverify.reference.positions import alibi_slopes, positional_encoding, rotary, rotate
from qkverify.reference.positions_vjp import embedding_vjp, rotary_vjp
from qkverify.reference.scores import scores
from qkverify.reference.self_attention import (
    from_embeddings,
    from_queries_and_keys,
    from_queries_keys_and_values,
)
from qkverify.reference.softmax import (
    log_sum_exp,
    softmax,
    softmax_jacobian,
    softmax_vjp,
    softmax_vjp_in_steps,
)

__all__ = [
    "alibi_slopes", "attention", "attention_vjp", "attention_vjp_in_steps", "cached_attention", "cached_vjp", "cross_entropy",
    "cross_entropy_vjp", "decoder_layer", "decoder_layer_vjp", "distance", "embedding", "embedding_vjp", "encoder_layer",
    "encoder_layer_vjp", "feed_forward", "feed_forward_vjp", "from_embeddings", "from_queries_and_keys",
    "from_queries_keys_and_values", "layer_norm", "layer_norm_vjp", "log_sum_exp", "merge_heads", "merged_attention",
    "merged_attention_vjp", "multi_head_attention", "multi_head_vjp", "paged_attention", "paged_vjp", "positional_encoding",
    "rms_norm", "rms_norm_vjp", "rotary", "rotary_vjp", "rotate", "scores", "silu", "smoothed", "softmax", "softmax_jacobian",
    "softmax_vjp", "softmax_vjp_in_steps", "split_heads", "stored", "swiglu", "swiglu_vjp", "visible", "weights",
]  # fmt: skip
