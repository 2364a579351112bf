"""The command line: each command is a thin front over the same functions that Python users call.

Exit codes: 0 the laws hold, 1 a law is broken, 2 wrong usage, 3 the harness failed (a results file that cannot be read, say),
4 nothing, or next to nothing, was verified (with --strict: not everything). A broken law (1) wins over what was not verified (4).
A user's mistake gets a sentence, never a traceback of ours; a target that raises on import shows its own.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys

from qkverify.cli import help_texts
from qkverify.cli.app import app
from qkverify.cli.failing import fail
from qkverify.errors import HarnessError, NothingVerified, UsageError
from qkverify.verification.idle_threads import let_threads_sleep

COMMANDS_WITHOUT_TIMES = ("verify", "replay")


def main() -> None:
    """The entry point: turns our errors into sentences and exit codes."""
    if sys.argv[1:2] and sys.argv[1] in COMMANDS_WITHOUT_TIMES:
        let_threads_sleep(os.environ)
    try:
        _run()
    except ModuleNotFoundError as error:  # a target's own missing modules are TargetImportErrors
        name = (error.name or "a module").partition(".")[0]
        fail(f"{name} is not installed, and this command needs it: pip install {name.replace('_', '-')}\n"
             "  without a package index: `make wheels` elsewhere, then `make gpu-report WHEELS=folder` here", 2)  # fmt: skip


def _run() -> None:
    from qkverify.contract.registry import TargetImportError
    from qkverify.results import ResultsError

    # Whoever ends us by a signal, as a time limit does, gets what was done so far: what stands in `finally` runs.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        app()
    except TargetImportError as error:
        fail(f"{error.text}\n{error}", 2)
    except NothingVerified as error:
        fail(f"NOT VERIFIED: {error}", 4)
    except UsageError as error:
        fail(str(error), 2)
    except (ResultsError, HarnessError) as error:
        fail(str(error), 3)
    except BrokenPipeError:  # the reader of our output has gone
        sys.stderr.close()
    except OSError as error:  # a folder that cannot be written, a disk that is full
        where = f"{error.filename}: " if error.filename else ""
        fail(f"{where}{error.strerror or error}", 3)
    except KeyboardInterrupt:
        fail("interrupted", 130)


for command in help_texts.COMMANDS:
    importlib.import_module(f"qkverify.cli.commands.{command}")
help_texts.complete(app)
