"""What is said of a function beside its code: as text behind a target, as keywords of a declaration, as a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qkverify.cli.adapter_options import OPTIONS
from qkverify.contract import adapters, describe, registry
from qkverify.errors import UsageError

FUSED = """
import numpy as np
from qkverify import implementation

def fused(xq, xk, xv, block_size, pad=None):
    q, k, v = (x.swapaxes(1, 2) for x in (xq, xk, xv))
    scores = q @ k.swapaxes(-1, -2) * q.dtype.type(q.shape[-1] ** -0.5)
    scores = scores if pad is None else scores + pad[:, None, None]
    top = scores.max(-1, keepdims=True)
    weights = np.exp(scores - top)
    total = weights.sum(-1, keepdims=True)
    return (top + np.log(total))[..., 0], (weights @ v / total).swapaxes(1, 2)

@implementation
def attention(query, key, value):
    return query
"""
SAID = (
    "--operation attention --layout BLHD --returns 1 --mask additive:BK --requires 'G == H' "
    "--parameters pad=mask --constants block_size=16"
)
WORDS: dict[str, Any] = {
    "operation": "attention",
    "layout": "BLHD",
    "returns": 1,
    "mask": "additive:BK",
    "requires": ("G == H",),
    "parameters": {"pad": "mask"},
    "constants": {"block_size": 16},
}


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fused.py").write_text(FUSED)
    return "fused.py:fused"


def test_the_text_of_a_target_says_what_keywords_say() -> None:
    assert adapters.split(f"fused.py:fused {SAID}") == ("fused.py:fused", WORDS)
    assert adapters.split("my folder/fused.py:fused --returns=output") == (
        "my folder/fused.py:fused",
        {"returns": "output"},
    )
    assert adapters.written(WORDS) == SAID


@pytest.mark.parametrize(
    "words",
    [
        WORDS,
        {"weights": {"c_attn.weight": "qkv head by head"}, "sizes": {"n_embd": "width", "heads": 4}},
        {"constants": {"training": False, "size": "16", "mode": "fast", "shape": (1, 2)}},
        {"always": ("causal",), "arrays": "torch", "output": "out", "mask": "hidden:BHQK"},
    ],
)
def test_what_is_written_is_read_as_it_was(words: dict[str, Any]) -> None:
    assert adapters.split(f"a:b {adapters.written(words)}") == ("a:b", words)


def test_what_a_target_says_itself_counts_more_than_what_else_is_said_of_it() -> None:
    text = adapters.joined("a:b --layout LD", {"layout": "BLHD", "returns": 0})
    assert adapters.split(text) == ("a:b", {"layout": "LD", "returns": 0})
    assert adapters.joined("a:b", {}) == "a:b"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("--layot BLHD", r"a:b --layot BLHD: unknown adapter 'layot'. Did you mean 'layout'\?"),
        (
            "--layout BLDH",
            r"a:b --layout BLDH: layout: unknown layout 'BLDH'. .*\n  layouts: BHLD, BLD, BLHD",
        ),
        ("--mask hiden:BK", r"mask: unknown kind of mask 'hiden'. Did you mean 'hidden'\?"),
        ("--mask hidden:KB", r"mask: unknown axes of a mask 'KB'"),
        ("--always window", "always: unknown option that a function may always have 'window'"),
        ("--requires 'G = H'", "requires: requires: 'G = H' is not an expression"),
        ("--weights qkv", "--weights qkv: it is NAME=VALUE"),
        ("--layout", "--layout has no value"),
        ("--layout BLHD LD", "'LD' belongs to no adapter"),
        ("--layout BLHD --layout LD", "--layout is given BLHD and LD; only one holds"),
        ("--mask 'hidden", "No closing quotation"),
    ],
)
def test_what_does_not_exist_is_told_with_what_does(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        adapters.split(f"a:b {text}")


def test_a_target_is_adapted_and_stays_undeclared(file: str) -> None:
    (implementation,) = registry.find(f"{file} {SAID}")
    assert (implementation.name, implementation.declared) == ("fused:fused", False)
    assert (implementation.layout, implementation.returns, implementation.mask_form) == (
        "BLHD",
        1,
        "additive:BK",
    )
    assert implementation.requires == ("G == H",)
    assert implementation.parameters == {"mask": "pad", "bias": "pad"}
    assert implementation.keywords({}) == {"block_size": 16}
    assert implementation.unknown == ()


def test_another_process_finds_it_adapted(file: str) -> None:
    (first,) = registry.find(f"{file} {SAID}")
    again = registry.reload_implementation(first.name, first.home, "fused", adapters.written(first.adapters))
    assert again.adapters == first.adapters == WORDS


def test_a_declaration_takes_the_same_words(file: str) -> None:
    (adapted,) = registry.find(f"{file} {SAID}")
    declared = describe(adapted.function, **WORDS)
    for name in (
        "operation",
        "layout",
        "returns",
        "mask_form",
        "requires",
        "parameters",
        "constants",
        "offers",
    ):
        assert getattr(declared, name) == getattr(adapted, name), name


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("fused.py:attention --layout BLHD", r'it is declared in fused.py; say it there: layout="BLHD"'),
        ("fused.py --layout BLHD", "this is said of module:function or path/file.py:function"),
        ("numpy_tiled --layout BLHD", "numpy_tiled is neither"),
        ("fused.py:fused --weights w=q", "--weights is about a torch.nn.Module, and this is a function"),
        ("fused.py:fused --operation attention --constants block=1", "unknown parameter 'block'. Did you mean 'block_size'"),
        ("fused.py:fused --operation attention --parameters pad=maks", "unknown option 'maks'. Did you mean 'mask'"),
        ("fused.py:fused --operation attention --mask hidden:BK", "(?s)none of the parameters .*--parameters NAME=mask"),
    ],
)  # fmt: skip
def test_what_cannot_be_said_of_a_target_is_refused(file: str, target: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        registry.find(target)


def test_every_adapter_is_an_option_of_the_command_line() -> None:
    assert list(OPTIONS) == list(adapters.ADAPTERS)


MODULE = """
import torch
from qkverify import implementation

class SelfAttention(torch.nn.Module):
    def __init__(self, e, k):
        super().__init__()

implementation(sizes={"e": "width"}, weights={"joined.weight": "qkv"})(SelfAttention)

class Other(SelfAttention):
    pass
"""


def test_words_of_a_module_are_kept_and_those_of_a_command_are_added(tmp_path, monkeypatch) -> None:
    pytest.importorskip("torch", reason="needs torch")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text(MODULE)
    (declared,) = registry.find("model.py")
    assert (declared.name, declared.declared) == ("model:SelfAttention", False)
    (adapted,) = registry.find(
        "model.py:SelfAttention --sizes k=heads --weights joined.weight='qkv head by head'"
    )
    target: Any = adapted.function
    assert target.sizes == {"e": "width", "k": "heads"}
    assert target.weights == {"joined.weight": "qkv head by head"}
    (other,) = registry.find("model.py:Other --sizes e=8")
    target = other.function
    assert (target.sizes, target.weights) == ({"e": 8}, {})
