"""Kernels that are right until every value is the same number, and then do harm: to their process, or to the judge.

Each is (statements, what its verdict says). `None` says that its law holds all the same: the harm is the kernel's own affair.
"""

from __future__ import annotations

HEAD = '''
import atexit, ctypes, decimal, faulthandler, fcntl, os, signal, subprocess, sys, tempfile, threading, time, warnings
import numpy as np
from qkverify import implementation

class Odd(ValueError):
    def __str__(self):
        raise RuntimeError("no text")
    __repr__ = __str__

class Stop(BaseException):
    pass

class Result:
    """Looks like an array, and never says of which shape."""
    ndim, dtype = 4, np.dtype("float32")
    @property
    def shape(self):
        while True:
            pass

def right(query, key, value, scale=None):
    scores = query @ np.swapaxes(key, -1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return (weights @ value / weights.sum(-1, keepdims=True)).astype(query.dtype)

def deeper(n):
    return deeper(n + 1) + 1

@implementation(name="{name}", arrays="numpy", dtypes=("float32",), requires=("G == H", "K >= 1"))
def attention(query, key, value, *, scale=None):
    if value.shape[2] > 1 and (value == value.flat[0]).all():
        {harm}
    return right(query, key, value, scale)
'''

KILLED, ENDED, LATE = (
    "its process was killed by {}",
    "its process ended with exit code {}",
    "a call did not return within 2 s",
)

KERNELS: dict[str, tuple[str, str | None]] = {
    "good": ("pass", None),
    # It ends its process.
    "exits_0": ("os._exit(0)", ENDED.format(0)),
    "exits_3": ("os._exit(3)", ENDED.format(3)),
    "aborts": ("os.abort()", KILLED.format("SIGABRT")),
    "reads_null": ("ctypes.string_at(0)", KILLED.format("SIGSEGV")),
    "kills_itself": ("os.kill(os.getpid(), signal.SIGKILL)", KILLED.format("SIGKILL")),
    "terminates_itself": ("os.kill(os.getpid(), signal.SIGTERM)", KILLED.format("SIGTERM")),
    "kills_its_group": ("os.killpg(0, signal.SIGKILL)", KILLED.format("SIGKILL")),
    "exits_in_c": ("ctypes.CDLL(None).exit(0)", ENDED.format(0)),
    "exits_in_a_thread": ("threading.Thread(target=os._exit, args=(0,)).start(); time.sleep(9)", ENDED.format(0)),
    # It raises what is no Exception, or what cannot be printed.
    "sys_exit": ("sys.exit()", "SystemExit"),
    "sys_exit_0": ("sys.exit(0)", "SystemExit"),
    "interrupts": ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    "interrupts_itself": ("os.kill(os.getpid(), signal.SIGINT); time.sleep(1)", "KeyboardInterrupt"),
    "interrupts_by_c": ("signal.raise_signal(signal.SIGINT)", "KeyboardInterrupt"),
    "base_exception": ("raise Stop('stop')", "Stop"),
    "generator_exit": ("raise GeneratorExit", "GeneratorExit"),
    "without_text": ("raise Odd()", "Odd"),
    "long_text": ("raise ValueError('x' * 5_000_000)", "ValueError"),
    "recursion": ("deeper(0)", "RecursionError"),
    "memory_error": ("np.empty(2**50)", "Unable to allocate"),
    # It does not come back, once.
    "stalls_once": ("os.path.exists('stalled') or (open('stalled', 'w').close(), time.sleep(9))", None),
    # It does not come back.
    "loops": ("while True: pass", LATE),
    "sleeps": ("time.sleep(10**6)", LATE),
    "loops_in_c": ("sum(iter(int, 1))", LATE),
    "deadlock": ("lock = threading.Lock(); lock.acquire(); lock.acquire()", LATE),
    "stops_itself": ("os.kill(os.getpid(), signal.SIGSTOP)", LATE),
    "waits_for_input": ("ctypes.CDLL(None).pause()", LATE),
    "loops_in_shape": ("return Result()", LATE),
    "swallows": ("\n        while True:\n            try: time.sleep(10**6)\n            except BaseException: pass", LATE),
    # It takes all memory.
    "allocates": ("\n        kept = []\n        while True: kept.append(np.ones(2**24))", "out of memory"),
    # It leaves something behind.
    "forks": ("os.fork()", "a call came back in two processes"),
    "leaves_a_child": ("subprocess.Popen(['sleep', '987'])", "left another process behind: sleep 987"),
    "leaves_a_daemon": ("subprocess.Popen(['sleep', '987'], start_new_session=True)", "left another process behind: sleep 987"),
    "leaves_a_thread": ("threading.Thread(target=time.sleep, args=(987,)).start()", "its process did not end"),
    "hangs_at_exit": ("atexit.register(time.sleep, 987)", "its process did not end"),
    "exits_at_exit": ("atexit.register(os._exit, 0)", "exit code 0 after the last call"),
    # It touches what the judge uses.
    "closes_streams": ("os.close(1); os.close(2)", None),
    "closes_everything": ("os.closerange(0, 256)", "its process"),
    "writes_megabytes": ("os.write(1, b'x' * 2**24); print('y' * 2**22)", None),
    "writes_to_pipes": ("[os.write(int(n), b'{}\\n') for n in os.listdir('/proc/self/fd') if "
                        "os.path.exists(f'/proc/self/fd/{n}') and 'pipe' in os.readlink(f'/proc/self/fd/{n}') and "
                        "fcntl.fcntl(int(n), fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY]", None),
    "ignores_signals": ("[signal.signal(n, signal.SIG_IGN) for n in (signal.SIGINT, signal.SIGTERM)]; time.sleep(10**6)", LATE),
    "leaves_the_group": ("os.setpgid(0, 0) if os.getpgid(0) != os.getpid() else None; time.sleep(10**6)", LATE),
    "removes_its_folder": ("f = tempfile.mkdtemp(); os.chdir(f); os.rmdir(f)", "a call changed the working folder"),
    "changes_folder": ("os.chdir('/')", "a call changed the working folder"),
    "sets_a_variable": ("os.environ['QKVERIFY_SEED'] = 'x'", "the environment variable QKVERIFY_SEED from 7 to x"),
    "sets_numpy_errors": ("np.seterr(all='ignore')", "NumPy's error handling of divide from warn to ignore"),
    "sets_decimal": ("decimal.getcontext().prec = 3", "decimal's prec from 28 to 3"),
    "sets_a_handler": ("signal.signal(signal.SIGTERM, lambda *_: None)", "the handler of SIGTERM"),
    "sets_the_path": ("sys.path.insert(0, '/nowhere')", "the import path"),
    "disables_faulthandler": ("faulthandler.disable(); ctypes.string_at(0)", KILLED.format("SIGSEGV")),
}  # fmt: skip


def text_of(name: str) -> str:
    """The file of a kernel."""
    return HEAD.replace("{name}", name).replace("{harm}", KERNELS[name][0])
