"""Named cases to time: the shapes of attention in models that people run, each with its source.

A workload is data: sizes, what is visible, and where the numbers come from. Adding one is adding one entry to
`WORKLOADS`; everything that times, counts or reports iterates that table. Sizes are those of one attention
layer; the batch is small, so that a case runs on a laptop's CPU and is still the model's shape.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import ml_dtypes
import numpy as np

from qkverify import activations
from qkverify.contract import DTYPES
from qkverify.errors import UsageError
from qkverify.problems import Problem


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One attention layer. `sizes` are given by the dimension letters of `contract`; lengths in tokens."""

    name: str
    source: str
    heads: int
    queries: int
    key_size: int
    batch: int = 1
    kv_heads: int | None = None
    keys: int | None = None
    value_size: int | None = None
    causal: bool = True
    window: tuple[int | None, int | None] | None = None
    key_lengths: tuple[int, ...] | None = None
    values: str = "normal"  # or "activations"

    @cached_property
    def sizes(self) -> dict[str, int]:
        return {
            "B": self.batch,
            "H": self.heads,
            "G": self.kv_heads or self.heads,
            "Q": self.queries,
            "K": self.keys or self.queries,
            "D": self.key_size,
            "E": self.value_size or self.key_size,
        }

    @property
    def options(self) -> str:
        """What is visible besides `causal`, as a person reads it; empty for nothing."""
        words = []
        if self.window is not None:
            words.append(
                "window " + " .. ".join("open" if side is None else str(side) for side in self.window)
            )
        if self.key_lengths is not None:
            words.append("key lengths " + ", ".join(map(str, self.key_lengths)))
        if self.values != "normal":
            words.append(f"real {self.values}")
        return "; ".join(words)

    def problem(self, dtype: str, *, seed: int = 0) -> Problem:
        """The case as arrays: standard normal query, key, value and upstream, equal in every dtype.

        Standard normal is what a layer norm leaves, and with 1/sqrt(D) the scores have variance one. Where `values` says
        so, query, key and value are a model's instead (see `activations`), whatever the seed.
        """
        numbers, stored = np.random.default_rng(seed), storage(dtype)
        case = self._filled(lambda shape: numbers.standard_normal(shape, dtype=np.float32).astype(stored))
        if self.values == "normal":
            return case
        given = activations.first(self.sizes["K"])
        return case.replace(**{name: array[None].astype(stored) for name, array in given.items()})

    def outline(self, dtype: str) -> Problem:
        """The case without numbers, which takes no memory: for counting what there is to do."""
        zero = np.zeros((), storage(dtype))
        return self._filled(lambda shape: np.broadcast_to(zero, shape))

    def _filled(self, fill: Callable[[tuple[int, ...]], np.ndarray]) -> Problem:
        s = self.sizes
        return Problem(
            query=fill((s["B"], s["H"], s["Q"], s["D"])),
            key=fill((s["B"], s["G"], s["K"], s["D"])),
            value=fill((s["B"], s["G"], s["K"], s["E"])),
            upstream=fill((s["B"], s["H"], s["Q"], s["E"])),
            causal=self.causal,
            window=self.window,
            key_lengths=None if self.key_lengths is None else np.array(self.key_lengths, np.int32),
        )


def storage(dtype: str) -> np.dtype[np.generic]:
    """The NumPy dtype called `dtype`; NumPy itself has no bfloat16, ml_dtypes does."""
    if dtype not in DTYPES:
        raise UsageError.unknown("dtype", dtype, DTYPES)
    return np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


_VASWANI = "Attention Is All You Need, arXiv:1706.03762, table 3: h = 8, d_k = d_v = 64"
_GPT2 = "Language Models are Unsupervised Multitask Learners (2019), table 2: width 768, context 1024"
_BERT = "BERT, arXiv:1810.04805, section 3 (base): 12 heads of 64, 512 tokens"
_VIT = "ViT, arXiv:2010.11929, table 1 (base): 12 heads of 64; 14 x 14 patches and one class token"
_WHISPER = "Whisper, arXiv:2212.04356, table 1 (large): 20 heads of 64; 1500 audio frames, 448 tokens"
_LLAMA3 = "The Llama 3 Herd of Models, arXiv:2407.21783, table 3 (8B): 32 heads, 8 key/value heads of 128"
_MISTRAL = "Mistral 7B, arXiv:2310.06825, table 1: 32 heads, 8 key/value heads of 128, window 4096"
_MINILM = (
    "MiniLM, arXiv:2002.10957 (width 384, 6 layers: 12 heads of 32); all-MiniLM-L6-v2, first layer, on a text"
)
_DEEPSEEK = "DeepSeek-V2, arXiv:2405.04434, appendix (Lite): 16 heads, keys of 128 + 64, values of 128"


def _base(length: int) -> Workload:
    return Workload(name=f"transformer-base-{length}", heads=8, key_size=64, queries=length, source=_VASWANI)


# One query over everything before it sees all keys: as causal aligned bottom-right, and not as aligned
# top-left. So decoding is written without `causal`, and means the same in every library.
_CASES = (
    *(_base(length) for length in (128, 256, 512, 1024, 2048, 4096)),
    Workload(name="gpt2-small", source=_GPT2, heads=12, key_size=64, queries=1024),
    Workload(name="bert-base", source=_BERT, heads=12, key_size=64, queries=512, causal=False),
    Workload(name="bert-base-padded", source=_BERT + "; a batch of unequal sentences, padded", batch=4,
             heads=12, key_size=64, queries=512, causal=False, key_lengths=(512, 384, 128, 17)),
    *(Workload(name=f"minilm-l6-{length}", source=_MINILM, heads=activations.HEADS, key_size=activations.SIZE, queries=length,
               causal=False, values="activations") for length in (128, 512)),  # 128 are in the package, 512 need the model
    Workload(name="vit-base-16", source=_VIT, batch=4, heads=12, key_size=64, queries=197, causal=False),
    Workload(name="whisper-large-encoder", source=_WHISPER, heads=20, key_size=64, queries=1500,
             causal=False),
    Workload(name="whisper-large-cross", source=_WHISPER, heads=20, key_size=64, queries=448, keys=1500,
             causal=False),
    Workload(name="llama3-8b-prefill", source=_LLAMA3, heads=32, kv_heads=8, key_size=128, queries=4096),
    Workload(name="llama3-8b-decode", source=_LLAMA3, heads=32, kv_heads=8, key_size=128, queries=1,
             keys=8192, causal=False),
    Workload(name="llama3-8b-decode-128k", source=_LLAMA3 + "; context of 128K tokens", heads=32, kv_heads=8,
             key_size=128, queries=1, keys=131072, causal=False),
    Workload(name="mistral-7b-window", source=_MISTRAL, heads=32, kv_heads=8, key_size=128, queries=8192,
             window=(4095, 0)),
    Workload(name="deepseek-v2-lite-prefill", source=_DEEPSEEK, heads=16, key_size=192, value_size=128,
             queries=2048),
)  # fmt: skip

WORKLOADS: dict[str, Workload] = {case.name: case for case in _CASES}

# What a machine of each kind times when nothing is asked for: from short to long, so that a short budget ends
# in the long cases, and a few minutes suffice.
SMALL_GRID: dict[str, tuple[str, ...]] = {
    "cpu": (
        "minilm-l6-128",
        *(f"transformer-base-{length}" for length in (128, 256, 512, 1024)),
        "gpt2-small",
    ),
    "cuda": (
        "minilm-l6-128",
        *(f"transformer-base-{length}" for length in (128, 256, 512, 1024, 2048, 4096)),
        "gpt2-small",
        "llama3-8b-prefill",
    ),
}


def named(name: str) -> Workload:
    """The workload called `name`. Raises UsageError naming what exists and what is nearest."""
    try:
        return WORKLOADS[name]
    except KeyError:
        raise UsageError.unknown("workload", name, WORKLOADS) from None


def small_grid(device: str) -> list[Workload]:
    """The cases of the small grid of `device`, from short to long."""
    return [WORKLOADS[name] for name in SMALL_GRID[device]]
