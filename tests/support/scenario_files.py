"""Scenarios of a test file, for a proof that runs them again over more ways: one body, not two."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from types import ModuleType

_TESTS = Path(__file__).resolve().parents[1]


@functools.cache
def scenarios(path: str) -> ModuleType:
    """The test file `path` (from tests/) as a module."""
    spec = importlib.util.spec_from_file_location("scenarios_of_" + Path(path).stem, _TESTS / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
