"""`make docs`: the documentation becomes a site without a warning, complete, and whole without a network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[1]
LACKING = [name for name in ("mkdocs", "material", "mkdocstrings") if not find_spec(name)]
pytestmark = [
    pytest.mark.skipif(
        bool(LACKING), reason=f"needs {', '.join(LACKING)}: pip install -e '.[docs]' in the checkout"
    ),
    pytest.mark.skipif(
        not (ROOT / "reports" / "index.html").is_file(),
        reason="a source distribution has no reports to link to",
    ),
    pytest.mark.xdist_group("site"),  # built once
]
PUBLIC = (
    "verify",
    "implementation",
    "law",
    "problems",
    "Bounded",
    "Precision",
    "assert_within_bound",
    "Verdict",
)


class Addresses(HTMLParser):
    """What a page loads by itself, where its links lead, and which places in it a link can name."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.places: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self.places |= {given[name] for name in ("id", "name") if name in given}
        if tag in ("a", "area"):
            self.links += [given["href"]] if "href" in given else []
        elif tag in ("script", "img", "iframe", "source", "link", "object", "embed", "video", "audio"):
            self.loaded += [given[name] for name in ("src", "href", "srcset", "data") if name in given]


def build(folder: Path, *, config: Path = ROOT / "mkdocs.yml") -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "NO_MKDOCS_2_WARNING": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "http_proxy": "http://127.0.0.1:9",  # whoever asks another host is refused
        "https_proxy": "http://127.0.0.1:9",
    }
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--config-file",
        str(config),
        "--site-dir",
        str(folder),
    ]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(folder)
    assert done.returncode == 0, done.stderr
    return folder


def pages(site: Path) -> Iterator[tuple[Path, Addresses]]:
    """The pages that mkdocs made; those of reports are tested elsewhere."""
    for page in sorted(site.rglob("*.html")):
        if not (
            page.is_relative_to(site / "reports")
            and page.name == "index.html"
            and "findings" not in page.parts
        ):
            yield page, Addresses(page.read_text(encoding="utf-8"))


def test_it_builds_without_a_warning_and_has_every_page(site: Path) -> None:
    made = {page.relative_to(site).as_posix() for page, _ in pages(site)}
    assert {f"docs/{page.stem}.html" for page in (ROOT / "docs").glob("*.md")} <= made
    assert {"index.html", "CONTRIBUTING.html", "reports/amd-epyc-2-cores/summary.html"} <= made
    assert not list(site.rglob("*.py[co]"))
    assert not (site / "docs" / "generate.py").exists()


def test_nothing_is_loaded_from_another_host(site: Path) -> None:
    for page, addresses in pages(site):
        assert addresses.loaded
        assert [address for address in addresses.loaded if re.match(r"(https?:)?//", address)] == [], page
    for sheet in site.rglob("*.css"):
        assert (
            re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", sheet.read_text(encoding="utf-8")) == []
        ), sheet


def test_links_lead_to_a_page_and_to_a_place_on_it(site: Path) -> None:
    known = dict(pages(site))
    count = 0
    for page, addresses in known.items():
        if page.name == "404.html":  # its links count from the root of a server
            continue
        for link in addresses.links:
            if re.match(r"[a-z]+:", link):
                continue
            path, _, place = unquote(link).partition("#")
            target = (page.parent / path).resolve() if path not in ("", ".") else page
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), f"{page.relative_to(site)}: {link}"
            if place and target in known:
                assert place in known[target].places, f"{page.relative_to(site)}: {link}"
            count += 1
    assert count > 200


def test_the_interface_is_described(site: Path) -> None:
    api = Addresses((site / "docs" / "api.html").read_text(encoding="utf-8"))
    described = {place.rpartition(".")[2] for place in api.places}
    assert set(PUBLIC) <= described


def test_every_public_name_is_on_the_page_of_the_interface() -> None:
    import qkverify

    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert {name for name in qkverify.__all__ if not re.search(rf"\b{name}\b", text)} == set()


def test_a_warning_is_an_error(tmp_path: Path) -> None:
    """A link to a page that does not exist ends the build."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("[nowhere](nowhere.md)\n", encoding="utf-8")
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    kept = text[: text.index("nav:")] + text[text.index("validation:") :]
    (tmp_path / "mkdocs.yml").write_text(kept, encoding="utf-8")
    done = build(tmp_path / "site", config=tmp_path / "mkdocs.yml")
    assert done.returncode != 0
    assert "nowhere.md" in done.stderr
