"""A machine with torch and without some of our dependencies: a sentence, a folder of wheels, and results without a page."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ABSENT = ("msgspec", "ml_dtypes", "jinja2", "markupsafe")

# Loaded by every Python that finds it on its path: hides what is installed, not what stands elsewhere.
HIDING = f"""
import sys
from importlib.machinery import PathFinder

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name not in {ABSENT!r}:
            return None
        found = PathFinder.find_spec(name, [place for place in sys.path if "site-packages" not in place])
        if found is None:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
        return found

sys.meta_path.insert(0, NotInstalled())
"""


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """The environment of such a machine, which has no GPU either."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(HIDING)
    return {**os.environ, "PYTHONPATH": f"{tmp_path / 'site'}", "CUDA_VISIBLE_DEVICES": ""}


def wheel(name: str, folder: Path) -> None:
    """The installed distribution as the zip file that it came as."""
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-0-py3-none-any.whl", "w") as archive:
        for file in metadata.files(name) or ():
            if ".." not in file.parts and "__pycache__" not in file.parts:
                archive.write(str(file.locate()), str(file))


def run(*command: str, environment: dict[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the target needs of a checkout; its build folder is not shared with the real one."""
    target = tmp_path / "checkout"
    for name in ("src", "reference", "implementations", "properties", "benchmarks"):
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy2(ROOT / name, target / name)
    return target


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_wheels_in_a_folder_take_the_place_of_an_installation(
    bare: dict[str, str], checkout: Path, tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    make = ("make", "gpu-report", f"PYTHON={sys.executable}")
    without = run(*make, environment=bare, cwd=checkout)
    assert without.returncode != 0
    assert "is not installed, and this command needs it: pip install" in without.stderr
    assert "Traceback" not in without.stderr
    for name in ABSENT:
        wheel(name, tmp_path / "wheels")
    more = (f"WHEELS={tmp_path / 'wheels'}", "LIMIT=300", f"REPORTS={tmp_path / 'elsewhere'}")
    given = run(*make, *more, environment=bare, cwd=checkout)
    assert (
        "nothing to verify on cuda: no CUDA device" in given.stderr
    )  # all imported; the GPU is what lacks now
    assert not (checkout / "reports").exists()


# A run whose measuring takes no time: only what becomes of its results is asked.
WITHOUT_JINJA = """
import sys
sys.modules["jinja2"] = None
from qkverify import results
from qkverify.cli import full_run

def record(path, **facts):
    with results.Writer(path) as writer:
        writer.append(full_run.run_start("quick"))
        writer.append(results.Verdict(law="a_law", family="softmax", sentence="It holds.", exact=False, implementation="mine",
                                      device="cpu", dtype="float32", outcome="passed", examples=5, margin=0.25))

full_run.record_everything = record
from qkverify.cli.main import main
sys.argv = ["qkverify", "report", *sys.argv[1:]]
main()
"""


def test_without_jinja2_a_run_keeps_its_results_and_says_how_to_render_them(tmp_path: Path) -> None:
    done = run(sys.executable, "-c", WITHOUT_JINJA, "here", "--run", environment={**os.environ}, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "no page: a report needs jinja2" in done.stdout
    assert "where it is installed: qkverify report here" in done.stdout
    assert "0.25" in done.stdout
    again = run(sys.executable, "-c", WITHOUT_JINJA, "here", environment={**os.environ}, cwd=tmp_path)
    assert again.returncode == 2  # a page was asked for, and nothing else
    pytest.importorskip("jinja2")
    rendered = run(
        sys.executable, "-m", "qkverify.cli", "report", "here", environment={**os.environ}, cwd=tmp_path
    )
    assert rendered.returncode == 0, rendered.stderr
    assert (tmp_path / "here" / "index.html").is_file()


# A run that is ended while it measures; what it has by then is written where it stops, as timings are.
ENDED = (
    WITHOUT_JINJA.replace('sys.modules["jinja2"] = None\n', "")
    .replace(
        "    with results.Writer(path) as writer:",
        """
    import time
    with results.Writer(path) as writer:
        try:
            print("measuring", flush=True)
            time.sleep(60)
        finally:""",
    )
    .replace("        writer.append", "            writer.append")
    .replace(" " * 38, " " * 42)
)


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_ended_keeps_and_draws_what_it_has(by: signal.Signals, tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    command = [sys.executable, "-c", ENDED, "here", "--run"]
    started = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert started.stdout is not None
    assert started.stdout.readline() == "measuring\n"
    started.send_signal(by)
    said, errors = started.communicate(timeout=60)
    assert started.returncode == 130, errors
    assert "interrupted: the page shows what was done by then" in errors
    assert "0.25" in said
    assert (tmp_path / "here" / "index.html").is_file()
