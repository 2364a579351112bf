"""Correct attention by different algorithms: what no law may accuse.

A law that accuses one of these is wrong, or its bound is. They are never collected in a user's run. Each offers every option of
the contract, but those of `stored_parts` the scale alone. Masks, bias and (mostly) scores are the shared ones of
`mutants/correct`; each file says what it does differently from there on.
"""
