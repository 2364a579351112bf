"""The book of laws and the check of one of them: its order, and that a check leaves the process as it was."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from qkverify.contract import describe, process_settings, registry
from qkverify.contract.frameworks import torch_arrays
from qkverify.runs.run import Run
from qkverify.verification.checking import check, law_book
from qkverify.verification.laws import Law
from qkverify.verification.mutation_testing import attack, planted


def changing(query, key, value, *, scale=None):
    """Right, and leaves every setting changed."""
    group = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(group, dim=1) for x in (key, value))
    scale = query.shape[3] ** -0.5 if scale is None else scale
    output = torch.softmax(query @ key.mT * scale, dim=-1) @ value
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float16)
    torch.set_num_threads(torch.get_num_threads() + 1)
    torch.set_autocast_enabled("cpu", True)
    torch.backends.cuda.enable_math_sdp(False)
    np.seterr(all="raise")
    return output


def settings():
    return process_settings.values([s for s in torch_arrays.SETTINGS if not s.by_modules])


def test_laws_that_compare_whole_results_come_first_and_those_about_calls_last():
    names, families = [law.name for law in law_book()], [law.family for law in law_book()]
    whole = [name for name in names if "agrees_with" in name]
    assert names[: len(whole)] == whole
    rest = families[len(whole) :]
    assert {"contract", "calls"} == set(rest[min(rest.index("contract"), rest.index("calls")) :])


def test_what_an_implementation_does_to_settings_ends_with_its_check(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = settings()
    run = Run(describe(changing, arrays="torch", dtypes=("float32",)))
    (law,) = [law for law in law_book() if law.name == "global_state_is_left_alone"]
    assert check(law, run, max_examples=5).outcome == "failed"
    assert settings() == before


def test_a_script_of_a_failure_in_inference_leaves_gradients_on(tmp_path, monkeypatch):
    """The script of such a failure switches gradients off, and it is tried in this process before it is written."""
    monkeypatch.chdir(tmp_path)
    (implementation,) = [implementation for implementation in planted() if "A033" in implementation.name]
    process_settings.taken(implementation.name)
    assert attack(implementation, examples=100, seed=11).kills
    assert process_settings.taken(implementation.name) == []  # the script did it, and not the function
    assert "set_grad_enabled(False)" in next(tmp_path.glob(".qkverify/*.py")).read_text()
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("frozen_before", [False, True])
def test_the_collector_is_spared_older_objects_while_a_law_is_checked(frozen_before):
    counts = []
    law = Law(
        "looks",
        "x",
        "",
        "",
        lambda run, size: counts.append(gc.get_freeze_count()),
        {"size": (1,)},
        operations=("softmax",),
    )
    if frozen_before:
        gc.freeze()
    try:
        law.check(Run(describe(lambda scores: scores, operation="softmax", arrays="numpy")), max_examples=2)
        assert counts[0] > 1000
        assert bool(gc.get_freeze_count()) == frozen_before
    finally:
        gc.unfreeze()


def test_the_garbage_of_a_check_is_gone_after_it():
    """Thawed objects count as old, and those are hardly ever collected: what a check left stayed with its arrays."""
    left = []

    class Knot:
        def __init__(self) -> None:
            self.itself = self
            left.append(weakref.ref(self))

    law = Law("knots", "x", "", "", lambda run, size: Knot(), {"size": (1,)}, operations=("softmax",))
    law.check(Run(describe(lambda scores: scores, operation="softmax", arrays="numpy")), max_examples=2)
    assert left
    assert not any(knot() for knot in left)


def test_a_law_that_draws_wrongly_is_the_harness_at_fault():
    nothing = {"size": st.integers(min_value=2, max_value=1)}
    law = Law("draws", "x", "", "", lambda run, size: None, nothing, operations=("softmax",))
    verdict = check(
        law, Run(describe(lambda scores: scores, operation="softmax", arrays="numpy")), max_examples=2
    )
    assert (verdict.outcome, "draws what Hypothesis does not take" in verdict.reason) == ("error", True)


@pytest.mark.parametrize(("counted", "outcome"), [(True, "passed"), (False, "failed")])
def test_a_result_kept_for_tensors_that_were_not_written_to_is_right(counted, outcome, tmp_path, monkeypatch):
    """torch counts the writes to a tensor. A cache that looks at the count is right, one of objects alone is not."""
    monkeypatch.chdir(tmp_path)
    kept = {}

    def cached(query, key, value):
        arrays = query, key, value
        name = tuple((id(x), x._version * counted) for x in arrays)
        if kept.get("of") != name:
            group = query.shape[1] // key.shape[1]
            keys, values = (x.repeat_interleave(group, dim=1) for x in (key, value))
            output = torch.softmax(query @ keys.mT * query.shape[3] ** -0.5, dim=-1) @ values
            kept.update({"of": name, "found": output, "arrays": arrays})
        return kept["found"].clone()

    implementation = describe(
        cached, arrays="torch", dtypes=("float32",), requires=("K >= 1",), differentiable=False
    )
    (law,) = [law for law in law_book() if law.name == "inputs_are_read_anew"]
    assert check(law, Run(implementation), max_examples=20, database=None).outcome == outcome


def test_bits_of_gradients_are_not_compared_where_sums_come_in_any_order(tmp_path, monkeypatch):
    """On a GPU atomic additions do, on a CPU the tiles of a pool of threads; a declaration that they do not is held to."""
    monkeypatch.chdir(tmp_path)
    (right,) = registry.find("numpy_textbook")
    rng = np.random.default_rng(0)

    def last_bits_differ(query, key, value, upstream, *, mask=None):
        gradients = right.vjp(query, key, value, upstream, mask=mask)
        return tuple(
            x * (1 + rng.choice([0, np.finfo(x.dtype).eps], x.shape)).astype(x.dtype) for x in gradients
        )

    def attention(query, key, value, *, mask=None):
        return right.function(query, key, value, mask=mask)

    said = {name: right.semantics[name] for name in ("empty_rows", "masked_values")}
    (law,) = [law for law in law_book() if law.name == "hidden_keys_do_not_reach_gradients"]

    def outcome(device, **declared):
        implementation = describe(
            attention, arrays="numpy", dtypes=("float32",), vjp=last_bits_differ, **said, **declared
        )
        return check(law, Run(implementation, device), max_examples=50).outcome

    for device in ("cpu", "cuda"):  # NumPy computes on a CPU whatever the device is called
        assert outcome(device, deterministic=True) == "failed"
        assert outcome(device) == "passed"
