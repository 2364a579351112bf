"""Child processes that answer questions: one JSON line asked on their input, one answered on their output.

A child is `python -m MODULE`, a fresh interpreter with this one's path, whose module calls `serve`. What the
code under test prints goes to the standard error instead, and never among the answers.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Self

PING = b"ping "


class Died(Exception):
    """The child ended without an answer; the text says how."""


class Child:
    """A process that is started by the first question and ended by `close`, for use in a `with`.

    Variables of its `environment` hold where the user's own does not set them.
    """

    def __init__(self, module: str, **environment: str) -> None:
        self._module, self._environment = module, environment
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def ask(self, question: bytes) -> bytes:
        """The answer to one line. Raises Died where the process ends over it; the next question starts another."""
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(question + b"\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except OSError:
            answer = b""
        if not answer.endswith(b"\n"):
            self._process = None
            raise Died(f"its process ended with status {process.wait()}")
        self._check_listening(process)
        return answer

    def _check_listening(self, process: subprocess.Popen[bytes]) -> None:
        """Raises Died where the process that answered does not go on listening, or had answered twice: the code under test can
        write to the same pipe, and does not know what is asked afterwards."""
        assert process.stdin is not None
        assert process.stdout is not None
        ping, pong = PING + secrets.token_hex().encode() + b"\n", b""
        with contextlib.suppress(OSError):
            process.stdin.write(ping)
            process.stdin.flush()
            pong = process.stdout.readline()
        if pong == ping:
            return
        self._process = None
        if pong:
            process.kill()
            process.communicate()
            raise Died("its process answered more than once, which is not believed")
        raise Died(f"its process ended with status {process.wait()} over its answer, which is not believed")

    def close(self) -> None:
        """End of input, which ends the process."""
        process, self._process = self._process, None
        if process is not None:
            process.communicate()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            paths = os.pathsep.join(path for path in sys.path if path)
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    self._module,
                ],  # -P: a file of the current folder is no module of ours
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**self._environment, **os.environ, "PYTHONPATH": paths},
            )
        return self._process


def serve(answer: Callable[[bytes], bytes]) -> None:
    """Answer every line of standard input until it ends; a ping is its own answer."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    for line in sys.stdin.buffer:
        answers.write(line if line.startswith(PING) else answer(line) + b"\n")
        answers.flush()
