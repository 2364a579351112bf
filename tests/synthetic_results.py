"""A made-up results file for the tests of the report: every outcome, several dtypes, timings that scale.

Nothing here was measured. The device is called synthetic, the kernels do not exist, and every number comes
from a formula or from one seeded generator, so that the file is the same each time.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

from qkverify.results import (
    Accuracy,
    Ceiling,
    Complexity,
    Conditions,
    Control,
    Counterexample,
    Direction,
    Fingerprint,
    ImplementationInfo,
    Outcome,
    Picture,
    Record,
    Rounding,
    RunStart,
    Semantic,
    Timing,
    Travel,
    Verdict,
)

LAWS = {
    "softmax": (
        "rows_sum_to_one",
        "weights_lie_in_unit_interval",
        "shift_invariance",
        "order_is_kept",
        "single_key_gets_all",
        "jacobian_is_y_delta_minus_y",
        "saturated_rows_have_vanishing_gradient",
    ),
    "attention": (
        "agrees_with_reference",
        "one_hot_lookup",
        "constant_values_are_returned",
        "linear_in_values",
        "output_stays_in_hull_of_visible_values",
        "batch_independence",
    ),
    "masking": (
        "causal_ignores_future",
        "causal_prefix",
        "causal_alignment_when_lengths_differ",
        "window_equals_explicit_mask",
        "padding_is_never_read",
        "fully_masked_rows_follow_policy",
    ),
    "heads": ("head_concat_equivalence", "gqa_equals_repeated_keys", "one_head_is_plain_attention"),
    "positions": ("bounded_by_one", "shift_is_a_rotation", "prefix_of_longer_is_same"),
    "gradients": ("vjp_agrees_with_reference", "adjoint_identity", "masked_keys_get_zero_gradient"),
    "contract": ("shape_dtype_device", "inputs_are_not_written"),
}
EXACT = {
    "causal_ignores_future",
    "padding_is_never_read",
    "shape_dtype_device",
    "inputs_are_not_written",
    "batch_independence",
}
OPTIONS = ("causal", "mask", "bias", "window", "key_lengths", "scale", "softcap", "return_lse", "gradients")
MESSAGE = """causal_alignment_when_lengths_differ: a query sees a key exactly when it is not later.
  smallest problem   1 batch, 1 head, 1 query, 2 keys, size 1, causal
  query [[1]]   key [[0], [1]]   value [[0], [1]]
  got   0.0     exact 0.7310586     bound 2.1e-07     margin 3.4e+06
  The result equals attention over the first key alone: causal looks aligned top-left, declared bottom-right.
  again:   qkverify replay 7f3a"""

# name: (arrays, dtypes, devices, not offered, seconds at length 128, exponent, bytes at 128, exponent)
KERNELS = {
    "synthetic_textbook": (
        "numpy",
        ("float64", "float32"),
        ("cpu",),
        ("softcap", "return_lse"),
        2.1e-3,
        2.1,
        1 << 20,
        2.0,
    ),
    "synthetic_tiled": ("numpy", ("float64", "float32"), ("cpu",), ("bias",), 3.0e-3, 2.0, 300_000, 1.0),
    "synthetic_eager": (
        "torch",
        ("float64", "float32", "float16", "bfloat16"),
        ("cpu", "cuda"),
        (),
        1.1e-3,
        2.05,
        1 << 20,
        2.0,
    ),
    "synthetic_flash": (
        "torch",
        ("float64", "float32", "float16", "bfloat16"),
        ("cpu", "cuda"),
        ("bias", "softcap"),
        4e-4,
        1.9,
        150_000,
        1.0,
    ),
    "synthetic_broken": (
        "numpy",
        ("float32",),
        ("cpu",),
        ("bias", "softcap", "window", "gradients"),
        2.5e-3,
        2.0,
        400_000,
        1.0,
    ),
    "synthetic_fragile": (
        "torch",
        ("float32", "bfloat16"),
        ("cpu",),
        ("gradients", "window"),
        9e-4,
        2.0,
        200_000,
        1.0,
    ),
    "synthetic_cudnn": ("torch", ("float16", "bfloat16"), ("cuda",), (), 1e-4, 2.0, 100_000, 1.0),
}
NEEDS = {
    "jacobian": "gradients",
    "gradient": "gradients",
    "vjp": "gradients",
    "adjoint": "gradients",
    "window": "window",
}


def records() -> list[Record]:
    """The whole file, in the order in which a run would write it."""
    rng = random.Random(7)
    return [
        run_start(),
        *(info(name) for name in KERNELS),
        encoding_info(),
        *verdicts(rng),
        *(Ceiling("cpu", dtype, "matmul", rate) for dtype, rate in CEILINGS.items()),
        Ceiling("cpu", "float32", "copy", 1.3e10),
        *timings(rng),
        *(
            Accuracy(name, "cpu", "bfloat16", 1000, 0.5, 0.0, 0.01, ratio, 1.0)
            for name, ratio in RATIOS.items()
        ),
        Control("synthetic-base-512", "synthetic_flash", "cpu", "float32", 1.003, 0.997, 1.006),
        Control("synthetic-gpt2", "synthetic_flash", "cpu", "float32", 0.999, 0.995, 1.004),
        Conditions(
            case="synthetic-gpt2",
            direction="forward",
            device="cpu",
            dtype="float32",
            process=0,
            rounds=150,
            disturbed={"waiting for a <core>": 15},
            mhz_low=2400.0,
            mhz_high=3100.0,
            load=1.5,
        ),
        Conditions(
            case="synthetic-gpt2", direction="forward", device="cpu", dtype="float32", process=1, rounds=50
        ),
        Rounding(
            "synthetic <product>",
            "cpu",
            10,
            "to nearest",
            23,
            "truncated",
            8,
            True,
            False,
            1.25,
            0.5,
            ["<truncates>"],
        ),
        Rounding("broken", "cpu", reason="raised ValueError: no <unit>"),
        *pictures(rng),
        *travels(),
        *complexities(rng),
    ]


TOKENS = ["[CLS]", "no", "such", "<model>", "[SEP]"] * 2


def pictures(rng: random.Random) -> Iterator[Picture]:
    """One of every kind, with a NaN, a case with two answers and one that was refused."""
    wave = [[round(math.sin(row * column / 9), 2) for column in range(300)] for row in range(20)]
    yield Picture(name="positions-picture", group="positions", kind="signed", title="waves", finding="They turn.",
                  rows=[str(i) for i in range(20)], columns=[str(i) for i in range(300)], row_axis="position",
                  column_axis="dimension", values=wave, made_by=["synthetic_encoding"])  # fmt: skip
    yield Picture(name="jacobian", group="jacobian", kind="signed", title="a matrix", finding="It has signs.", limit=0.5,
                  rows=["0", "1"], columns=["a", "b"], values=[[0.5, -0.25], [0.0, 0.125]])  # fmt: skip
    yield Picture(name="scaling-variance", group="scaling", kind="lines", title="a line", finding="It grows.",
                  rows=["not scaled", "scaled", "d_k"], columns=["1", "2", "4"], column_axis="d_k",
                  values=[[1.1, 2.1, 4.1], [1.1, 1.05, 1.02], [1.0, 2.0, 4.0]])  # fmt: skip
    yield Picture(
        name="attention", group="attention", kind="weights", title="no such <model>", finding="It reads."
    )
    for layer in (1, 2):
        weights = [[round(rng.random() / 5, 3) for _ in TOKENS] for _ in TOKENS]
        yield Picture(name=f"attention-{layer}-1", group="attention", kind="weights", title=f"layer {layer}, head 1",
                      finding="It reads.", rows=TOKENS, columns=TOKENS, values=weights)  # fmt: skip
    for number, third in enumerate((0.5, None), start=1):
        yield Picture(name=f"mask-case-{number}", group="masks", kind="visible", title=f"a case: {third}", finding="Reads.",
                      rows=["0", "1"], columns=["0", "1", "2"], values=[[1.0, 0.0, 0.0], [0.5, 0.0, third]],
                      made_by=["synthetic_flash"])  # fmt: skip
    yield Picture(
        name="mask-case-refused",
        group="masks",
        kind="visible",
        title="a case",
        reason="synthetic_eager: <no>",
    )


RATIOS = {"synthetic_eager": 0.8, "synthetic_flash": 1.3}


CEILINGS = {"float64": 8e10, "float32": 1.6e11, "float16": 9e10, "bfloat16": 4.2e11}


def run_start() -> RunStart:
    identity: dict[str, str | int | float | None] = {
        "cpu": "Synthetic Processor 9000 <test> @ 2.70GHz",
        "cores": 2,
        "memory_gib": 7.5,
        "gpu": None,
        "driver": None,
        "os": "Linux 6.1",
        "python": "3.11.2",
        "numpy": "2.0.0",
        "torch": "2.13.0",
        "commit": "0" * 40,
        "dirty": "no",
    }
    state: dict[str, str | int | float | None] = {
        "load_1_minute": 0.31,
        "cpu_mhz": None,
        "memory_available_gib": 6.1,
    }
    return RunStart(
        qkverify="0.1.0",
        started="2026-01-02T03:04:05Z",
        command="qkverify verify && qkverify bench",
        profile="quick",
        seed=7,
        fingerprint=Fingerprint(identity, state),
    )


def info(name: str) -> ImplementationInfo:
    arrays, dtypes, devices, missing = KERNELS[name][:4]
    top_left = name == "synthetic_broken"
    semantics = {
        "causal_alignment": Semantic(
            "top-left" if top_left else "bottom-right", "detected" if top_left else "declared"
        ),
        "empty_rows": Semantic({"numpy": "zero", "torch": "nan"}[arrays], "detected"),
        "masked_values": Semantic("read" if name.endswith("eager") else "ignored", "detected"),
        "deterministic": Semantic("yes", "declared"),
        "batch_invariant": Semantic("no" if name.endswith("flash") else "yes", "detected"),
        "lse": Semantic("natural", "declared")
        if "return_lse" not in missing
        else Semantic("none", "not applicable"),
    }
    return ImplementationInfo(
        name=name,
        operation="attention",
        summary=f"A kernel in {arrays} that exists only in tests.",
        arrays=arrays,
        file=f"{name}.py",
        dtypes=list(dtypes),
        devices=list(devices),
        offers=[o for o in OPTIONS if o not in missing],
        not_offered=list(missing),
        requires=["D <= 256", "E == D"] if arrays == "torch" else [],
        semantics=semantics,
        unavailable={"cuda": "no CUDA device"} if "cuda" in devices else {},
    )


def encoding_info() -> ImplementationInfo:
    return ImplementationInfo(
        name="synthetic_encoding",
        operation="positional_encoding",
        summary="Sines and cosines.",
        arrays="numpy",
        file="synthetic_encoding.py",
        dtypes=["float64", "float32"],
        devices=["cpu"],
    )


def verdicts(rng: random.Random) -> Iterator[Verdict]:
    for name, (_, dtypes, devices, missing, *_rest) in KERNELS.items():
        for dtype in dtypes if "cpu" in devices else ():
            for family, laws in LAWS.items():
                for law in laws if family != "positions" else ():
                    yield verdict(rng, name, dtype, family, law, missing)
    for dtype in ("float64", "float32"):
        for law in LAWS["positions"]:
            yield verdict(rng, "synthetic_encoding", dtype, "positions", law, ())


def verdict(
    rng: random.Random, name: str, dtype: str, family: str, law: str, missing: tuple[str, ...]
) -> Verdict:
    outcome, reason = outcome_of(name, dtype, law, missing)
    high = {"float64": 0.25, "float32": 0.4, "float16": 0.8, "bfloat16": 0.97}[dtype]
    margin = None if law in EXACT else round(rng.betavariate(2, 4) * high, 4)
    example = None
    if outcome == "failed":
        margin = 3.4e6
        example = Counterexample(
            MESSAGE,
            "1 batch, 1 head, 1 query, 2 keys, size 1, causal",
            "0.0",
            "0.7310586",
            "2.1e-07",
            margin,
            "output[0, 0, 0, 0]",
            "7f3a",
            ".qkverify/7f3a.py",
        )
    if outcome == "finding":
        margin = 3.1
        example = Counterexample(
            f'{law}: gradients are what the formula says.\n  got 1.0   exact 1.0039 <&> "q"',
            "1 head",
            "1.0",
            "1.0039",
            "1.2e-3",
            margin,
            "value[0, 0, 0, 0]",
            "c0de",
            "import torch\nprint(torch.ones(1))\n",
        )
    return Verdict(
        law=law,
        family=family,
        sentence=f"{law.replace('_', ' ').capitalize()}.",
        exact=law in EXACT,
        implementation=name,
        device="cpu",
        dtype=dtype,
        outcome=outcome,
        reason=reason,
        examples=0 if outcome == "not offered" else rng.randint(12, 25),
        margin=margin if outcome in ("passed", "failed", "finding") else None,
        seconds=round(rng.uniform(0.01, 0.4), 3),
        counterexample=example,
    )


def outcome_of(name: str, dtype: str, law: str, missing: tuple[str, ...]) -> tuple[Outcome, str]:
    for word, option in NEEDS.items():
        if word in law and option in missing:
            return "not offered", f"not offered: {option}"
    special: dict[tuple[str, str, str], tuple[Outcome, str]] = {
        ("synthetic_broken", "float32", "causal_alignment_when_lengths_differ"): ("failed", ""),
        ("synthetic_broken", "float32", "causal_prefix"): ("failed", ""),
        ("synthetic_flash", "bfloat16", "vjp_agrees_with_reference"): (
            "finding",
            "dV is accumulated in the storage dtype, see reports/findings/synthetic-accumulation",
        ),
        ("synthetic_flash", "float16", "vjp_agrees_with_reference"): (
            "finding",
            "https://example.org/issues/1",
        ),
        ("synthetic_fragile", "float32", "agrees_with_reference"): (
            "crashed",
            "the process died with signal 11 (SIGSEGV)",
        ),
        ("synthetic_fragile", "bfloat16", "padding_is_never_read"): ("timed out", "no answer within 20 s"),
        ("synthetic_eager", "float16", "linear_in_values"): ("error", "the bound could not be derived"),
    }
    return special.get((name, dtype, law), ("passed", ""))


def timings(rng: random.Random) -> Iterator[Timing]:
    cases: list[tuple[str, dict[str, int], bool]] = [
        (f"synthetic-base-{n}", dict(B=1, H=8, G=8, Q=n, K=n, D=64, E=64), True)
        for n in (128, 256, 512, 1024, 2048)
    ]
    cases.append(("synthetic-gpt2", dict(B=1, H=12, G=12, Q=1024, K=1024, D=64, E=64), True))
    cases.append(("synthetic-decode", dict(B=1, H=32, G=8, Q=1, K=8192, D=128, E=128), False))
    for dtype in ("float32", "bfloat16"):
        for case, sizes, causal in cases:
            for direction in ("forward", "forward+backward"):
                for name, kernel in KERNELS.items():
                    if dtype in kernel[1] and "cpu" in kernel[2]:
                        yield timing(rng, name, case, sizes, causal, dtype, direction)  # type: ignore[arg-type]


def timing(
    rng: random.Random,
    name: str,
    case: str,
    sizes: dict[str, int],
    causal: bool,
    dtype: str,
    direction: Direction,
) -> Timing:
    _, _, _, missing, base, power, peak, growth = KERNELS[name]
    pairs = sizes["H"] * sizes["Q"] * sizes["K"] // (2 if causal else 1)
    scale = pairs / (8 * 128 * 128 / 2)
    back = 3.2 if direction == "forward+backward" else 1.0
    middle = base * scale ** (power / 2) * back * (0.6 if dtype == "bfloat16" else 1.0)
    reason = {
        "synthetic_broken": "breaks causal_prefix",
        "synthetic_fragile": "crashed: agrees_with_reference",
    }.get(name, "")
    if direction == "forward+backward" and "gradients" in missing:
        reason = "not offered: gradients"
    if middle > 1.5:
        reason = reason or "one call takes 2.1 s, and 4.0 s were left for 3 rounds"
    seconds = [] if reason else [middle * (1 + abs(rng.gauss(0, 0.01))) for _ in range(20)]
    return Timing(
        case=case,
        sizes=sizes,
        causal=causal,
        options="",
        implementation=name,
        device="cpu",
        dtype=dtype,
        direction=direction,
        clock="host",
        seconds=seconds,
        rounds=list(range(len(seconds))),
        flops=int(pairs * 256 * (3.5 if back > 1 else 1)),
        bytes=sizes["H"] * (sizes["Q"] + sizes["K"]) * 64 * 8,
        peak_bytes=None if reason else int(peak * scale ** (growth / 2)),
        margin=None if reason else round(rng.uniform(0.05, 0.5), 3),
        verified=not reason,
        reason=reason,
    )


# layer: (formula, factor, {variable: exponent}, steps, path, products at n = 16, 32, 64, 128)
LAYERS = {
    "matrix product": ("A B C", 1, {"A": 1}, ("1", [1] * 4), ("", [])),
    "self-attention": ("n² d", 2, {"n": 2, "d": 1}, ("1", [2] * 4), ("1", [1] * 4)),
    "recurrent": ("n d²", 2, {"n": 1, "d": 2}, ("n", [16, 32, 64, 128]), ("n", [16, 32, 64, 128])),
    "convolution": ("k n d²", 1, {"n": 1, "d": 2, "k": 1}, ("1", [1] * 4), ("n / k", [8, 16, 32, 64])),
}


def travels() -> Iterator[Travel]:
    for layer, (_, _, _, (steps, products), (path, lengths)) in LAYERS.items():
        yield Travel(
            layer=layer,
            source="synthetic",
            steps_theory=steps,
            path_theory=path,
            fixed={"k": 3} if layer == "convolution" else {},
            lengths=[16, 32, 64, 128],
            steps=products,
            path=lengths,
            layers=lengths,
        )


def complexities(rng: random.Random) -> Iterator[Complexity]:
    for layer, (formula, factor, exponents, _, _) in LAYERS.items():
        for variable, theory in exponents.items():
            for framework in ("numpy", "torch"):
                yield complexity(rng, layer, formula, factor, variable, theory, framework)


def complexity(
    rng: random.Random, layer: str, formula: str, factor: int, variable: str, theory: int, framework: str
) -> Complexity:
    sizes = [2**i for i in range(4, 12)]
    work = [n**theory for n in sizes]
    seconds = [
        [1e-5 + 1e-8 * w * 16 ** (2 - theory) * (1 + abs(rng.gauss(0, 0.01))) for _ in range(7)] for w in work
    ]
    gone = framework == "torch" and variable == "A"
    return Complexity(
        layer=layer,
        formula=formula,
        factor=factor,
        variable=variable,
        theory=theory,
        implementation=framework,
        device="cpu",
        dtype="float32",
        clock="thread",
        threads=1,
        fixed={"d": 128} if variable == "n" else {"n": 256},
        sizes=[] if gone else sizes,
        multiply_adds=[] if gone else [factor * 128 * w for w in work],
        seconds=[] if gone else seconds,
        rounds=[] if gone else [list(range(7)) for _ in sizes],
        margin=0.1,
        reason="raised MemoryError: no room" if gone else "",
    )
