"""Workloads are well-formed and sourced, and become the problems that they describe."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qkverify.contract import DEVICES, DTYPES, describe
from qkverify.contract.registry import load_folder
from qkverify.errors import UsageError
from qkverify.problem import activations
from qkverify.timing import workload_files
from qkverify.timing.benchmark_cases import BenchmarkCase, cells_of, why_not_run
from qkverify.timing.work import Work, work
from qkverify.timing.workloads import SMALL_GRID, Workload, named, resolve, small_grid, storage, table


@pytest.mark.parametrize("workload", table().values(), ids=list(table()))
def test_every_workload_is_named_sourced_and_consistent(workload: Workload) -> None:
    s = workload.sizes
    assert table()[workload.name] is workload
    assert "arXiv:" in workload.source or "(20" in workload.source
    assert workload_files.inconsistency(workload) is None
    assert all(size > 0 for size in s.values())


def test_a_causal_workload_means_the_same_under_both_alignments() -> None:
    assert all(w.sizes["Q"] == w.sizes["K"] for w in table().values() if w.causal)


def test_every_head_configuration_is_there() -> None:
    sizes = [w.sizes for w in table().values()]
    assert any(s["G"] == s["H"] for s in sizes)
    assert any(1 < s["G"] < s["H"] for s in sizes)
    assert any(1 == s["G"] < s["H"] for s in sizes)
    assert any(s["D"] != s["E"] for s in sizes)
    assert any(s["Q"] == 1 < s["K"] for s in sizes)
    assert any(1 < s["Q"] != s["K"] for s in sizes)
    options = [(w.causal, w.window, w.key_lengths, w.scale, w.softcap) for w in table().values()]
    assert {causal for causal, *_ in options} == {True, False}
    assert all(any(values[at] is not None for values in options) for at in range(1, 5))


@pytest.mark.parametrize("device", DEVICES)
def test_the_small_grid_goes_from_short_to_long(device: str) -> None:
    lengths = [workload.sizes["Q"] for workload in small_grid(device)]
    assert SMALL_GRID[device]
    assert lengths[0] == min(lengths)
    assert {1, 256, 1024, 4096} <= set(lengths)
    assert any(workload.key_lengths for workload in small_grid(device))


def test_the_rarer_dtypes_are_timed_at_one_length() -> None:
    implementation = next(
        implementation for implementation in load_folder() if implementation.name == "torch_eager"
    )
    cells = cells_of([implementation], devices=["cpu"])
    cases: dict[str, set[str]] = {}
    for cell in cells:
        cases.setdefault(cell.dtype, set()).add(cell.workload.name)
    assert {dtype: len(names) for dtype, names in cases.items()} == dict(
        float32=5, bfloat16=5, float64=1, float16=1
    )
    assert {c.direction for c in cells if c.workload.sizes["Q"] == 1} == {"forward"}
    requested = cells_of([implementation], devices=["cpu"], dtypes=["float16"])
    assert {cell.workload.name for cell in requested} == {workload.name for workload in small_grid("cpu")}


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_workload_becomes_a_problem_of_its_sizes(dtype: str) -> None:
    workload = dataclasses.replace(named("bert-base-padded"), queries=40, key_lengths=(40, 7, 0, 1))
    problem = workload.problem(dtype)
    assert problem.sizes == workload.sizes
    assert problem.query.dtype == storage(dtype)
    assert problem.upstream is not None
    assert problem.upstream.shape == problem.query.shape
    assert workload.options == "key lengths 40, 7, 0, 1"


def test_the_numbers_do_not_depend_on_the_dtype_and_do_on_the_seed() -> None:
    workload = named("transformer-base-128")
    wide, narrow, other = (
        workload.problem("float32"),
        workload.problem("bfloat16"),
        workload.problem("float32", seed=1),
    )
    assert np.array_equal(wide.query.astype(storage("bfloat16")), narrow.query)
    assert not np.array_equal(wide.query, other.query)


def test_real_activations_are_the_stored_ones_and_said_to_be() -> None:
    workload = named("minilm-l6-128")
    problem = workload.problem("bfloat16")
    assert problem.sizes == workload.sizes
    for name, array in activations.stored().items():
        assert np.array_equal(getattr(problem, name)[0], array.astype(storage("bfloat16")))
    assert workload.options == "real activations"
    assert np.array_equal(workload.problem("float32", seed=1).query, workload.problem("float32").query)


def test_an_unknown_workload_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="gpt2-small"):
        named("gpt2-smal")


def test_forward_work_of_full_attention_is_the_textbook_count() -> None:
    problem = dataclasses.replace(named("transformer-base-128"), causal=False).problem("float32")
    assert work(problem, "forward") == Work(4 * 8 * 128 * 128 * 64, 4 * 8 * 128 * 64 * 4)


def test_backward_is_two_and_a_half_times_forward_where_key_and_value_sizes_agree() -> None:
    problem = named("transformer-base-128").problem("float32")
    forward, both = work(problem, "forward").flops, work(problem, "forward+backward").flops
    assert both - forward == 5 * forward // 2


@pytest.mark.parametrize("workload", table().values(), ids=list(table()))
def test_the_work_of_any_workload_is_counted_without_its_memory(workload: Workload) -> None:
    outline = workload.outline("bfloat16")
    forward, both = work(outline, "forward"), work(outline, "forward+backward")
    assert outline.query.strides == (0, 0, 0, 0)
    assert 0 < forward.flops < both.flops
    assert 0 < forward.bytes < both.bytes


def test_the_outline_has_the_work_of_the_problem() -> None:
    workload = dataclasses.replace(named("bert-base-padded"), queries=40, key_lengths=(40, 7, 0, 1))
    assert work(workload.outline("float64"), "forward") == work(workload.problem("float64"), "forward")


# Files


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return path


MINE = """
heads = 6
key_size = 32

[mine]
kv_heads = 2

[mine.short]
queries = [16, 32]

[mine.long]
queries = 1
keys = 64
batch = 2
causal = false
key_lengths = [64, 3]
window = ["open", 5]
softcap = 20
source = "nowhere"
"""


def test_a_file_is_read_with_what_its_tables_inherit_and_its_series(tmp_path: Path) -> None:
    text = MINE.replace('window = ["open", 5]\n', "")
    short, other, long = workload_files.read(written(tmp_path, text))
    common = {"heads": 6, "key_size": 32, "kv_heads": 2}
    assert short == Workload(name="mine-short-16", source="mine.toml", queries=16, **common)
    assert other == dataclasses.replace(short, name="mine-short-32", queries=32)
    assert long == Workload(name="mine-long", source="nowhere", queries=1, keys=64, batch=2, causal=False,
                            key_lengths=(64, 3), softcap=20.0, **common)  # fmt: skip


def test_the_sides_of_a_window_may_be_open(tmp_path: Path) -> None:
    (workload,) = workload_files.read(written(tmp_path, f'[w]\n{LEAST}\nwindow = ["open", 5]'))
    assert workload.window == (None, 5)
    assert workload.options == "window open .. 5"


LEAST = "heads = 4\nqueries = 8\nkey_size = 2"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[w]\nheads = 4\nqueries = 8", "table [w]: key_size is missing"),
        (f"[w]\n{LEAST}\nhead_count = 4", "table [w]: unknown key 'head_count'"),
        (f"[w]\n{LEAST}\nkv_head = 2", "Did you mean 'kv_heads'?"),
        (f"[w]\n{LEAST}\nname = 'x'", "unknown key 'name'"),
        (f"[w]\n{LEAST}\nbatch = 0", "table [w]: batch = 0: Expected int >= 1"),
        (f"[w]\n{LEAST}\nkeys = 'many'", "keys = 'many': Expected int | null, got str"),
        (f"[w]\n{LEAST}\nkeys = true", "keys = true: Expected int | null, got bool"),
        (f"[w]\n{LEAST}\nkeys = [8, -1]", "keys = -1: Expected int >= 1"),
        (f"[w]\n{LEAST}\ncausal = 1", "causal = 1: Expected bool, got int"),
        (f"[w]\n{LEAST}\nwindow = 5", "window = 5: Expected array | null, got int"),
        (f"[w]\n{LEAST}\nwindow = [1, -2]", "window = [1, -2]: Expected int >= 0"),
        (f"[w]\n{LEAST}\nwindow = [1]", "window = [1]: Expected array of length 2"),
        (f"[w]\n{LEAST}\nscale = 0", "scale = 0: Expected float > 0.0"),
        (f"[w]\n{LEAST}\nkv_heads = 3", "heads = 4 is not a multiple of kv_heads = 3"),
        (f"[w]\n{LEAST}\nkey_lengths = [8, 8]", "key_lengths has 2 entries for batch = 1"),
        (f"[w]\n{LEAST}\nkey_lengths = [9]", "key_lengths has 9, and there are 8 keys"),
        (f"[w]\n{LEAST}\nkeys = 9", "means two things"),
        (f"[w]\n{LEAST}\nkeys = 9\ncausal = false\nwindow = [1, 1]", "means two things"),
        (f"['a b']\n{LEAST}", "may only have letters, digits"),
        (f"[w-8]\n{LEAST}\n[w]\nheads = 4\nkey_size = 2\nqueries = [8]", "two workloads have the name 'w-8'"),
        (LEAST, "has no workload"),
        ("[w", "is not a TOML file"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        workload_files.read(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)


def test_the_example_shows_every_key() -> None:
    path = workload_files.folder() / workload_files.EXAMPLE
    workloads = {workload.name: workload for workload in workload_files.read(path)}
    fields = {field.name: field.default for field in dataclasses.fields(Workload)}
    shown = {
        key for workload in workloads.values() for key in fields if getattr(workload, key) != fields[key]
    }
    assert shown == set(fields)
    assert not set(workloads) & set(table())
    assert "Workload" not in path.read_text()  # it is for people who read no code
    for workload in workloads.values():
        assert work(workload.outline("float32"), "forward").flops > 0


def test_names_patterns_and_files_are_resolved_in_order_and_once(tmp_path: Path) -> None:
    path = written(tmp_path, f"[w]\n{LEAST}")
    names = [workload.name for workload in resolve(["gpt2*", str(path), "bert-base", "gpt2-small"])]
    assert names == ["gpt2-small", "gpt2-xl", "w", "bert-base"]


def test_what_cannot_be_resolved_says_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no workload has a name like 'gpt9\\*'"):
        resolve(["gpt9*"])
    with pytest.raises(UsageError, match="Did you mean 'bert-base'"):
        resolve(["bert-bas"])
    with pytest.raises(UsageError, match="No such file"):
        resolve([str(tmp_path / "none.toml")])
    other = written(tmp_path, f"[bert-base]\n{LEAST}")
    with pytest.raises(UsageError, match="two different workloads have the name 'bert-base'"):
        resolve(["bert-base", str(other)])


def test_activations_of_another_shape_do_not_exist(tmp_path: Path) -> None:
    path = written(
        tmp_path, '[w]\nheads = 8\nqueries = 64\nkey_size = 32\ncausal = false\nvalues = "activations"\n'
    )
    with pytest.raises(UsageError, match="12 heads of 32, as many keys as queries; here H = 8, G = 8"):
        resolve([str(path)])


def test_scale_and_soft_cap_reach_the_problem() -> None:
    problem = named("gemma2-27b-global").outline("float32")
    assert problem.options["softcap"] == 50.0
    assert problem.options["scale"] == pytest.approx(144**-0.5)
    assert named("gemma2-27b-global").options == "scale 0.0833333; softcap 50"


def test_a_function_without_scale_or_soft_cap_is_not_timed_on_workloads_that_need_them() -> None:
    def attention(query: Any, key: Any, value: Any, *, causal: bool = False) -> Any:
        raise AssertionError("must not be called")

    implementation = describe(attention, name="mine", arrays="numpy", dtypes=("float32",))
    needing = BenchmarkCase(named("gemma2-27b-global"), implementation, "cpu", "float32", "forward")
    plain = BenchmarkCase(named("gpt2-xl"), implementation, "cpu", "float32", "forward")
    assert why_not_run(needing) == "not offered: scale, softcap"
    assert why_not_run(plain) is None


TABLE = "[mine]\nheads = 8\nqueries = {}\nkey_size = {}\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"[{'.'.join(['a'] * 2000)}]\n", "at most 20 deep"),
        (f"x = {'[' * 100_000}", "nested too deeply"),
        (TABLE.format(2**40, 64), "no machine holds sizes of more than"),
        (TABLE.format([*range(1, 200)], [*range(1, 200)]), "make 39,601 workloads"),
    ],
)
def test_a_table_that_nobody_can_mean_gets_a_sentence(text, said, tmp_path):
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(UsageError, match=said):
        workload_files.read(tmp_path / "mine.toml")
