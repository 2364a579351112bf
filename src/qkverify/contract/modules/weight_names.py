"""Which weight matrix of multi-head attention a parameter is, read off its name.

q_proj.weight, wq, to_q.weight, query.linear.weight      q
c_attn.weight, qkv.weight, in_proj_weight, Wqkv.weight   qkv, side by side or head by head
out_proj.weight, proj.weight, to_out.0.weight            o
linears.0.weight ... linears.3.weight                    q, k, v, o
heads.2.query.weight                                     q, of head 2
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from qkverify.contract.modules.argument_roles import snake

_FUSED = re.compile(
    r"^(c_attn|in_proj|in_projection|query_key_value|attn_in|input_projection|proj_in|att_proj)$"
)
_LETTERS = re.compile(r"(?<![a-z])(?:w|to)?_?(qkv|kqv|vqk|qvk|kvq|vkq|kv|qk)(?![a-z])")
_PARTS: Mapping[str, frozenset[str]] = {
    "q": frozenset({"q", "wq", "query", "queries", "querys", "toqueries", "toq", "qs", "qproj", "qlinear"}),
    "k": frozenset({"k", "wk", "key", "keys", "tokeys", "tok", "ks", "kproj", "klinear"}),
    "v": frozenset(
        {"v", "wv", "value", "values", "tovalues", "tov", "vs", "vproj", "vlinear", "val", "vals"}
    ),
}
_OUTPUT = re.compile(
    r"^(o|wo|w_o|w_out|wout|out|output|outs|proj|projection|c_proj|o_proj|out_proj|output_proj|proj_out|to_out|"
    r"out_projection|output_projection|fc_o|fc_out|out_linear|output_linear|linear_out|unify_?heads|final|"
    r"final_linear|last_linear|resid_proj|output_layer|out_layer|combine|combine_heads|o_net|proj_o|lin_o|out_lin|o_linear|"
    r"linear_o|attn_out|c_out|wproj|w_proj|concat|w_concat|merge_heads|head_proj|projection_out|proj_layer|linear_proj|"
    r"final_projection|ff_out|out_net|out_fc|output_fc|output_transform|linear_final|unembed_heads)$"
)
_WEAK = re.compile(
    r"^(dense|fc|linear|lin|layer)$"
)  # the output's, unless what stands around it has another name
_KIND = re.compile(r"_?(weights?|bias(es)?|kernel|w|b|matrix|mat)$")


def components(parameter: str) -> list[str]:
    """ "attn.c_attn.weight" -> ["attn", "c_attn"]: the parts of its path, without the word for what it is."""
    *path, last = [snake(part) for part in parameter.split(".")]
    rest = _KIND.sub("", last) if path or last not in ("w", "b") else last
    return [*path, *([rest] if rest and rest not in ("w", "b") else [])]


def roles(parameter: str) -> str:
    """The letters of the matrices that a parameter holds, in their order: "q", "qkv", "kv", "o"; "" if its name says none."""
    parts = [part for part in reversed(components(parameter)) if not part.isdigit()]
    for part in parts:
        if letters := _letters(part):
            return letters
    return "o" if parts and _WEAK.match(parts[0]) else ""


def _letters(part: str) -> str:
    if _FUSED.match(part):
        return "qkv"
    if fused := _LETTERS.search(part):
        return fused.group(1)
    words = set(part.split("_"))
    single = [letter for letter, names in _PARTS.items() if words & names]
    if len(single) == 1:
        return single[0]
    return "o" if not single and _OUTPUT.match(part) else ""


def head_of(parameter: str) -> int | None:
    """The head whose matrix alone a parameter is, in a module that has a list of heads: a number before a name."""
    parts = components(parameter)
    for at, part in enumerate(parts[:-1]):
        if part.isdigit() and any(_letters(later) in ("q", "k", "v") for later in parts[at + 1 :]):
            return int(part)
    return None


def numbered(parameters: Sequence[str]) -> dict[str, str]:
    """The four (or three) maps of a list, by their numbers: those for query, key, value, and the output's."""
    lists: dict[str, list[str]] = {}
    for name in parameters:
        parts = components(name)
        if parts and parts[-1].isdigit():
            lists.setdefault(".".join(parts[:-1]), []).append(name)
    return {
        name: letter
        for names in lists.values()
        if len(names) in (3, 4)
        for name, letter in zip(sorted(names, key=lambda n: int(components(n)[-1])), "qkvo", strict=False)
    }
