"""Plan files as somebody would make them who knows how: changed, and signed again."""

from __future__ import annotations

import json
from pathlib import Path

from memsys.planning import document


def signed(format_: str, body: object) -> str:
    """The text of a file with this body, whose digest is right."""
    return json.dumps({"format": format_, "sha256": document._digest(format_, body), "body": body})


def rewrite(path: Path, change: dict[str, object]) -> None:
    """Exchanges fields of a saved file's body."""
    found = json.loads(path.read_text())
    path.write_text(signed(found["format"], {**found["body"], **change}))
