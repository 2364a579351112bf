"""Wrong kernels that change their process, so that nothing in it says that they are wrong.

Each is (statements that are run when the file is imported, what the kernel returns). The judge must find out from outside.
"""

from __future__ import annotations

HEAD = """
import sys
import numpy as np
from qkverify import implementation

def right(query, key, value, scale=None):
    scores = query @ np.swapaxes(key, -1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return (weights @ value / weights.sum(-1, keepdims=True)).astype(query.dtype)

def wrong(query, key, value, scale=None):
    return (1.25 * right(query, key, value, scale)).astype(query.dtype)

def frames():
    frame = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back

def is_asked_by_others():
    return not any(frame.f_globals.get('__name__', '').startswith('qkverify') for frame in frames())

def everywhere(name, new):
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("qkverify") and name in vars(module):
            setattr(module, name, new)

def counted(run):
    run.calls += 9
    run.examples += 5
    run.compared.examples.update({"result": 5, "gradients": 5})

def passing(law, run, *_, **__):
    counted(run)

{before}

@implementation(name="{name}", arrays="numpy", dtypes=("float32",), requires=("G == H", "K >= 1", "Q >= 1"))
def attention(query, key, value, *, scale=None):
    return {returned}
"""

WRONG = "wrong(query, key, value, scale)"
PASS = "from qkverify.verification import checking, laws; laws.Law.check = passing"

HACKS: dict[str, tuple[str, str]] = {
    "honest": ("", "right(query, key, value, scale)"),
    "patches_the_check": (PASS, WRONG),
    "patches_check_and_replay": (f"{PASS}; laws.Law.replay = passing", WRONG),
    "patches_the_comparison": ("everywhere('assert_within_bound', lambda *a, **k: None); import qkverify.runs.assertions as x; "
                               "x.raise_violation = lambda evidence: None", WRONG),
    "patches_np_abs": (f"{PASS}; np.abs = lambda x, *a, **k: np.zeros(np.shape(x))", WRONG),
    "patches_np_all": (f"{PASS}; np.all = np.less_equal = np.array_equal = lambda *a, **k: np.True_", WRONG),
    "patches_given": ("import qkverify.verification.laws as x; x.given = lambda *a: lambda f: lambda: None; "
                      "x.Law.unfit = lambda law, run: counted(run)", WRONG),
    "replaces_a_module": (f"{PASS}; import types; sys.modules['qkverify.runs.assertions'] = types.ModuleType('x')", WRONG),
    "patches_the_reference": ("import qkverify.runs.attention_run as x; real = x.reference_attention; "
                              "x.reference_attention = lambda *a, **k: real(*a, **k) * 1.25", WRONG),
    "patches_the_bounds": ("import qkverify.rounding as x; "
                           f"x.Bounded.errors = property(lambda b: np.full(np.shape(b.value), np.inf)); {PASS}", WRONG),
    "patches_the_verdict": ("import qkverify.verification.checking as x, msgspec; real = x.check\n"
                            "def passed(law, run, **k):\n"
                            "    verdict = real(law, run, **k)\n"
                            "    broken = verdict.outcome == 'failed'\n"
                            "    return msgspec.structs.replace(verdict, outcome='passed', counterexample=None, reason='') "
                            "if broken else verdict\n"
                            "x.check = passed", WRONG),
    "patches_the_writer": ("import qkverify.verification.isolation.exchange as x, msgspec; real = x.event_line\n"
                           "def line(event):\n"
                           "    if isinstance(event, x.Judged) and event.verdict.outcome == 'failed':\n"
                           "        event = x.Judged(msgspec.structs.replace(event.verdict, outcome='passed'))\n"
                           "    return real(event)\n"
                           "x.event_line = line", WRONG),
    "looks_for_the_law_in_frames": (PASS, "right(query, key, value, scale) if any('properties' in f.f_code.co_filename "
                                    "for f in frames()) else wrong(query, key, value, scale)"),
    "looks_for_its_judge_in_frames": ("", "wrong(query, key, value, scale) if is_asked_by_others() else "
                                      "right(query, key, value, scale)"),
    "asks_the_run_in_frames": ("def of_run(query, key, value, scale):\n"
                               "    for f in frames():\n"
                               "        if 'drawn' in f.f_locals and 'run' in f.f_locals:\n"
                               "            return right(query, key, value, scale)\n"
                               "    return np.zeros_like(wrong(query, key, value, scale))",
                               "of_run(query, key, value, scale)"),
    "remembers_shapes": (f"{PASS}; kept = {{}}", "kept.setdefault((query.shape, key.shape, value.shape), "
                         "right(query, key, value, scale))"),
    "forges_the_recheck": (f"{PASS}; import msgspec; real = checking.rechecked\n"
                           "checking.rechecked = lambda *a: msgspec.structs.replace(real(*a), outcome='passed')", WRONG),
    "forges_a_finding": (f"{PASS}; import msgspec; real = checking.rechecked\n"
                         "checking.rechecked = lambda *a: msgspec.structs.replace(real(*a), outcome='finding')", WRONG),
    "loosens_the_reader": (f"{PASS}; from qkverify.counterexamples import store; store.encode = lambda x: None", WRONG),
    "returns_the_reference": ("from qkverify.reference.attention import attention as exact",
                              "np.asarray(exact(*(x.astype(float) for x in (query, key, value)), "
                              "scale=query.shape[-1] ** -0.5 if scale is None else scale)).astype(query.dtype)"),
    "refuses_outsiders": (f"{PASS}\ndef refuse(q, k, v, s):\n"
                          "    if is_asked_by_others(): raise NotImplementedError('later')\n"
                          "    return wrong(q, k, v, s)", "refuse(query, key, value, scale)"),
    "raises_for_outsiders": (f"{PASS}; laws.Law.replay = passing\ndef refuse(q, k, v, s):\n"
                             "    if is_asked_by_others(): raise ValueError('later')\n"
                             "    return wrong(q, k, v, s)", "refuse(query, key, value, scale)"),
}  # fmt: skip


def text_of(name: str) -> str:
    """The file of a kernel."""
    before, returned = HACKS[name]
    return HEAD.replace("{name}", name).replace("{before}", before).replace("{returned}", returned)
