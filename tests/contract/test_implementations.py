"""What the laws cannot see of the implementations: memory, what each offers, which kernel answers."""

from __future__ import annotations

import ast
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qkverify import UnsupportedCase, implementations
from qkverify.contract import OPTIONS, Implementation, describe, registry
from qkverify.problem.attention_problem import Problem
from qkverify.runs.run import Run

FOLDER = Path(implementations.__path__[0])
EVERY, HALF = {"float64", "float32", "float16", "bfloat16"}, {"float16", "bfloat16"}
TORCH = {"mask", "bias", "causal", "scale", "dropout", "gradients"}

# name: (options, dtypes, devices)
OFFERED = {
    "numpy_textbook": ({*OPTIONS, "gradients"}, {"float64", "float32"}, {"cpu"}),
    "numpy_tiled": ({*OPTIONS, "gradients"} - {"alibi_slopes", "sinks"}, {"float64", "float32"}, {"cpu"}),
    "torch_eager": ({*OPTIONS, "gradients", "lse_gradient"}, EVERY, {"cpu", "cuda"}),
    "torch_tiled": ({*OPTIONS, "gradients"} - {"alibi_slopes", "sinks", "bias"}, EVERY, {"cpu", "cuda"}),
    "torch_sdpa-math": (TORCH, EVERY, {"cpu", "cuda"}),
    "torch_sdpa-flash": (TORCH, EVERY, {"cpu", "cuda"}),
    "torch_sdpa-efficient": (TORCH, EVERY - {"float64"}, {"cuda"}),
    "torch_sdpa-cudnn": (TORCH, HALF, {"cuda"}),
    "torch_flex-eager": ({*OPTIONS} - {"sinks"}, EVERY, {"cpu"}),
    "torch_flex-compiled": (
        {*OPTIONS, "gradients", "lse_gradient"} - {"sinks"},
        EVERY - {"float64"},
        {"cuda"},
    ),
    "triton_flash": (
        {"causal", "window", "key_lengths", "scale", "softcap", "return_lse", "gradients"},
        EVERY - {"float64"},
        {"cpu", "cuda"},
    ),
}
OWN_CODE = ("numpy_textbook", "numpy_tiled", "torch_eager", "torch_tiled")
LONG = {"triton_flash"}  # four kernels and what starts them
MOST_LINES = 250  # read in one sitting


def named(name: str) -> Implementation:
    if name.startswith("torch"):
        pytest.importorskip("torch", reason="needs torch")
    return registry.find(name)[0]


def problem(dtype: Any = np.float32, **sizes: int) -> Problem:
    """Random numbers; two query heads to a key/value head, more keys than a tile; `sizes` overrides."""
    n = {"B": 2, "G": 2, "group": 2, "Q": 5, "K": 70, "D": 3, "E": 3, **sizes}
    rng = np.random.default_rng(0)
    shapes = {
        "query": (n["B"], n["G"] * n["group"], n["Q"], n["D"]), "key": (n["B"], n["G"], n["K"], n["D"]),
        "value": (n["B"], n["G"], n["K"], n["E"]), "upstream": (n["B"], n["G"] * n["group"], n["Q"], n["E"]),
    }  # fmt: skip
    return Problem(**{name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()})


@pytest.mark.parametrize("name", OFFERED)
def test_each_offers_what_it_is_there_for(name: str) -> None:
    implementation, (options, dtypes, devices) = named(name), OFFERED[name]
    assert (implementation.offers, set(implementation.dtypes), set(implementation.devices)) == (
        options,
        dtypes,
        devices,
    )


@pytest.mark.parametrize("name", ["torch_sdpa-efficient", "torch_sdpa-cudnn", "torch_flex-compiled"])
def test_a_machine_without_a_gpu_says_so(name: str) -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    expected = None if torch.cuda.is_available() else "no CUDA device"
    assert registry.devices_of(named(name)) == {"cuda": expected}


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.py")), ids=lambda file: file.stem)
def test_each_file_stands_alone(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert ast.get_docstring(tree), f"{file.name} does not say what it is"
    assert file.stem in LONG or len(text.splitlines()) <= MOST_LINES
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert not any(alias.name.startswith("qkverify") for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            if (node.module or "").partition(".")[0] == "qkverify":
                assert node.module == "qkverify"
                assert {alias.name for alias in node.names} <= {
                    "implementation",
                    "UnsupportedCase",
                    "Finding",
                }


# -- Memory --------------------------------------------------------------------------------------------------


def peak_bytes(name: str, length: int) -> dict[str, int]:
    """The most that a call holds at once, beyond its inputs."""
    p = problem(B=1, G=1, group=1, Q=length, K=length).replace(
        causal=True, window=(length // 2, None), softcap=3.0, key_lengths=np.array([length - 1], np.int32),
        bias=np.ones((1, 1, 1, length), np.float32),
    )  # fmt: skip
    run = Run(named(name))
    peaks = {}
    for direction in ("forward", "forward+backward"):
        call = run.callable(p, direction)
        tracemalloc.start()
        call()
        peaks[direction] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peaks


def test_numpy_tiled_never_holds_a_score_for_every_pair() -> None:
    """Not even a byte for each: its memory grows with the length, the textbook's with the square of it."""
    length = 2048
    tiled, textbook = peak_bytes("numpy_tiled", length), peak_bytes("numpy_textbook", length)
    half = peak_bytes("numpy_tiled", length // 2)
    for direction, peak in tiled.items():
        assert peak < length**2
        assert (
            peak / half[direction] < 3
        )  # twice the length: 2 where memory is linear in it, 4 where quadratic
        assert textbook[direction] > 4 * length**2  # the measurement sees a score matrix where there is one


def test_torch_tiled_never_makes_a_tensor_of_every_pair() -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                self.elements = max(self.elements, result.numel())
            return result

    def largest(name: str, length: int) -> int:
        call = Run(named(name)).callable(problem(B=1, G=1, group=1, Q=length, K=length), "forward+backward")
        with Largest() as recorded:
            call()
        return recorded.elements

    assert 0 < largest("torch_tiled", 512) < 512**2 <= largest("torch_eager", 512)


# -- Edges that the laws leave out ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", OWN_CODE)
@pytest.mark.parametrize("axis", ["B", "G", "Q", "K", "D", "E"])
def test_empty_axes_have_gradients_of_their_shape(name: str, axis: str) -> None:
    run = Run(named(name))
    p = problem(**{axis: 0})
    for gradient in run.gradient_values(p).values():  # shapes and dtypes are checked there
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("name", OWN_CODE)
@pytest.mark.parametrize("change", [{"B": 1}, {"G": 3, "group": 1}, {"K": 69}, {"D": 2}], ids=repr)
def test_sizes_that_do_not_match_are_named(name: str, change: dict[str, int]) -> None:
    """A batch, heads, length or size of its own. Some would broadcast, which is worse than an error."""
    run, other = Run(named(name)), problem(**change)
    for changed in ("key", "value") if "D" not in change else ("key",):
        with pytest.raises(ValueError, match=r"sizes do not match: query \(.*\), key \(.*\), value \(.*\)"):
            run.callable(problem().replace(**{changed: getattr(other, changed)}))()


@pytest.mark.parametrize("name", ["numpy_textbook", "numpy_tiled", "torch_tiled"])
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_what_no_query_sees_leaves_the_gradients_alone(name: str, poison: float) -> None:
    """Zero times NaN is NaN: a weight of zero keeps it out of no product, neither forward nor backward."""
    run = Run(named(name))
    p = problem().replace(key_lengths=np.array([65, 17], np.int32))
    key, value = p.key.copy(), p.value.copy()
    for b, length in enumerate(p.key_lengths):
        key[b, :, length:] = value[b, :, length:] = poison
    clean, poisoned = run.gradient_values(p), run.gradient_values(p.replace(key=key, value=value))
    for array in clean:
        np.testing.assert_array_equal(poisoned[array], clean[array])


@pytest.mark.parametrize("name", ["numpy_textbook", "numpy_tiled"])
def test_gradients_do_not_write_to_their_inputs(name: str) -> None:
    p = problem()
    for array in (p.query, p.key, p.value, p.upstream):
        array.setflags(write=False)
    assert set(Run(named(name)).gradient_values(p)) == {"query", "key", "value"}


# -- torch's back ends ---------------------------------------------------------------------------------------


def test_each_entry_is_answered_by_its_own_back_end() -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    for name, fused in (("torch_sdpa-math", False), ("torch_sdpa-flash", True)):
        call = Run(named(name)).callable(problem())
        with torch.autograd.profiler.profile() as profile:
            call()
        kernels = {event.name for event in profile.function_events}
        assert ("aten::_scaled_dot_product_flash_attention_for_cpu" in kernels) == fused
        assert ("aten::_scaled_dot_product_attention_math" in kernels) == (not fused)


def test_a_refusal_of_torch_is_told_in_its_own_words() -> None:
    with pytest.raises(UnsupportedCase, match="requires q,k,v to have the same last dimension"):
        Run(named("torch_sdpa-flash")).callable(problem(E=4))()


def test_other_errors_of_torch_are_not_taken_for_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    flash = named("torch_sdpa-flash")
    from qkverify.implementations import torch_sdpa

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("No available kernel. Aborting execution. CUDA out of memory")

    monkeypatch.setattr(torch_sdpa, "scaled_dot_product_attention", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        Run(flash).callable(problem())()


# What torch 2.11 warns of on a GPU, every fused back end in turn, where flash alone was asked for and refuses.
SAID_ON_CUDA = [
    "Memory efficient kernel not used because: (Triggered internally at sdp_utils.cpp:1042.)",
    "Memory Efficient attention has been runtime disabled. (Triggered internally at sdp_utils_cpp.h:540.)",
    "Flash attention kernel not used because: (Triggered internally at sdp_utils.cpp:1044.)",
    "Flash Attention does not support non-null attn_mask. (Triggered internally at sdp_utils_cpp.h:259.)",
    "cuDNN attention kernel not used because: (Triggered internally at sdp_utils.cpp:1046.)",
    "cuDNN attention has been runtime disabled. (Triggered internally at sdp_utils.cpp:690.)",
]


def test_of_three_back_ends_that_refuse_the_one_that_was_asked_is_quoted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flash = named("torch_sdpa-flash")
    from qkverify.implementations import torch_sdpa

    def refusing(*args: Any, **kwargs: Any) -> Any:
        for sentence in SAID_ON_CUDA:
            warnings.warn(sentence, stacklevel=1)
        raise RuntimeError("No available kernel.  Aborting execution.")

    monkeypatch.setattr(torch_sdpa, "scaled_dot_product_attention", refusing)
    with pytest.raises(UnsupportedCase) as refused:
        Run(flash).callable(problem())()
    assert str(refused.value) == "Flash Attention does not support non-null attn_mask."


@pytest.mark.parametrize("words", [
    "cutlassF: no kernel found to launch!",
    "attn_bias is not correctly aligned (strideM). attn_bias.stride(2) = 9, and should be a multiple of 8.",
    "batch size must be positive",
    "cuDNN Frontend error: [cudnn_frontend] Error: No execution plans support the graph.",
])  # fmt: skip
def test_a_kernel_on_cuda_that_was_not_built_for_the_inputs_refuses_them(words: str) -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    named("torch_sdpa-flash")
    from qkverify.implementations.torch_sdpa import refusal

    backend = torch.nn.attention.SDPBackend.EFFICIENT_ATTENTION
    assert refusal(RuntimeError(f"{words}\nException raised from launch"), backend, "cuda", []) == words
    assert refusal(RuntimeError(words), backend, "cpu", []) is None
    assert refusal(RuntimeError("CUDA error: misaligned address"), backend, "cuda", []) is None


def test_a_log_sum_exp_that_jax_cuts_off_is_not_differentiated() -> None:
    """jax.nn.dot_product_attention stops the gradient of its residual: nothing to hold it to. Its own logsumexp has one."""
    jax = pytest.importorskip("jax", reason="needs jax")
    small, upstream = problem(B=1, G=1, group=1, Q=2, K=3), np.ones((1, 1, 2), np.float32)
    with pytest.raises(UnsupportedCase, match="does not differentiate the log-sum-exp"):
        Run(describe(jax.nn.dot_product_attention), dtype="float32").lse_gradients(small, upstream)

    def attention(query: Any, key: Any, value: Any, *, return_lse: bool = False) -> Any:
        scores = query @ key.swapaxes(-1, -2) * query.shape[-1] ** -0.5
        return jax.nn.softmax(scores) @ value, jax.scipy.special.logsumexp(scores, axis=-1)

    gradients = Run(describe(attention, arrays="jax"), dtype="float32").lse_gradients(small, upstream)
    assert np.abs(gradients["query"]).max() > 0
