"""Choosing tiles: who stays in a contest, what a budget and a kill leave behind, and what is out and why; without a GPU."""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch")
triton = pytest.importorskip("triton", reason="needs triton")

from qkverify.implementations import triton_flash  # noqa: E402
from qkverify.implementations.triton_flash import autograd, backward, forward  # noqa: E402
from qkverify.implementations.triton_flash import tiles as tile_tables  # noqa: E402
from qkverify.implementations.triton_flash.tuning import __main__ as tuning  # noqa: E402
from qkverify.implementations.triton_flash.tuning import candidates as tile_candidates  # noqa: E402
from qkverify.implementations.triton_flash.tuning import halving  # noqa: E402
from qkverify.implementations.triton_flash.tuning.candidates import (  # noqa: E402
    PARTS,
    Entry,
    Needs,
    Tiles,
    candidates,
    read,
    spelled,
)
from qkverify.implementations.triton_flash.tuning.halving import Contest, DeviceLost, Journal, Session  # noqa: E402
from qkverify.timing.sampling import Subject  # noqa: E402

ENTRY = Entry("forward", 64, True)
PRESENT = spelled(tile_tables.HOPPER[ENTRY])
CASES = (1, 2)


class Believing:
    """A clock that takes the call's word for how long it took."""

    def sample(self, call: Callable[[], float], repeats: int = 1) -> float:
        return call()


class Bench:
    """Candidates that take the seconds a table says; it counts their calls."""

    def __init__(self, seconds: Mapping[str, float | Exception]) -> None:
        self.seconds, self.calls = seconds, Counter[str]()

    def subject(self, contest: Contest, name: str, case: int) -> Subject:
        def call() -> float:
            self.calls[name] += 1
            seconds = self.seconds[name]
            if isinstance(seconds, BaseException):
                raise seconds
            return seconds * case

        return Subject(call, Believing())  # type: ignore[arg-type]


def contest_of(seconds: Mapping[str, Any], name: str = "c") -> Contest:
    return Contest(name, list(seconds), CASES)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal.jsonl", {"device": "fake"})


def always() -> bool:
    return True


# -- Halving -----------------------------------------------------------------------------------------------------------


def test_the_fastest_wins_and_the_slow_are_timed_only_once(journal: Journal) -> None:
    seconds = {str(number): float(number) for number in range(12, 0, -1)}  # "12" is the present choice
    bench, contest = Bench(seconds), contest_of(seconds)
    ranking = Session(journal, always).halve([contest], bench.subject)["c"]
    assert next(iter(ranking.seconds)) == "1"
    assert ranking.stage == halving.STAGES - 1
    assert ranking.seconds["1"] == pytest.approx(2**0.5)  # the geometric mean of cases that take 1 and 2 s
    assert "12" in ranking.seconds, "the present choice stays to the end"
    assert set(ranking.seconds) == {"1", "2", "12"}  # a third of a third, and that
    first = bench.calls["11"]
    assert all(bench.calls[str(n)] == first for n in range(5, 12))
    # In each stage a call that makes ready, and two a round: one to warm up, one that counts.
    stages = [len(CASES) * (1 + 2 * halving.FIRST_ROUNDS * 2**stage) for stage in range(halving.STAGES)]
    assert [bench.calls[name] for name in ("1", "3", "5")] == [sum(stages), sum(stages[:2]), stages[0]]


def test_every_contest_has_an_answer_before_any_goes_on(journal: Journal) -> None:
    seconds = {"a": 3.0, "b": 2.0, "c": 1.0}
    contests, times = [contest_of(seconds, name) for name in "xyz"], itertools.count()
    rankings = Session(journal, lambda: next(times) < 7).halve(contests, Bench(seconds).subject)
    assert [rankings[name].stage for name in "xyz"] == [
        0,
        0,
        0,
    ]  # six looks for the first stage, one into the second
    assert all(next(iter(ranking.seconds)) == "c" for ranking in rankings.values())


def test_without_time_nothing_is_said(journal: Journal) -> None:
    bench = Bench({"a": 1.0})
    session = Session(journal, lambda: False)
    assert session.halve([contest_of(bench.seconds)], bench.subject) == {}
    assert session.admit(contest_of(bench.seconds), lambda *_: "").candidates == []
    assert "time" in session.out["c", "a"]
    assert not bench.calls


def test_a_candidate_that_cannot_be_launched_is_out_and_the_others_go_on(journal: Journal) -> None:
    error = triton.runtime.errors.OutOfResources(262144, 232448, "shared memory")
    bench = Bench({"a": 2.0, "b": error, "c": 1.0})
    session = Session(journal, always)
    ranking = session.halve([contest_of(bench.seconds)], bench.subject)["c"]
    assert list(ranking.seconds) == ["c", "a"]
    assert "OutOfResources" in session.out["c", "b"]
    assert "shared memory" in session.out["c", "b"]
    assert bench.calls["b"] == 1


def test_who_is_wrong_or_raises_in_the_check_does_not_take_part(journal: Journal) -> None:
    def check(_: Contest, name: str) -> str:
        if name == "b":
            raise RuntimeError("not compiled")
        return "its output is wrong" if name == "a" else ""

    session = Session(journal, always)
    admitted = session.admit(contest_of({"a": 1, "b": 1, "c": 1}), check)
    assert admitted.candidates == ["c"]
    assert session.out == {("c", "a"): "its output is wrong", ("c", "b"): "raised RuntimeError: not compiled"}


# -- The journal -------------------------------------------------------------------------------------------------------


def test_a_run_that_is_started_again_measures_nothing_twice(tmp_path: Path) -> None:
    path, about = tmp_path / "journal.jsonl", {"device": "fake"}
    seconds = {str(number): float(number) for number in range(9, 0, -1)}
    checks: list[str] = []

    def run(bench: Bench, has_time: Callable[[], bool]) -> Any:
        session = Session(Journal(path, about), has_time)
        contest = session.admit(contest_of(seconds), lambda _, name: checks.append(name) or "")  # type: ignore[func-returns-value]
        return session.halve([contest], bench.subject).get("c")

    times = itertools.count()
    run(Bench(seconds), lambda: next(times) < 10)  # nine checks and the first case
    with path.open("a") as file:
        file.write('{"key": ["timed", "c", 0, 2, "9"], "sec')  # what a kill leaves of a line
    second = Bench(seconds)
    ranking = run(second, always)
    assert len(checks) == 9
    assert second.calls["9"] > 0, "the line that was cut is measured again"
    third = Bench(seconds)
    assert run(third, lambda: False) == ranking
    assert not third.calls
    assert all(json.loads(line) for line in path.read_text().splitlines() if not line.endswith('"sec'))


def test_what_was_measured_of_something_else_does_not_count(tmp_path: Path) -> None:
    path, seconds = tmp_path / "journal.jsonl", {"a": 2.0, "b": 1.0}
    for device, again in (("one", True), ("other", True), ("other", False), ("one", False)):
        bench = Bench(seconds)
        Session(Journal(path, {"device": device}), always).halve([contest_of(seconds)], bench.subject)
        assert bool(bench.calls) == again, device


@pytest.mark.parametrize("where", ["check", "first call"])
def test_who_ended_the_process_is_not_tried_again(where: str, tmp_path: Path) -> None:
    def run(bench: Bench, check: Callable[..., str]) -> Session:
        session = Session(Journal(tmp_path / "journal.jsonl", {}), always)
        session.halve([session.admit(contest_of(bench.seconds), check)], bench.subject)
        return session

    def killed(_: Contest, name: str) -> str:
        if name == "b":
            raise KeyboardInterrupt
        return ""

    good = {"a": 2.0, "b": 1.0, "c": 3.0}
    bench, check = Bench(good), killed
    if where == "first call":
        bench, check = Bench(good | {"b": KeyboardInterrupt()}), lambda *_: ""  # type: ignore[dict-item]
    with pytest.raises(KeyboardInterrupt):
        run(bench, check)
    bench = Bench(good)
    session = run(bench, lambda *_: "")
    assert session.out == {("c", "b"): halving.ENDED}
    assert not bench.calls["b"]
    assert bench.calls["c"]


def test_a_lost_device_is_booked_on_the_one_who_lost_it(tmp_path: Path) -> None:
    path, lost = tmp_path / "journal.jsonl", list[str]()

    def healthy() -> None:
        if lost:
            raise DeviceLost("an illegal memory access was encountered")

    def check(_: Contest, name: str) -> str:
        if name == "b":
            lost.append(name)
        return ""

    names = {"a": 1.0, "b": 1.0, "c": 1.0}
    with pytest.raises(DeviceLost):
        Session(Journal(path, {}), always, healthy).admit(contest_of(names), check)
    lost.clear()
    session = Session(Journal(path, {}), always, healthy)
    assert session.admit(contest_of(names), check).candidates == ["a", "c"]
    assert session.out["c", "b"] == halving.ENDED


# -- Candidates and what they need -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "entry", [Entry(*fields) for fields in itertools.product(PARTS, tile_candidates.SIZES, (False, True))]
)
def test_candidates_are_different_and_begin_with_the_present(entry: Entry) -> None:
    proposed = candidates(entry)
    assert proposed[0] == tile_tables.HOPPER[entry]
    assert len(set(proposed)) == len(proposed) >= 5
    assert all(read(spelled(tiles)) == tiles for tiles in proposed)
    for tiles in proposed:
        assert tile_candidates.tiles_in_shared(entry, tiles) <= tile_tables.SHARED_MEMORY
        if tiles.registers is not None:  # a limit makes room for one more program
            programs = Needs(tiles.registers, 0, 0).programs(tiles.warps)
            assert programs * tiles.warps in (12, 16)
            assert Needs(tiles.registers + 8, 0, 0).programs(tiles.warps) < programs


def test_what_spills_in_its_loops_is_no_candidate() -> None:
    # 256 numbers of a thread: a fifth of the instructions of its loop move what was spilled.
    large = Tiles(128, 64, 4, 3)
    assert tile_candidates.tiles_in_shared(Entry("queries", 128, False), large) <= tile_tables.SHARED_MEMORY
    assert large not in candidates(Entry("queries", 128, False))
    assert large in candidates(Entry("queries", 64, False))


def test_the_present_tiles_fit_shared_memory() -> None:
    for key, tiles in tile_tables.HOPPER.items():
        assert tile_candidates.tiles_in_shared(Entry(*key), tiles) <= tile_tables.SHARED_MEMORY, key


@pytest.mark.parametrize(
    ("needs", "warps", "programs"),
    [
        (Needs(255, 0, 65536), 4, 2),  # 65,536 registers
        (Needs(168, 0, 65536), 4, 3),
        (Needs(128, 0, 114688), 4, 2),  # shared memory
        (Needs(32, 0, 0), 32, 2),  # warps
        (Needs(64, 0, tile_tables.SHARED_MEMORY), 4, 1),
        (Needs(64, 0, tile_tables.SHARED_MEMORY + 1), 4, 0),
    ],
)
def test_programs_of_a_multiprocessor(needs: Needs, warps: int, programs: int) -> None:
    assert needs.programs(warps) == programs


def test_what_does_not_compile_or_not_in_time_is_out(tmp_path: Path) -> None:
    good, bad, late = (Tiles(64, 64, 4, stages) for stages in (2, 3, 4))
    compiled = []

    def compiler(entry: Entry, tiles: Tiles) -> Needs:
        compiled.append(tiles)
        if tiles == bad:
            raise RuntimeError("ptxas died\nof a long story")
        time.sleep(1.0 if tiles == late else 0.0)
        return Needs(100, 0, 1000)

    def run() -> dict[Any, Any]:
        journal = Journal(tmp_path / "journal.jsonl", {})
        wanted = [(ENTRY, candidate) for candidate in (good, bad, late)]
        return tile_candidates.compile_all(
            wanted, journal, lambda: 0.3, compiler, partial(ThreadPoolExecutor, 3)
        )

    reasons = {(ENTRY, bad): "raised RuntimeError: ptxas died", (ENTRY, late): tile_candidates.NOT_COMPILED}
    expected = {(ENTRY, good): Needs(100, 0, 1000), **reasons}
    assert run() == expected
    assert run() == expected
    assert Counter(compiled) == {good: 1, bad: 1, late: 2}, "only what was late is compiled again"


@pytest.mark.slow
def test_a_candidate_is_compiled_in_a_process_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(tile_candidates.os, "cpu_count", lambda: 1)
    wanted = [
        (ENTRY, tile_tables.HOPPER[ENTRY]),
        (ENTRY, tile_tables.HOPPER[ENTRY]._replace(registers=128)),
    ]
    keys = Entry("keys", 64, True), tile_tables.HOPPER["keys", 64, True]
    outcomes = tile_candidates.compile_all(
        [*wanted, keys], Journal(tmp_path / "journal.jsonl", {}), lambda: 300.0
    )
    free, limited = (outcomes[pair] for pair in wanted)
    assert isinstance(free, Needs), free
    assert isinstance(limited, Needs), limited
    assert limited.registers == 128 < free.registers
    assert limited.spilled > 0
    assert free.shared == limited.shared > 0
    assert free.programs(4) == 2
    for (entry, tiles), needs in outcomes.items():
        expected = tile_candidates.tiles_in_shared(entry, tiles)
        assert expected <= needs.shared <= expected + 2048, "beside the tiles, only some rows of numbers"
    assert outcomes[keys].spilled == 0, "where each key head has one query head there is no loop over heads"
    assert any((tmp_path / "cache").rglob("*.cubin"))


# -- The kernels' calls, on the CPU ------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "TOKENS": 40,
        "WIDTH": 64,
        "LENGTHS": (20, 40),
        "CHECKED": 40,
        "COMPARED_ROUNDS": 3,
    }.items():
        monkeypatch.setattr(tuning, name, value)


@pytest.mark.parametrize("diagonal", [False, True])
def test_the_calls_of_single_kernels_are_those_of_the_whole(diagonal: bool, small: None) -> None:
    device = tuning.Device("cpu")
    query, key, value, upstream, *_ = device._tensors(64, 20, diagonal)
    leaves = [tensor.detach().requires_grad_() for tensor in (query, key, value)]
    output = triton_flash.attention(*leaves, causal=diagonal)
    gradients = torch.autograd.grad(output, leaves, upstream)
    by_part = {part: device.subject(Entry(part, 64, diagonal), Tiles(64, 64), 20).call() for part in PARTS}
    assert torch.equal(by_part["forward"][0], output)
    assert torch.equal(by_part["queries"], gradients[0])
    assert all(torch.equal(*pair) for pair in zip(by_part["keys"], gradients[1:], strict=True))


@pytest.mark.parametrize("part", PARTS)
def test_a_wrong_kernel_is_seen_by_the_check(part: str, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    device, entry = tuning.Device("cpu"), Entry(part, 64, True)
    assert device.check(entry, Tiles(64, 64)) == ""
    right, wanted = autograd._launch, getattr(forward if part == "forward" else backward, PARTS[part])

    def wrong(kernel: Any, grid: Any, tile: Any, arguments: Any, **flags: Any) -> None:
        right(
            kernel, (grid[0] - (kernel is wanted), *grid[1:]), tile, arguments, **flags
        )  # its last tile is left out

    monkeypatch.setattr(autograd, "_launch", wrong)
    monkeypatch.setattr(torch.Tensor, "new_empty", torch.Tensor.new_zeros)
    assert "wrong" in device.check(entry, Tiles(64, 64))


def test_the_table_is_as_before_after_a_call() -> None:
    before = dict(tile_tables.HOPPER)
    with contextlib.suppress(RuntimeError), tuning.in_table({ENTRY: Tiles(1, 2)}):
        assert tile_tables.HOPPER[ENTRY] == Tiles(1, 2)
        raise RuntimeError
    assert before == tile_tables.HOPPER


# -- All of it ---------------------------------------------------------------------------------------------------------


class Fake(tuning.Device):
    """A CPU whose candidates take the seconds a function says; one of them is wrong."""

    def __init__(self, seconds: Callable[[Tiles], float], wrong: Tiles | None = None) -> None:
        super().__init__("cpu")
        self.seconds, self.wrong, self.asked = seconds, wrong, Counter[Tiles]()

    def check(self, entry: Entry, tiles: Tiles) -> str:
        return "its output is wrong" if tiles == self.wrong else ""

    def subject(self, entry: Entry, tiles: Tiles, length: int) -> Subject:
        self.asked[tiles] += 1
        return Subject(lambda: self.seconds(tiles), Believing())  # type: ignore[arg-type]


def needs_little(wanted: Any, journal: Journal, left: Callable[[], float]) -> dict[Any, Any]:
    needs = dict.fromkeys(wanted, Needs(128, 0, 1000))
    return needs | {wanted[-1]: "raised CompilationError", wanted[-2]: Needs(255, 0, 2**20)}


def test_the_best_right_candidate_comes_into_the_table(
    small: None, journal: Journal, capsys: pytest.CaptureFixture[str]
) -> None:
    best, wrong, broken, large = (candidates(ENTRY)[index] for index in (5, 4, -1, -2))
    quick = {best: 1.0, wrong: 0.5, broken: 0.1, large: 0.1}
    fake = Fake(lambda tiles: quick.get(tiles, 2.0), wrong)
    session = tuning.tune([ENTRY], fake, journal, 3600.0, needs_little)
    said = capsys.readouterr().out
    text = said[said.index("HOPPER = {") : said.index("\n}\n") + 2]
    table: dict[str, Any] = {}
    exec(text, {"Tiles": Tiles}, table)
    assert table["HOPPER"] == {**tile_tables.HOPPER, ENTRY: best}
    reasons = {name: session.out[str(ENTRY), spelled(name)] for name in (wrong, broken, large)}
    assert reasons[wrong] == "its output is wrong"
    assert "Compilation" in reasons[broken]
    assert "does not fit" in reasons[large]
    assert not any(fake.asked[tiles] for tiles in (wrong, broken, large))
    lines = [line for line in said.splitlines() if line.startswith(("forward 64 ", "backward 64 "))]
    assert len(lines) == 1 + 2 * 2 * len(tuning.LENGTHS), said  # the ranking's title, and every case
    assert all(float(line.split()[-1]) >= 0 for line in lines[1:]), "ours over the CPU's own flash back end"
    assert "torch_sdpa-cudnn: " in said, "who has no time has a reason"
    assert tuning.tune([ENTRY], Fake(lambda tiles: 1 / 0), journal, 0.0, needs_little), (
        "all is in the journal"
    )
    assert text in capsys.readouterr().out


def test_a_change_must_be_worth_it() -> None:
    other = spelled(candidates(ENTRY)[3])
    for seconds, expected in ((0.995, PRESENT), (0.98, other)):
        ranking = halving.Ranking(2, {other: seconds, PRESENT: 1.0})
        assert spelled(tuning.chosen([ENTRY], {str(ENTRY): ranking})[ENTRY]) == expected
    assert spelled(tuning.chosen([ENTRY], {})[ENTRY]) == PRESENT


def test_the_table_is_printed_as_it_stands_in_the_source() -> None:
    assert tuning.table({}) in Path(tile_tables.__file__).read_text()


def test_without_a_gpu_it_says_so_and_exits_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["tiles", "--journal", str(tmp_path / "journal.jsonl")])
    monkeypatch.setattr(triton_flash, "unavailable", lambda device: "no CUDA device")
    with pytest.raises(SystemExit) as exit:
        tuning.main()
    said = capsys.readouterr()
    assert exit.value.code == 2
    assert not said.out
    assert said.err == "tiles: no CUDA device (--compile needs none)\n"
    assert not (tmp_path / "journal.jsonl").exists()
