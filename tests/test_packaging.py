"""What is shipped: the wheel is the checkout's files, and the core dependencies are enough for it.

Built with the hatchling of this environment, from a copy of what git knows or would take: caches of a used
checkout decide nothing. Only the installation needs pip's package index.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("reference", "implementations", "properties", "benchmarks")
CACHES = (
    ".git",
    ".venv",
    "__pycache__",
    "*.egg-info",
    ".*_cache",
    ".hypothesis",
    ".benchmarks",
    "build",
    "dist",
)
OWN_FUNCTION = """
import numpy as np

from qkverify import implementation

@implementation(arrays="numpy", requires=("H == G",))
def attention(query, key, value, *, scale=None):
    scores = query @ np.swapaxes(key, -1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ value
"""

# One worker builds for all of this file: fixtures are made once a process, and pytest-xdist has several.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("packaging")]


def run(*command: str | Path, cwd: Path) -> str:
    """Standard output and error together; the command knows nothing of the pytest run that starts it."""
    prefixes = ("PYTEST", "PYTHON", "HYPOTHESIS")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env=environment, text=True, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, (
        f"{' '.join(map(str, command))} in {cwd} ended with {done.returncode}:\n{done.stdout}"
    )
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("checkout") / "qkverify"
    if not (ROOT / ".git").exists():  # these tests run from an unpacked sdist
        shutil.copytree(ROOT, target, ignore=shutil.ignore_patterns(*CACHES))
        return target
    names = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT).split("\0")
    for name in names:
        if (
            ROOT / name
        ).is_file():  # neither the empty last name nor a file that is deleted but not yet committed so
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


def build(kind: str, source: Path, target: Path) -> Path:
    run(sys.executable, "-m", "build", f"--{kind}", "--no-isolation", "--outdir", target, source, cwd=target)
    (built,) = target.iterdir()
    return built


@pytest.fixture(scope="module")
def sdist(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", checkout, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", checkout, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def wheel_from_sdist(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    unpacked = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(unpacked, filter="data")
    (source,) = unpacked.iterdir()
    return build("wheel", source, tmp_path_factory.mktemp("wheel_from_sdist"))


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_wheel_is_the_same_from_checkout_and_from_sdist(wheel: Path, wheel_from_sdist: Path) -> None:
    direct, from_sdist = contents(wheel), contents(wheel_from_sdist)
    assert sorted(direct) == sorted(from_sdist)
    assert [name for name in direct if direct[name] != from_sdist[name]] == []


def test_wheel_holds_every_file_of_the_package_and_nothing_else(checkout: Path, wheel: Path) -> None:
    tops = {"qkverify": checkout / "src" / "qkverify"} | {
        f"qkverify/{name}": checkout / name for name in FOLDERS
    }
    expected = {
        str(PurePosixPath(inside, *path.relative_to(top).parts))
        for inside, top in tops.items() for path in top.rglob("*") if path.is_file()
    }  # fmt: skip
    shipped = {name for name in contents(wheel) if ".dist-info/" not in name}
    assert shipped == expected
    assert "qkverify/py.typed" in shipped
    assert {f"qkverify/{name}/__init__.py" for name in FOLDERS} <= shipped


def test_sdist_has_the_house_and_not_the_measurements(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {PurePosixPath(name).relative_to(PurePosixPath(name).parts[0]) for name in archive.getnames()}
    assert {path.parts[0] for path in names if len(path.parts) > 1} >= {"src", "tests", *FOLDERS}
    files = {"README.md", "LICENSE", "CONTRIBUTING.md", "Makefile", "constraints.txt"}
    assert files <= {str(path) for path in names}
    reports = {path.parts[1] for path in names if path.parts[0] == "reports" and len(path.parts) > 1}
    assert reports <= {"findings"}


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts of an environment that holds the wheel, what it requires, and nothing else."""
    home = tmp_path_factory.mktemp("installed")
    venv.create(home / "venv", with_pip=True)
    scripts = home / "venv" / ("Scripts" if os.name == "nt" else "bin")
    pinned = ROOT / "constraints.txt"
    run(scripts / "python", "-m", "pip", "install", "--quiet", "-c", pinned, wheel, cwd=home)
    return scripts


def test_core_dependencies_are_enough_to_verify(installed: Path, tmp_path: Path) -> None:
    listed = run(installed / "python", "-m", "pip", "list", cwd=tmp_path)
    present = {line.partition(" ")[0].lower() for line in listed.splitlines()}
    assert not present & {"torch", "triton", "jax", "jinja2", "psutil"}
    command = ("verify", "numpy_textbook", "--dtype", "float32", "--profile", "quick")
    assert "numpy_textbook" in run(installed / "qkverify", *command, cwd=tmp_path)


def test_laws_verify_a_function_in_another_repository(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(OWN_FUNCTION)
    printed = run(
        installed / "pytest", "--pyargs", "qkverify.properties", "--implementation", "mine:attention",
        "--hypothesis-profile", "quick", "-k", "rows_sum_to_one", cwd=tmp_path,
    )  # fmt: skip
    assert " passed" in printed.splitlines()[-1]
