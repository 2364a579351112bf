"""What `--help` adds to each command: a line short enough for the list of commands, and examples to copy."""

from __future__ import annotations

from typing import NamedTuple

import typer

WIDTH = 120  # columns that help takes at most, where the terminal has them
KEEP = "\b\n"  # click keeps the line ends of a paragraph that begins so


class CommandHelp(NamedTuple):
    """A command in the list of commands, and how it is called."""

    short: str
    examples: tuple[str, ...]


COMMANDS = {
    "verify": CommandHelp(
        "Check every law on a function or implementation.",
        (
            "qkverify verify mine.py:attention --profile quick",
            "qkverify verify torch.nn.functional:scaled_dot_product_attention --dtype float32",
            "qkverify verify mine.py:attention --layout BLHD --mask additive:BK --constants block_size=16",
            "qkverify verify numpy_tiled --law 'causal_*'",
            "qkverify verify --strict --junit verdicts.xml        # the targets of pyproject.toml, in CI",
        ),
    ),
    "list": CommandHelp(
        "List implementations, operations, laws or workloads.",
        ("qkverify list", "qkverify list operations", "qkverify list laws", "qkverify list workloads"),
    ),
    "bench": CommandHelp(
        "Time implementations on workloads.",
        (
            "qkverify bench numpy_tiled torch_sdpa-flash --workload gpt2-small --pass forward",
            "qkverify bench mine.py:attention torch_sdpa-math --workload mine.toml --budget 5m",
            "qkverify bench --results times.jsonl",
        ),
    ),
    "compare": CommandHelp(
        "Say which of two implementations, or two runs, is faster.",
        (
            "qkverify compare numpy_tiled numpy_textbook --workload 'transformer-base-*'",
            "qkverify compare new.jsonl main:times.jsonl --relative-to torch_sdpa-math --fail-on slower",
        ),
    ),
    "report": CommandHelp(
        "Write the report: a page and its Markdown summary.",
        (
            "qkverify report --run",
            "qkverify report --run --resume",
            "qkverify report reports/amd-epyc-2-cores",
        ),
    ),
    "new": CommandHelp(
        "Write the file of a new implementation.",
        ("qkverify new mine", "qkverify new mine --arrays torch --folder implementations"),
    ),
    "init": CommandHelp(
        "Set up qkverify in your own repository.",
        ("qkverify init", "qkverify init mykernel/attn.py:attention --dry-run"),
    ),
    "replay": CommandHelp("Check one stored counterexample again.", ("qkverify replay 12fa2db9",)),
    "profile": CommandHelp(
        "Show which conventions a function follows.",
        ("qkverify profile torch.nn.functional:scaled_dot_product_attention --dtype float32",),
    ),
    "power": CommandHelp(
        "Mutation testing: which planted bugs do the laws find?",
        ("qkverify power B007", "qkverify power --matrix --jobs 4 --results power.jsonl"),
    ),
    "doctor": CommandHelp(
        "Show what this machine can run, and why not the rest.",
        ("qkverify doctor", "qkverify doctor --probe"),
    ),
    "export": CommandHelp(
        "Write results for other tools: CSV, Parquet, JUnit, ...",
        (
            "qkverify export reports/amd-epyc-2-cores --output times.csv",
            "qkverify export reports/amd-epyc-2-cores --what verdicts --to markdown",
            "qkverify export --columns",
        ),
    ),
    "schema": CommandHelp(
        "Print the JSON schema of a results file.", ("qkverify schema > results.schema.json",)
    ),
}


def complete(app: typer.Typer) -> None:
    """Give every command of `app` its short line and its examples. Raises KeyError for a command that has none."""
    for command in app.registered_commands:
        name = command.name or str(getattr(command.callback, "__name__", ""))
        command.short_help = COMMANDS[name].short
        command.epilog = KEEP + "\n".join(["Examples:", *(f"  {line}" for line in COMMANDS[name].examples)])
