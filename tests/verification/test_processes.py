"""Work in other processes: one that dies loses its own task and no other."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qkverify.verification.processes import each

DIES = ("__import__('os')._exit(1)",)


def test_a_process_that_dies_loses_its_own_task_alone():
    tasks = [("1 + 1",), DIES, ("2 + 2",), DIES, ("3 + 3",)]
    assert sorted(each(eval, tasks, 2)) == [(0, 2), (1, None), (2, 4), (3, None), (4, 6)]


def test_what_work_raises_is_raised_here():
    with pytest.raises(ZeroDivisionError):
        list(each(eval, [("1 / 0",)], 1))


def test_a_process_computes_with_one_thread_and_the_environment_is_as_before(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    tasks = [(f"__import__('os').environ['{name}']",) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")]
    assert sorted(each(eval, tasks, 1)) == [(0, "1"), (1, "1")]
    assert (os.environ["OMP_NUM_THREADS"], "MKL_NUM_THREADS" in os.environ) == ("2", False)


def test_after_a_death_the_others_still_work_side_by_side():
    """Alone, one after the other, three sleeps would take as long as all of them."""
    tasks = [DIES, *[("__import__('time').sleep(6)",)] * 4]
    start = time.perf_counter()
    assert len(list(each(eval, tasks, 4))) == 5
    assert time.perf_counter() - start < 4 * 6


def test_a_process_that_is_spent_is_replaced():
    tasks = [("__import__('os').getpid()",)] * 3
    kept = [pid for _, pid in each(eval, tasks, 1)]
    fresh = [pid for _, pid in each(eval, tasks, 1, spent=lambda pid: True)]
    assert (len(set(kept)), len(set(fresh))) == (1, 3)


def test_who_stops_listening_waits_for_nothing_that_has_not_begun(tmp_path):
    tasks = [(f"open({str(tmp_path / str(i))!r}, 'w').close()",) for i in range(50)]
    answers = each(eval, tasks, 1)
    next(answers)
    answers.close()
    assert len(list(tmp_path.iterdir())) < len(tasks)


def test_who_stops_listening_does_not_wait_for_what_is_at_work():
    answers = each(eval, [("1",), ("__import__('time').sleep(60)",)], 2)
    assert next(answers) == (0, 1)
    start = time.perf_counter()
    answers.close()
    assert time.perf_counter() - start < 30


PARENT = """
import sys
from qkverify.verification.processes import each
if __name__ == "__main__":
    code = "print(__import__('os').getpid(), flush=True) or __import__('time').sleep(60)"
    list(each(eval, [(code,)], 1))
"""


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="asks /proc what is alive")
def test_a_process_ends_with_a_parent_that_was_killed(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    parent = subprocess.Popen([sys.executable, str(tmp_path / "parent.py")], stdout=subprocess.PIPE, text=True,
                              env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))})  # fmt: skip
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.perf_counter() + 20
    while alive(worker) and time.perf_counter() < deadline:
        time.sleep(0.05)
    assert not alive(worker)


def alive(process: int) -> bool:
    """Whether it runs; one that ended and was fetched by nobody yet does not."""
    try:
        return "Z" not in Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
