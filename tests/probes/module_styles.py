"""Modules of attention in the styles of public code, built anew from their interfaces; and each with a planted bug."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional


class FusedWithConfiguration(nn.Module):
    """One map for query, key and value; a causal buffer; sizes from a configuration object."""

    def __init__(self, config):
        super().__init__()
        assert config.n_embd % config.n_head == 0
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)
        self.attn_dropout, self.resid_dropout = nn.Dropout(config.attn_pdrop), nn.Dropout(config.resid_pdrop)
        lower = torch.tril(torch.ones(config.block_size, config.block_size))
        self.register_buffer("bias", lower.view(1, 1, config.block_size, config.block_size))
        self.n_head = config.n_head

    def split(self, x):
        return x.unflatten(-1, (self.n_head, -1)).transpose(1, 2)

    def scale(self, size, width):
        return 1.0 / math.sqrt(size)

    def hidden(self, scores):
        length = scores.shape[-1]
        return scores.masked_fill(self.bias[:, :, :length, :length] == 0, float("-inf"))

    def weights(self, scores):
        return self.attn_dropout(functional.softmax(self.hidden(scores), dim=-1))

    def merge(self, y):
        return y.transpose(1, 2).flatten(2)

    def projected(self, y):
        return self.c_proj(y)

    def forward(self, x):
        query, key, value = (self.split(part) for part in self.c_attn(x).chunk(3, dim=-1))
        scores = query @ key.transpose(-2, -1) * self.scale(query.shape[-1], x.shape[-1])
        return self.resid_dropout(self.projected(self.merge(self.weights(scores) @ value)))


class WithoutScale(FusedWithConfiguration):
    def scale(self, size, width):
        return 1.0


class MaskIgnored(FusedWithConfiguration):
    def hidden(self, scores):
        return scores


class NotTransposedBack(FusedWithConfiguration):
    def merge(self, y):
        return y.contiguous().view(y.shape[0], y.shape[2], -1)


class OneTokenTooMany(FusedWithConfiguration):
    def hidden(self, scores):
        future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(2)
        return scores.masked_fill(future, float("-inf"))


class SoftmaxOverQueries(FusedWithConfiguration):
    def weights(self, scores):
        return functional.softmax(self.hidden(scores), dim=-2)


class ProjectionForgotten(FusedWithConfiguration):
    def projected(self, y):
        return y


class Clones(nn.Module):
    """Four maps in a list, called with query, key, value and a mask that hides where it is 0."""

    def __init__(self, h, d_model, dropout=0.1):
        super().__init__()
        self.h, self.d_k = h, d_model // h
        self.linears = nn.ModuleList([nn.Linear(d_model, d_model) for _ in range(4)])
        self.dropout = nn.Dropout(p=dropout)

    def scale(self):
        return self.d_k**-0.5

    def forward(self, query, key, value, mask=None):
        batch = query.size(0)
        query, key, value = (
            linear(x).view(batch, -1, self.h, self.d_k).transpose(1, 2)
            for linear, x in zip(self.linears[:3], (query, key, value), strict=True)
        )
        scores = query @ key.transpose(-2, -1) * self.scale()
        if mask is not None:
            scores = scores.masked_fill(mask.unsqueeze(1) == 0, -1e9)
        output = self.dropout(scores.softmax(dim=-1)) @ value
        return self.linears[3](output.transpose(1, 2).reshape(batch, -1, self.h * self.d_k))


class ClonesWithoutScale(Clones):
    def scale(self):
        return 1.0


class Prepared(nn.Module):
    """A map whose result is split into heads."""

    def __init__(self, d_model, heads, d_k):
        super().__init__()
        self.linear, self.heads, self.d_k = nn.Linear(d_model, heads * d_k), heads, d_k

    def forward(self, x):
        return self.linear(x).view(*x.shape[:-1], self.heads, self.d_k)


class SequenceFirst(nn.Module):
    """Tokens (L,B,M), given by name; a softmax over the first axis; a mask (L,L,B)."""

    axis = 1

    def __init__(self, heads, d_model, dropout_prob=0.1):
        super().__init__()
        self.query, self.key, self.value = (Prepared(d_model, heads, d_model // heads) for _ in range(3))
        self.output, self.dropout = nn.Linear(d_model, d_model), nn.Dropout(dropout_prob)

    def forward(self, *, query, key, value, mask=None):
        query, key, value = self.query(query), self.key(key), self.value(value)
        scores = torch.einsum("ibhd,jbhd->ijbh", query, key) / math.sqrt(query.shape[-1])
        if mask is not None:
            scores = scores.masked_fill(mask.unsqueeze(-1) == 0, float("-inf"))
        weights = self.dropout(scores.softmax(dim=self.axis))
        return self.output(torch.einsum("ijbh,jbhd->ibhd", weights, value).flatten(2))


class SequenceFirstWrongAxis(SequenceFirst):
    axis = 0


class WithoutProjection(nn.Module):
    """Separate maps, no projection of the output, a mask that is added, and a tuple."""

    def __init__(self, config):
        super().__init__()
        self.heads = config.num_attention_heads
        width = config.hidden_size
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)
        self.kind = getattr(config, "position_embedding_type", "absolute")

    def forward(self, hidden_states, attention_mask=None, head_mask=None, output_attentions=False):
        query, key, value = (
            f(hidden_states).unflatten(-1, (self.heads, -1)).permute(0, 2, 1, 3)
            for f in (self.query, self.key, self.value)
        )
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        if attention_mask is not None:
            scores = scores + attention_mask
        weights = self.dropout(scores.softmax(dim=-1))
        return (weights @ value).permute(0, 2, 1, 3).flatten(2), weights


class Vision(nn.Module):
    """qkv and proj, no mask, biases as an option."""

    def __init__(self, dim, num_heads=8, qkv_bias=False, attn_drop=0.0, proj_drop=0.0):
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.proj = nn.Linear(dim, dim * 3, bias=qkv_bias), nn.Linear(dim, dim)
        self.attn_drop, self.proj_drop = nn.Dropout(attn_drop), nn.Dropout(proj_drop)

    def parts(self, x):
        batch, length, width = x.shape
        return (
            self.qkv(x)
            .reshape(batch, length, 3, self.num_heads, width // self.num_heads)
            .permute(2, 0, 3, 1, 4)
        )

    def forward(self, x):
        query, key, value = self.parts(x)
        weights = self.attn_drop((query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5).softmax(dim=-1))
        return self.proj_drop(self.proj((weights @ value).transpose(1, 2).reshape(x.shape)))


class HeadByHead(Vision):
    """The same with query, key and value of one head beside one another."""

    def parts(self, x):
        batch, length, width = x.shape
        split = self.qkv(x).reshape(batch, length, self.num_heads, 3, width // self.num_heads)
        return split.permute(3, 0, 2, 1, 4)


class ValuesForKeys(Vision):
    def parts(self, x):
        query, key, value = super().parts(x)
        return query, value, key


class Residual(Vision):
    def forward(self, x):
        return x + super().forward(x)


class Rotary(Vision):
    def parts(self, x):
        query, key, value = super().parts(x)
        return self.rotate_half(query), self.rotate_half(key), value

    @staticmethod
    def rotate_half(x):
        angle = torch.arange(x.shape[-2])[:, None]
        return torch.cat([x[..., 1::2] * torch.cos(angle), x[..., 0::2] * torch.sin(angle)], dim=-1)


class Normed(Vision):
    def __init__(self, dim, num_heads):
        super().__init__(dim, num_heads)
        self.layer_norm = nn.LayerNorm(dim)


class OneMatrixForAllHeads(Vision):
    def __init__(self, dim, num_heads):
        super().__init__(dim, num_heads)
        self.qkv = nn.Linear(dim // num_heads, 3 * dim // num_heads)

    def parts(self, x):
        return self.qkv(x.unflatten(-1, (self.num_heads, -1))).chunk(3, dim=-1)


class OneHead(nn.Module):
    def __init__(self, n_embd, head_size, block_size):
        super().__init__()
        self.key, self.query, self.value = (nn.Linear(n_embd, head_size, bias=False) for _ in range(3))
        self.register_buffer("tril", torch.tril(torch.ones(block_size, block_size)))

    def forward(self, x):
        length = x.shape[1]
        scores = self.query(x) @ self.key(x).transpose(-2, -1) * self.key.out_features**-0.5
        scores = scores.masked_fill(self.tril[:length, :length] == 0, float("-inf"))
        return scores.softmax(-1) @ self.value(x)


class ListOfHeads(nn.Module):
    def __init__(self, n_embd, num_heads, head_size, block_size):
        super().__init__()
        self.heads = nn.ModuleList([OneHead(n_embd, head_size, block_size) for _ in range(num_heads)])
        self.proj = nn.Linear(head_size * num_heads, n_embd)

    def forward(self, x):
        return self.proj(torch.cat([head(x) for head in self.heads], dim=-1))


class NamelessSize(nn.Module):
    def __init__(self, zork, heads):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(zork, 3 * zork), nn.Linear(zork, zork)

    forward = Vision.forward
    parts = Vision.parts

    @property
    def num_heads(self):
        return self.heads

    attn_drop = proj_drop = staticmethod(lambda x: x)


class UnknownParameter(Vision):
    def __init__(self, dim, num_heads):
        super().__init__(dim, num_heads)
        self.offset = nn.Parameter(torch.zeros(num_heads, 7))


class RaisesAlways(Vision):
    def forward(self, x):
        raise RuntimeError("not today")


class NoModule:
    def __init__(self, size):
        self.size = size


class ScaledDotProduct(nn.Module):
    """Attention without weights."""

    def forward(self, query, key, value, mask=None):
        scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
        if mask is not None:
            scores = scores.masked_fill(mask == 0, float("-inf"))
        return scores.softmax(-1) @ value


class SinusoidalPositions(nn.Module):
    """Added to tokens (B,L,M), with dropout."""

    def __init__(self, d_model, dropout=0.1, max_len=5000):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        angle = torch.arange(max_len)[:, None] * torch.exp(
            torch.arange(0, d_model, 2) * (-math.log(10000.0) / d_model)
        )
        encoded = torch.zeros(max_len, d_model)
        encoded[:, 0::2], encoded[:, 1::2] = torch.sin(angle), torch.cos(angle)
        self.register_buffer("pe", encoded[None])

    def forward(self, x):
        return self.dropout(x + self.pe[:, : x.size(1)])


class PaddingIgnored(nn.Module):
    """An encoder layer whose mask of padding is not handed on."""

    def __init__(self, d_model, nhead, dim_feedforward, dropout=0.1):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(d_model, nhead, dim_feedforward, dropout, batch_first=True)

    def forward(self, src, src_key_padding_mask=None):
        return self.layer(src)


encoder = nn.TransformerEncoderLayer(12, 3, 20, batch_first=True)
gelu = nn.TransformerEncoderLayer(12, 3, 20, activation="gelu")
multi_head = nn.MultiheadAttention(24, 3, batch_first=True)
short = FusedWithConfiguration(
    type("Config", (), {"n_embd": 12, "n_head": 2, "block_size": 9, "attn_pdrop": 0.1, "resid_pdrop": 0.1})
)
loss = nn.CrossEntropyLoss()
smoothed_loss = nn.CrossEntropyLoss(label_smoothing=0.1)
softmax = nn.Softmax(dim=-1)
norm = nn.LayerNorm(8)
norm_without_bias = nn.LayerNorm(8, bias=False)
root_mean_square = nn.RMSNorm(8)


class LayerNorm(nn.Module):
    """As in The Annotated Transformer, but with the variance that the paper has."""

    def __init__(self, features, eps=1e-6):
        super().__init__()
        self.a_2, self.b_2, self.eps = (
            nn.Parameter(torch.ones(features)),
            nn.Parameter(torch.zeros(features)),
            eps,
        )

    def forward(self, x):
        variance, mean = torch.var_mean(x, -1, keepdim=True, correction=0)
        return self.a_2 * (x - mean) / (variance + self.eps).sqrt() + self.b_2


class SampleLayerNorm(LayerNorm):
    def forward(self, x):
        return self.a_2 * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + self.eps) + self.b_2


class LlamaRMSNorm(nn.Module):
    def __init__(self, hidden_size, eps=1e-6):
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.ones(hidden_size)), eps

    def forward(self, hidden_states):
        dtype, wide = (
            hidden_states.dtype,
            hidden_states.to(torch.promote_types(hidden_states.dtype, torch.float32)),
        )
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * wide.to(dtype)


class LlamaMLP(nn.Module):
    def __init__(self, hidden_size, intermediate_size):
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)
        self.activation = nn.SiLU()

    def forward(self, x):
        return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))


class GemmaMLP(nn.Module):
    def __init__(self, hidden_size, intermediate_size):
        super().__init__()
        self.gate_proj, self.up_proj = (
            nn.Linear(hidden_size, intermediate_size, bias=False) for _ in range(2)
        )
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(nn.functional.gelu(self.gate_proj(x)) * self.up_proj(x))


class ActivatedProduct(LlamaMLP):
    def forward(self, x):
        return self.down_proj(self.activation(self.gate_proj(x) * self.up_proj(x)))


class NumberedMLP(nn.Module):
    """As in Llama's own code, whose hidden_dim is the inner width."""

    def __init__(self, dim, hidden_dim):
        super().__init__()
        self.w1, self.w3 = (nn.Linear(dim, hidden_dim, bias=False) for _ in range(2))
        self.w2 = nn.Linear(hidden_dim, dim, bias=False)

    def forward(self, x):
        return self.w2(nn.functional.silu(self.w1(x)) * self.w3(x))


class GemmaRMSNorm(LlamaRMSNorm):
    def forward(self, hidden_states):
        wide = hidden_states * torch.rsqrt(
            hidden_states.pow(2).mean(-1, keepdim=True) + self.variance_epsilon
        )
        return wide * (1.0 + self.weight)


table = nn.Embedding(5, 8)
mlp = LlamaMLP(6, 10)
