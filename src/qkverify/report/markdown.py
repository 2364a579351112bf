"""Tables in Markdown, with what would end a cell escaped."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; the first column is aligned left, and so are the others."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell_text(cell) for cell in line) + " |" for line in lines)


def cell_text(text: str) -> str:
    """Text that stays within its cell."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def code(text: str) -> str:
    """A name in code type, its fence longer than any run of backticks inside; empty stays empty."""
    if "`" not in text:
        return f"`{text}`" if text else ""
    fence = "`" * (1 + max(map(len, re.findall("`+", text))))
    return f"{fence} {text} {fence}"


def plain(text: str) -> str:
    """Text of somebody else's, such as a reason, of which nothing is read as markup."""
    return re.sub(r"[\\`*\[]", lambda match: f"\\{match[0]}", " ".join(text.split())).replace("<", "&lt;")


def block(text: str) -> str:
    """A fenced block, its fence longer than any run of backticks inside."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}\n{text.rstrip()}\n{fence}"
