"""Text of the code under test, made fit to print and to record: exception messages, names, docstrings, warnings, prints.

What is written by somebody else may hold terminal escapes, a right-to-left override, half of a surrogate pair, five
megabytes, or no text at all because its `__str__` raises. Here it becomes plain text that is safe wherever it goes: every
character that Python's `repr` would escape is escaped in the same way, and what is long is cut, with a count of what is left
out. It is done where such text enters a record, so that the terminal, pytest, scripts, JUnit and the pages need not think of
it; what each of them reads as its own markup (brackets of rich, tags, pipes of a table) it escapes itself.

Text that was made here once is not changed by a second time.
"""

from __future__ import annotations

from typing import Any

LINES, CHARACTERS = (
    10,
    500,
)  # of a message; what comes from a program may be a page, whose beginning says most


def escaped(text: str) -> str:
    r"""The text with `\x1b`, `\u202e` or `\udc80` for characters that do not print; line ends and tabs stay."""
    text = str.__str__(text).replace("\r\n", "\n")
    return text if text.isprintable() else "".join(map(_escaped, text))


def shown(value: Any, *, lines: int = LINES, characters: int = CHARACTERS) -> str:
    """Any object as text: escaped, without blanks at its ends, at most so many lines and characters long. Never raises."""
    return _cut(_text(value).replace("\r\n", "\n").strip(), lines, characters)


def shown_line(value: Any, *, characters: int = CHARACTERS) -> str:
    r"""As `shown`, on one line: a line end is written `\n`."""
    text = _text(value).replace("\r\n", "\n").strip()
    return _cut(text.replace("\n", "\\n").replace("\t", " "), 1, characters)


def of_error(error: BaseException) -> str:
    """ "ValueError: what it says", or the name of its class alone where it says nothing."""
    said = shown(error)
    return f"{type_name(error)}: {said}" if said else type_name(error)


def type_name(value: Any) -> str:
    """The name of an object's class."""
    return shown_line(type(value).__name__, characters=80)


def _cut(text: str, lines: int, characters: int) -> str:
    pieces = [_escaped(c) for c in text[: characters + 1]]
    if len(text) <= characters and sum(map(len, pieces)) <= characters and text.count("\n") < lines:
        return "".join(pieces)
    room, kept = characters - len(_left_out(len(text))), 0
    for piece in pieces:
        room -= len(piece)
        lines -= piece == "\n"
        if room < 0 or lines <= 0:
            break
        kept += 1
    return "".join(pieces[:kept]) + _left_out(len(text) - kept)


def _left_out(count: int) -> str:
    return f" ... {count:,} more character{'s' if count != 1 else ''}"


def _escaped(character: str) -> str:
    if character.isprintable() or character in "\n\t":
        return character
    return character.encode("unicode_escape").decode()


def _text(value: Any) -> str:
    """`str(value)` as a true string; what that raises is said instead."""
    try:
        return str.__str__(str(value))
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return f"<{type(value).__name__} without text: its __str__ raises {type(error).__name__}>"
