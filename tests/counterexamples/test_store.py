"""The folder of counterexamples: nothing in it is for a repository, and it does not grow without end."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from qkverify.contract import describe
from qkverify.counterexamples import store
from qkverify.runs.framework_adapter import NUMPY_DTYPES
from qkverify.verification.checking import Cell, check, law_book, prepare


def test_git_ignores_the_folder(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    (store.ignored(tmp_path / ".qkverify") / "12345678.json").write_text("{}")
    done = subprocess.run(
        ["git", "status", "--short"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == ""


def test_the_oldest_counterexamples_go_first_with_their_scripts(tmp_path: Path) -> None:
    names = [f"{number:08x}" for number in range(12)]
    for age, name in enumerate(names):
        for ending in (".json", ".py"):
            path = tmp_path / f"{name}{ending}"
            path.write_text("")
            os.utime(path, (age, age))
    for other in ("bench.jsonl", "notes.json", "mine.py"):
        (tmp_path / other).write_text("")
        os.utime(tmp_path / other, (0, 0))
    store.forget_old(tmp_path, kept=5)
    assert {path.name for path in tmp_path.iterdir()} == {
        *(f"{name}{ending}" for name in names[-5:] for ending in (".json", ".py")), "bench.jsonl", "notes.json", "mine.py",
    }  # fmt: skip


def test_a_new_counterexample_makes_room_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def attention(query, key, value):  # type: ignore[no-untyped-def]
        return np.zeros((*query.shape[:3], value.shape[3]), query.dtype)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(store, "KEPT", 1)
    cell = Cell(describe(attention, arrays="numpy", dtypes=("float32",)), "cpu", "float32")
    laws = {law.name: law for law in law_book()}
    stored = [check(laws[name], prepare(cell), max_examples=5).counterexample
              for name in ("agrees_with_reference", "one_head_is_plain_attention")]  # fmt: skip
    first, last = (counterexample.replay for counterexample in stored if counterexample)
    assert first != last
    assert [path.stem for path in Path(".qkverify").glob("*.json")] == [last]


def test_few_counterexamples_all_stay(tmp_path: Path) -> None:
    (tmp_path / "12345678.json").write_text("")
    store.forget_old(tmp_path, store.KEPT)
    assert (tmp_path / "12345678.json").exists()


@pytest.mark.parametrize("dtype", NUMPY_DTYPES)
def test_arrays_of_every_dtype_come_back_as_they_were(dtype: str) -> None:
    array = np.arange(6).reshape(2, 3).astype(NUMPY_DTYPES[dtype])
    back = store.decode(store.encode(array))
    assert back.dtype == array.dtype
    assert back.tobytes() == array.tobytes()
    assert back.shape == array.shape
