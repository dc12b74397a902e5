"""Is the package built and installed, so that a test of it can run?"""

import importlib.util
import os

import pytest

REMEDY = "memsys._C is not built: pip install -e ."


def needs_memsys() -> None:
    """Skips the test, with the reason, where memsys cannot be imported; in CI that is a failure."""
    if importlib.util.find_spec("memsys") is None or importlib.util.find_spec("memsys._C") is None:
        if os.environ.get("CI"):
            pytest.fail(REMEDY)
        pytest.skip(REMEDY)
