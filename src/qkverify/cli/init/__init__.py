"""qkverify in somebody else's repository: what its owner selects, adds and already knows, and the files that say so.

`settings`        `[tool.qkverify]` of a pyproject.toml
`selection`       the laws of a run: `--law`, `--skip`, and files of one's own
`known_failures`  failures that are known, each with its reason, from a TOML file
`candidates`      functions that look like attention, found by reading source text
`init`            `qkverify init`: the files to begin with, from `templates/`
"""
