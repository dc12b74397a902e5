"""One run of a script, in a process of its own, as `python script.py` would run it, with every gradient recorded.

Started by runs.py with one argument, a Run as JSON, and the script's own arguments after it.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from typing import Any

from memsys.cli.script.gradients import Enough, GradientRecord, Place
from memsys.cli.script.models import Models
from memsys.cli.script.modes import Uses, offload_each, switch_off


def main(argv: list[str]) -> None:
    """argv: the Run, the script's path, its arguments. Errors of the script leave by themselves."""
    run: dict[str, Any] = json.loads(argv[0])
    script, *arguments = argv[1:]
    uses = Uses()
    uses.watch()
    if run["mode"] == "plain":
        switch_off(uses)
    models = Models(offload_each(run["options"])) if run["mode"] == "moved" else Models()
    models.watch()
    record = GradientRecord(
        run["record"], models, kept_path=run["kept"], expected=run["expected"],
        keep=Place(*run["keep"]) if run["keep"] else None, step_limit=run["step_limit"],
    )  # fmt: skip
    record.attach()
    try:
        run_script(script, arguments)
    except Enough:
        pass
    except SystemExit as end:
        if end.code not in (None, 0):
            raise
    record.write("end", models=models.class_names, **uses.facts())


def run_script(script: str, arguments: list[str]) -> None:
    sys.argv = [script, *arguments]
    sys.path.insert(0, os.path.dirname(os.path.abspath(script)))
    runpy.run_path(script, run_name="__main__")
