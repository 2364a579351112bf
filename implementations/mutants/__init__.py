"""Bugs that were reported in public threads, planted again: each is right but for one visible line.

They measure the laws: a bug that no law sees is a hole in the suite. They are never collected in a user's
run.

One file per family. A mutant is the docstring of one function (what is wrong), the line that is wrong, and
beside it, after `# right:`, what should be there. The rest is `correct/`: attention in steps, of which the
function replaces one. `threads` are the public reports; `evidence` says how much of the mechanism they state:
"stated", "partly", or "inferred", which must not be cited as that library's cause. A mutant without a thread
is a neighbour of one that has. What kills a mutant is measured, not written here.

A mutant declares the semantics of the correct code: that is what it claims, and what it is judged by.
"""
