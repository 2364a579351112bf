"""What the site has beside docs/*.md: the README, and the pages of the checkout that the documentation links to.

Links of a page are relative to its place in the checkout, so that they work where the repository is browsed. The site keeps those
places: README.md is its first page, and the pages of this folder stand under docs/. Only a link to a folder is changed: it leads
to the README there, which a browser of the repository shows by itself.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
FOLDER_LINK = re.compile(r"\]\(([^)\s:#]+/)\)")
LINKED = (  # patterns in the checkout
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "LICENSE",
    "reports/index.html",
    "reports/*/index.html",
    "reports/*/summary.md",
    "reports/findings/*/README.md",
    "reports/findings/*/reproduce.py",
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """mkdocs calls this with the files of docs/. Returns the site's files at their places in the checkout."""
    included = [
        file for file in files if not file.inclusion.is_excluded() and Path(file.src_uri).suffix != ".py"
    ]
    theirs = [
        file
        for file in included
        if file.abs_src_path is None or not Path(file.abs_src_path).is_relative_to(ROOT / "docs")
    ]
    pages = [path for path in (ROOT / "docs").rglob("*") if path.suffix in (".md", ".svg", ".png")]
    pages += [path for pattern in LINKED for path in ROOT.glob(pattern)]
    placed = [
        File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path))
        for path in sorted(pages)
    ]
    return Files([*theirs, *placed])


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """mkdocs calls this with the text of each page. Returns it with links to folders leading to their README.md."""
    here = ROOT / Path(page.file.src_uri).parent

    def to_readme(link: re.Match[str]) -> str:
        return f"]({link[1]}README.md)" if (here / link[1] / "README.md").is_file() else link[0]

    return FOLDER_LINK.sub(to_readme, markdown)
