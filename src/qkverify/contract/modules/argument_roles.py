"""What a constructor's argument, or a field of its configuration, stands for: read off its name.

embed_dim, d_model, n_embd, hidden_size, dim     width        M, of a token
num_heads, n_head, nhead, h                      heads        H
head_dim, d_k, dim_head                          head_size    D
dim_feedforward, d_ff, mlp_dim                   inner        F
block_size, max_len, context_length              length       the longest sequence
vocab_size, num_embeddings                       vocabulary   V
dropout, attn_pdrop, drop_rate                   off          zero
"""

from __future__ import annotations

import re
from collections.abc import Mapping

SIZES = ("width", "heads", "head_size", "inner", "length", "vocabulary")

_NAMES: Mapping[str, str] = {
    "width": "embed_dim embed_size embedding_dim embedding_size emb_dim emb_size emb d_model model_dim dim_model model_size "
             "n_embd n_embed n_emb embd hidden_size hidden_dim hid_dim dim d width channels in_channels input_dim output_dim "
             "input_size output_size d_in d_out in_dim out_dim dim_in dim_out query_dim context_dim features in_features "
             "num_features n_state embed embeddings embedding d_embed dmodel dims q_dim kdim vdim size num_hiddens "
             "normalized_shape model_width d_hid",
    "heads": "num_heads n_heads n_head nhead nheads num_head heads head h num_attention_heads n_attn_heads "
             "attention_heads number_of_heads head_num nb_heads num_attn_heads encoder_attention_heads n_attention_heads "
             "num_kv_heads n_kv_heads n_kv_head num_key_value_heads kv_heads num_query_groups num_kv_groups",
    "head_size": "head_dim d_head dim_head head_size d_k d_v dk dv d_key d_value d_q key_dim value_dim qk_dim v_dim "
                 "size_per_head dim_per_head d_kv attention_head_size head_features key_size value_size query_size "
                 "dim_key dim_value per_head_dim d_qk head_width",
    "inner": "dim_feedforward d_ff dff ffn_dim d_inner hidden_features mlp_dim intermediate_size ff_dim ffn_hidden "
             "feed_forward_dim ffn_hidden_size d_ffn inner_dim ff_size d_feedforward pf_dim ffn_size n_inner ffn_num_hiddens "
             "feedforward_dim dim_ff hidden_dim_ff",
    "length": "block_size max_len max_length max_seq_len max_seq_length max_sequence_length seq_len seq_length "
              "sequence_length context_length max_position_embeddings n_positions n_ctx ctx_len context_size maxlen max_l "
              "max_context_length num_positions max_positions sequence_len seqlen max_seqlen T",
    "vocabulary": "vocab_size num_embeddings vocab n_vocab src_vocab num_tokens n_tokens vocabulary_size num_classes tgt_vocab",
}  # fmt: skip
ROLES: Mapping[str, str] = {name: role for role, names in _NAMES.items() for name in names.lower().split()}

OFF = re.compile(r"drop|(^|_)pdrop$|^p$|droppath|stochastic_depth")
CAUSAL = re.compile(r"^(is_)?(causal|masked|autoregressive|causal_mask|unidirectional)$")
NORM_FIRST = re.compile(r"^(norm_first|pre_?norm|norm_before|normalize_before|use_pre_norm|is_pre_norm)$")
EPSILON = re.compile(r"^(layer_?norm_)?(eps|epsilon)$|^layer_norm_(eps|epsilon)$|^norm_eps$")


def snake(name: str) -> str:
    """embedDim -> embed_dim."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().lstrip("_")


def role_of(name: str) -> str | None:
    """One of `SIZES`, "off", "causal", "norm_first" or "eps"; None for a name that says none of these."""
    plain = snake(name)
    if plain in ROLES:
        return ROLES[plain]
    for word, pattern in (("off", OFF), ("causal", CAUSAL), ("norm_first", NORM_FIRST), ("eps", EPSILON)):
        if pattern.search(plain):
            return word
    return None
