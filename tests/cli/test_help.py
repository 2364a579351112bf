"""`--help`: complete at 80 columns, with examples that the commands understand."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from qkverify.cli import help_texts
from qkverify.cli.main import app

GROUP: Any = typer.main.get_command(app)  # click's group, which has no type here
COMMANDS: dict[str, Any] = GROUP.commands
EXAMPLES = [(name, line) for name, command in help_texts.COMMANDS.items() for line in command.examples]


def help_of(*words: str) -> str:
    done = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"})
    assert done.exit_code == 0, done.output
    return done.output


def test_every_command_has_a_short_line_and_examples() -> None:
    assert set(help_texts.COMMANDS) == set(COMMANDS)


def test_the_list_of_commands_is_not_cut() -> None:
    said = help_of()
    for name, command in help_texts.COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(command.short)}$", said, re.MULTILINE), said


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_shows_its_examples_as_they_are_typed(name: str) -> None:
    said = help_of(name)
    for line in help_texts.COMMANDS[name].examples:
        assert f"\n    {line}\n" in said + "\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_no_option_shows_the_name_of_a_python_type(name: str) -> None:
    """ "--law LAW", and not "--law <list[str]>"."""
    assert not [line for line in help_of(name).splitlines() if re.match(r"  --[\w-]+ <", line)]


@pytest.mark.parametrize(("name", "line"), EXAMPLES)
def test_an_example_is_understood(name: str, line: str) -> None:
    program, command, *words = shlex.split(line.partition(" > ")[0], comments=True)
    assert (program, command) == ("qkverify", name)
    COMMANDS[name].make_context(name, words)  # raises for an unknown option, or a lacking argument
