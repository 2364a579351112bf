"""Several processes: joined samples, time where intervals are widest, and a process that dies."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from qkverify import probes, results
from qkverify.contract import Implementation, registry
from qkverify.results import Control, Timing, Writer, of_kind
from qkverify.timing import grid, timing_worker
from qkverify.timing.benchmark_cases import BenchmarkCase
from qkverify.timing.grid import _Plan, run_grid
from qkverify.timing.measurement import MeasuredGroup
from qkverify.timing.merge_samples import LONG_ROUNDS, NARROW, PREPARING_SECONDS, Gathered, allocate
from qkverify.timing.sampling import FEWEST_ROUNDS, OUT_OF_TIME
from qkverify.timing.statistics import ALONE
from qkverify.timing.timing_worker import Sweep, Terms
from qkverify.timing.worker_protocol import Child, Died
from qkverify.timing.workloads import Workload

TINY = Workload(name="tiny", source="made up", heads=2, key_size=8, queries=16)
KERNELS = """
import os
import numpy as np
from qkverify import implementation

def attend(query, key, value):
    scores = query @ key.swapaxes(-1, -2) * query.dtype.type(query.shape[-1] ** -0.5)
    scores = np.where(np.tri(*scores.shape[-2:], dtype=bool), scores, query.dtype.type(-1e30))
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ value

@implementation(name="one", dtypes=("float32",), causal_alignment="bottom-right")
def one(query, key, value, *, causal=False):
    print("what a kernel prints is no answer")
    return attend(query, key, value)

@implementation(name="other", dtypes=("float32",), causal_alignment="bottom-right")
def other(query, key, value, *, causal=False):
    return attend(query, key, value)

@implementation(name="deadly", dtypes=("float32",), causal_alignment="bottom-right")
def deadly(query, key, value, *, causal=False):
    if query.shape[-2] == 16:  # the size that is timed, and none that is probed
        os._exit(7)
    return attend(query, key, value)
"""


@pytest.fixture
def kernels(tmp_path: Path) -> Path:
    file = tmp_path / "kernels.py"
    file.write_text(KERNELS)
    return file


def cells(file: Path, *names: str) -> list[BenchmarkCase]:
    return [
        BenchmarkCase(TINY, registry.find(f"{file}:{name}")[0], "cpu", "float32", "forward") for name in names
    ]


def terms(**changes: object) -> Terms:
    given = dict(budget_seconds=2.0, limit_seconds=4.0, seed=0, most_rounds=5, check=True, twin_of="")
    return Terms(**{**given, **changes})  # type: ignore[arg-type]


def run(mine: list[BenchmarkCase], on: Terms | None = None) -> MeasuredGroup:
    with Sweep() as sweep:
        return sweep.measure(mine, on or terms(), verified={}, peaks={}, expected_seconds={})


# The process


def test_a_group_is_timed_in_a_process_of_its_own_and_comes_back_whole(kernels: Path) -> None:
    mine = cells(kernels, "one", "other")
    group = run(mine)
    assert [t.implementation for t in group.timings] == ["one", "other"]
    assert all(t.verified and len(t.seconds) - len(t.disturbed) <= 5 <= len(t.seconds) for t in group.timings)
    assert group.twin is not None
    assert set(group.call_seconds) == set(mine)
    assert group.wall_seconds > 0


def test_the_named_cell_stands_twice(kernels: Path) -> None:
    for name in ("one", "other"):
        group = run(cells(kernels, "one", "other"), terms(twin_of=name))
        assert group.twin is not None
        assert group.twin.implementation == name


def test_who_ends_the_process_loses_its_own_times_and_the_next_group_has_another(kernels: Path) -> None:
    with Sweep() as sweep:
        lost = sweep.measure(
            cells(kernels, "deadly", "one"), terms(), verified={}, peaks={}, expected_seconds={}
        )
        deadly, neighbour = lost.timings
        assert (deadly.reason, deadly.seconds) == ("while it was timed, its process ended with status 7", [])
        assert neighbour.seconds
        alone = sweep.measure(cells(kernels, "deadly"), terms(), verified={}, peaks={}, expected_seconds={})
        assert [t.reason for t in alone.timings] == ["while it was timed, its process ended with status 7"]
        fine = sweep.measure(cells(kernels, "one"), terms(), verified={}, peaks={}, expected_seconds={})
    assert fine.timings[0].seconds


def test_what_stands_in_no_file_is_timed_here() -> None:
    def made_up(query: np.ndarray, key: np.ndarray, value: np.ndarray) -> np.ndarray:
        scores = query @ key.swapaxes(-1, -2) * np.float32(query.shape[-1] ** -0.5)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        return np.asarray(weights / weights.sum(-1, keepdims=True) @ value)

    workload = Workload(name="open", source="made up", heads=2, key_size=8, queries=16, causal=False)
    implementation = registry.find(made_up)[0]
    group = run([BenchmarkCase(workload, implementation, "cpu", "float32", "forward")])
    assert group.timings[0].seconds, group.timings[0].reason


def test_a_child_that_ends_is_told_from_one_that_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "echo_child.py").write_text(
        "from qkverify.timing.worker_protocol import serve\nimport os\n"
        "serve(lambda line: os._exit(3) if line == b'die\\n' else line.strip() + str(os.getpid()).encode())\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with Child("echo_child") as child:
        first = child.ask(b"a")
        assert child.ask(b"a") == first != f"a{os.getpid()}\n".encode()
        with pytest.raises(Died, match="status 3"):
            child.ask(b"die")
        assert child.ask(b"a") != first


def test_a_file_of_the_current_folder_is_no_module_of_a_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A `secrets.py` or a `grp.py` of one's own ended every process that timed, before it had begun."""
    (tmp_path / "working").mkdir()
    (tmp_path / "working" / "secrets.py").write_text("raise SystemExit('not meant to be imported')\n")
    (tmp_path / "echoing_child.py").write_text(
        "from qkverify.timing.worker_protocol import serve\nserve(lambda line: line.strip())\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path / "working")
    with Child("echoing_child") as child:
        assert child.ask(b"a") == b"a\n"


def test_a_child_has_its_environment_and_the_users_own_goes_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "env_child.py").write_text(
        "from qkverify.timing.worker_protocol import serve\nimport os\nserve(lambda line: os.environ['SETTING'].encode())\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for of_user, expected in ((None, b"theirs\n"), ("mine", b"mine\n")):
        if of_user:
            monkeypatch.setenv("SETTING", of_user)
        with Child("env_child", SETTING="theirs") as child:
            assert child.ask(b"?") == expected


# Joining


def timing(name: str, seconds: list[float], reason: str = "") -> Timing:
    return Timing(
        case="c", sizes={"K": 1}, causal=True, options="", implementation=name, device="cpu", dtype="float32",
        direction="forward", clock="host", seconds=seconds, rounds=list(range(len(seconds))), flops=1, bytes=1,
        reason=reason, verified=bool(seconds), margin=0.5,
    )  # fmt: skip


def gathered(kernels: Path, *sweeps_of: MeasuredGroup) -> Gathered:
    group = Gathered(cells(kernels, "one", "other"))
    for process, sweep in enumerate(sweeps_of):
        group.add(sweep, process)
    return group


def measured(
    of_one: list[float], of_other: list[float], twin: list[float], reason: str = ""
) -> MeasuredGroup:
    return MeasuredGroup(
        [timing("one", of_one), timing("other", of_other, reason)], timing("one", twin), {}, 1.0
    )


def test_sweeps_are_joined_with_rounds_numbered_through(kernels: Path) -> None:
    group = gathered(
        kernels, measured([1.0] * 3, [2.0] * 3, [1.0] * 3), measured([1.5] * 4, [3.0] * 4, [1.5] * 4)
    )
    first, second = group.timings
    assert second.seconds == [2.0] * 3 + [3.0] * 4
    assert first.rounds == list(range(7))
    assert first.processes == [0] * 3 + [1] * 4
    assert group.control() == Control("c", "one", "cpu", "float32", 1.0, 1.0, 1.0, "forward", 2)
    assert [timing.margin for timing in group.timings] == [0.5, 0.5]


def test_a_cell_without_room_in_a_later_sweep_keeps_its_times_and_one_that_fails_there_loses_them(
    kernels: Path,
) -> None:
    first = measured([1.0] * 3, [2.0] * 3, [1.0] * 3)
    kept = gathered(kernels, first, measured([1.0] * 3, [], [1.0] * 3, "the time budget had run out"))
    assert len(kept.timings[1].seconds) == 3
    lost = gathered(kernels, first, measured([1.0] * 3, [], [1.0] * 3, "raised ValueError: at times"))
    assert (lost.timings[1].seconds, lost.timings[1].verified) == ([], False)
    assert lost.timings[1].reason == "raised ValueError: at times"
    assert [cell.implementation.name for cell in lost.live] == ["one"]


def called_once(name: str, seconds: float) -> Timing:
    return msgspec.structs.replace(timing(name, [seconds]), rounds=[ALONE])


def planned(kernels: Path, left: float) -> _Plan:
    """A plan of one group in which both cells were called once, for 0.1 s and 0.2 s, with so much time left."""
    both = cells(kernels, "one", "other")
    plan = _Plan(
        [both], dict.fromkeys(both), {}, lambda: left, seed=0, most_rounds=9, cache=None, first_seconds=0.1
    )
    (group,) = plan.groups.values()
    group.add(MeasuredGroup([called_once("one", 0.1), called_once("other", 0.2)], None, {}), 0)
    plan._calls |= dict(zip(both, (0.1, 0.2), strict=True))
    return plan


def test_what_was_called_once_is_taken_in_rounds_where_there_is_time(kernels: Path) -> None:
    ((group, on, chosen),) = planned(kernels, left=60.0).again(2)
    assert chosen == group.short_of_rounds == group.timed == group.cells
    assert (on.most_rounds, on.check) == (FEWEST_ROUNDS, False)
    assert on.budget_seconds == pytest.approx(4 * (0.3 + 0.1))
    assert list(planned(kernels, left=6.0).again(2)) == []  # more than a part of that
    group.add(measured([0.1] * 3, [0.2] * 3, [0.1] * 3), 2)
    assert (group.short_of_rounds, [len(t.seconds) for t in group.timings]) == ([], [4, 4])
    assert group.control() is not None  # the twin came with the rounds


def test_of_a_group_without_room_for_all_the_fastest_are_taken_in_rounds(kernels: Path) -> None:
    plan = planned(kernels, left=60.0)
    slow = cells(kernels, "deadly")[0]
    (group,) = plan.groups.values()
    group.cells.append(slow)
    group.timings.append(called_once("deadly", 5.0))
    plan._calls[slow] = 5.0
    ((_, _, chosen),) = plan.again(1)
    assert [cell.implementation.name for cell in chosen] == ["one", "other"]


def test_what_was_put_off_or_came_too_late_is_called_once_the_shortest_first(kernels: Path) -> None:
    both = cells(kernels, "one", "other")
    plan = _Plan(
        [both], dict.fromkeys(both), {}, lambda: 60.0, seed=0, most_rounds=9, cache=None, first_seconds=0.1
    )
    (group,) = plan.groups.values()
    group.add(MeasuredGroup([timing("one", []), timing("other", [], OUT_OF_TIME)], None, {}), 0)
    plan._put_off[both[0]] = 2.0
    called = list(plan.slow(math.inf))
    assert [(cell.implementation.name, on.once) for _, on, (cell,) in called] == [
        ("other", True),
        ("one", True),
    ]
    assert list(plan.slow(0.0)) == []  # the time for it is over


def test_a_run_that_timed_nothing_owes_a_call_of_each_in_its_shortest_group(kernels: Path) -> None:
    both = cells(kernels, "one", "other")
    longer = [replace(cell, workload=replace(TINY, name="longer", queries=64)) for cell in both]
    reasons = dict.fromkeys([*both, *longer])
    plan = _Plan(
        [both, longer], reasons, {}, lambda: 0.0, seed=0, most_rounds=9, cache=None, first_seconds=0.1
    )
    for group in plan.groups.values():
        late = [timing(name, [], OUT_OF_TIME) for name in ("one", "other")]
        group.add(MeasuredGroup(late, None, {}), 0)
    assert list(plan.slow(math.inf)) == []
    owed = [(cell, on.once) for _, on, (cell,) in plan.slow(math.inf, at_last=True)]
    assert owed == [(both[0], True), (both[1], True)]


def test_the_time_that_is_left_is_divided_into_no_more_processes_than_it_has_room_for(kernels: Path) -> None:
    plan = planned(kernels, left=11.0)
    (group,) = plan.groups.values()
    group.add(measured([0.1] * 3, [0.2] * 3, [0.1] * 3), 1)
    assert plan.worthwhile(3) == 2  # 3 s to start, 0.8 s for the fewest rounds, 1 s to get ready
    assert plan.worthwhile(1) == 1


def noisy(seed: int, scatter: float, rounds: int = 10) -> MeasuredGroup:
    first, second, twin = np.exp(np.random.default_rng(seed).normal(0, scatter, (3, rounds)))
    return measured(first.tolist(), second.tolist(), twin.tolist())


def test_time_goes_where_intervals_are_widest(kernels: Path) -> None:
    groups = {
        ("quiet", "forward", "cpu", "float32"): gathered(kernels, noisy(1, 0.002)),
        ("noisy", "forward", "cpu", "float32"): gathered(kernels, noisy(2, 0.05)),
    }
    quiet, loud = allocate(groups, 1000.0).values()
    assert quiet == pytest.approx(groups["quiet", "forward", "cpu", "float32"].seconds_of(LONG_ROUNDS))
    assert loud > 10 * quiet
    assert sum(group.cost(n) for group, n in zip(groups.values(), (quiet, loud), strict=True)) <= 1000.0


def test_no_more_time_than_a_narrow_interval_needs_and_never_less_than_the_fewest_rounds(
    kernels: Path,
) -> None:
    name = "c", "forward", "cpu", "float32"
    group = gathered(kernels, noisy(1, 0.002))
    fewest = group.seconds_of(LONG_ROUNDS)
    assert fewest == pytest.approx(LONG_ROUNDS * 3 * 1.0, rel=0.01)
    assert group.rounds_in(20.0, most=100) == 6
    assert fewest <= allocate({name: group}, 1e9)[name] < 100
    assert allocate({name: group}, 0.0) == {name: fewest}
    short = gathered(kernels, measured([1e-3] * 9, [2e-3] * 9, [1e-3] * 9))
    assert short.fewest_rounds == FEWEST_ROUNDS
    assert short.rounds_in(20.0, most=100) == 100
    assert allocate({name: short}, 0.0, least_seconds=0.4) == {name: 0.4}
    assert allocate({name: group}, 0.0, least_seconds=20.0) == {name: fewest}
    loud = gathered(kernels, noisy(2, 0.05))
    assert allocate({name: loud}, 1e9, most_seconds=50.0) == {name: 50.0}


def test_a_further_sweep_is_foretold_by_the_calls_and_not_by_what_only_the_first_did(kernels: Path) -> None:
    first = measured([0.1] * 3, [0.2] * 3, [0.1] * 3)._replace(wall_seconds=60.0, sampling_seconds=9.0)
    group = gathered(kernels, first)
    assert group.cost(4.0) == pytest.approx(4.0 + 0.4 + 3 * PREPARING_SECONDS)
    group.add(measured([0.1] * 5, [0.2] * 5, [0.1] * 5)._replace(wall_seconds=4.0, sampling_seconds=3.0), 1)
    assert group.cost(4.0) == pytest.approx(4.0 + 1.0)  # and after that by the last


@pytest.mark.parametrize("scatter", [0.005, 0.03])
def test_the_rounds_that_a_width_asks_for_give_it(kernels: Path, scatter: float) -> None:
    """Half the interval of a median of that many rounds, seen over many draws, is the width that was asked for."""
    needed = []
    for seed in range(30):
        group = gathered(kernels, noisy(seed, scatter, 40))
        needed.append(40 + group.further_seconds(NARROW) / group.seconds_of(1))
    rounds = int(np.median(needed))
    logs = np.random.default_rng(0).normal(0, math.sqrt(2) * scatter, (2000, rounds))
    half = 1.96 * float(np.std(np.median(logs, axis=1)))
    assert 0.7 * NARROW < half < 1.3 * NARROW


# The grid


@pytest.fixture
def written(kernels: Path, tmp_path: Path) -> list[results.Record]:
    path = tmp_path / "results.jsonl"
    ones = [cell.implementation for cell in cells(kernels, "one", "deadly")]
    with Writer(path) as writer:
        run_grid(writer, ones[:1], budget_seconds=60, workloads=lambda device: [TINY], directions=("forward",),
                 processes=2, most_rounds=4)  # fmt: skip
    return results.read(path)


def test_the_grid_is_swept_by_as_many_processes_as_were_asked_for(written: list[results.Record]) -> None:
    (recorded,) = of_kind(written, Timing)
    assert set(recorded.processes) == {0, 1}
    assert recorded.rounds == sorted(set(recorded.rounds))
    (control,) = of_kind(written, Control)
    assert control.processes == 2


def test_a_process_makes_the_first_calls_of_an_implementation_once(
    kernels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever number of groups it is timed in: they take seconds."""
    found: list[str] = []
    reload = probes.reload_implementation

    def counted(name: str, *place: str) -> Implementation:
        found.append(name)
        return reload(name, *place)

    monkeypatch.setattr(probes, "reload_implementation", counted)
    mine = cells(kernels, "one", "other")
    named = [timing_worker._named(cell, None, None, None) for cell in mine]
    question = msgspec.json.encode(timing_worker.Question(named, terms(most_rounds=3)))
    for _ in range(2):
        assert msgspec.json.decode(timing_worker.answer(question), type=timing_worker.Answer).timings
    assert found == ["one", "other"]


def test_where_nothing_is_to_be_measured_no_process_is_asked(
    kernels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = cells(kernels, "one", "other")
    with Sweep() as sweep:
        monkeypatch.setattr(sweep, "_asked", None)
        group = sweep.measure(
            mine, terms(), verified=dict.fromkeys(mine, OUT_OF_TIME), peaks={}, expected_seconds={}
        )
    assert [timing.reason for timing in group.timings] == [OUT_OF_TIME] * 2


def test_a_ceiling_that_was_found_too_low_gives_way_to_the_higher_one() -> None:
    low, copy = (
        results.Ceiling("cpu", "float32", "matmul", 1e9),
        results.Ceiling("cpu", "float32", "copy", 5.0),
    )
    high = results.Ceiling("cpu", "float32", "matmul", 9e9)
    assert grid.highest([low, copy, high]) == grid.highest([high, copy, low][::-1]) == [high, copy]
