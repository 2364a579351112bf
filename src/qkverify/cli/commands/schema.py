"""`qkverify schema`."""

from __future__ import annotations

from qkverify.cli.app import app


@app.command()
def schema() -> None:
    """Print the JSON schema of a results file, whose lines are one record each."""
    import json

    from qkverify.results import json_schema

    print(json.dumps(json_schema(), indent=1, ensure_ascii=False))
