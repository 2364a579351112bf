"""Every sentence after "looks like" about what is planted, held against problems that the diagnosis has not seen.

    python -m tests.verification.sentences                  all mutants and controls, in one process; minutes
    python -m tests.verification.sentences B007 B041        those with one of these words in their name

Prints each sentence that a fresh problem contradicts (there should be none), and how many mutants have a sentence. Sentences
about what was watched (a call that writes into its argument) and about chance are counted apart: nothing could contradict them.
"""

from __future__ import annotations

import sys
import time

from qkverify.counterexamples.diagnosis import trial_of
from qkverify.counterexamples.failures import Failures
from qkverify.verification.checking import applicable, check, law_book, prepare
from qkverify.verification.mutation_testing import cell_of, planted

FIRST = ("agrees_with_reference", "vjp_agrees_with_reference", "log_sum_exp_is_right")  # these break first
SEED = 98765  # not that of the diagnosis
FAILED = 3  # laws of each mutant: a sentence is the same for most of the others


def failures_of(implementation, examples=25, failed=FAILED):
    """A run of the cell, and its first failures, settled."""
    cell, failures = cell_of(implementation), Failures()
    laws = applicable(law_book(), cell)
    for law in sorted(laws, key=lambda law: law.name not in FIRST and "dropout" not in law.name):
        check(law, prepare(cell), failures=failures, max_examples=examples, seed=1, database=None)
        if len(failures.of) == failed:
            break
    failures.settled([])
    return prepare(cell), failures


def contradicting(run, claim, seed=SEED):
    """The fresh problems that contradict a claim, and how many were tried."""
    trial = trial_of(run, seed=seed)
    trial.seconds = 60.0
    if claim.observed is not None:  # under other conventions than the run's
        trial.observe = lambda subject, aspect: claim.observed(subject)
    observed = trial.observations(claim.aspect)
    return [observation.subject for observation in observed if claim.contradicted(observation)], len(observed)


def main(words):
    start, counts = (
        time.perf_counter(),
        dict.fromkeys(("broken", "with a sentence", "true", "watched", "FALSE"), 0),
    )
    every = [implementation for folder in ("mutants", "controls") for implementation in planted(folder)]
    for implementation in every:
        if words and not any(word in implementation.name for word in words):
            continue
        run, failures = failures_of(implementation)
        claims = {f.claim.sentence: f.claim for f in failures.of.values() if f.claim is not None}
        counts["broken"] += bool(failures.of)
        counts["with a sentence"] += bool(claims)
        for sentence, claim in claims.items():
            against, tried = ([], 0) if claim.direct else contradicting(run, claim)
            kind = "watched" if claim.direct else "FALSE" if against else "true"
            counts[kind] += 1
            print(
                f"{kind:8} {implementation.name}: {sentence} ({tried})",
                *against[:2],
                sep="\n    ",
                flush=True,
            )
    print(
        *(f"{count} {kind}" for kind, count in counts.items()),
        f"{time.perf_counter() - start:.0f} s",
        sep=", ",
    )
    return counts["FALSE"]


if __name__ == "__main__":
    sys.exit(1 if main(sys.argv[1:]) else 0)
