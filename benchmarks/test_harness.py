"""What the harness itself costs: examples a second of one law, with generation, masks, grouped heads and bound.

`pytest benchmarks/test_harness.py -s` prints it; one round checks `EXAMPLES` problems. Beside it stands a Hypothesis test that
draws one integer and does nothing: no law can be faster than that on the same machine.
"""

from __future__ import annotations

from typing import Any

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from qkverify.verification.checking import law_book, plan, prepare

EXAMPLES = 500
ONLY_GENERATE: dict[str, Any] = {"database": None, "phases": (Phase.generate,)}


def record(benchmark: Any, check: Any) -> None:
    benchmark.pedantic(check, rounds=3, iterations=1, warmup_rounds=1)
    if benchmark.stats is not None:  # None under --benchmark-disable
        benchmark.extra_info["examples_per_second"] = round(EXAMPLES / benchmark.stats.stats.min)
        print(f"\n{benchmark.extra_info['examples_per_second']} examples a second")


def test_agrees_with_reference_on_numpy_textbook_in_float32(benchmark: Any) -> None:
    law = next(law for law in law_book() if law.name == "agrees_with_reference")
    (cell,) = plan(["numpy_textbook"], dtypes=["float32"]).cells
    examples = round(EXAMPLES / law.weight)
    record(benchmark, lambda: law.check(prepare(cell), max_examples=examples, **ONLY_GENERATE))


def test_an_empty_hypothesis_test(benchmark: Any) -> None:
    @settings(max_examples=EXAMPLES, deadline=None, **ONLY_GENERATE)
    @given(st.integers())
    def empty(number: int) -> None:
        pass

    record(benchmark, empty)
