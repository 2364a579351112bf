"""From a failure to a sentence, a file, and a script.

This room may use `runs`, `strategies`, `results` and `probes`. It hands out stored counterexamples (`store`), the sentence after
"looks like" (`diagnosis`), and scripts that need no qkverify (`scripts`).
"""
