"""What every test and benchmark needs: a reason for a skipped GPU test, and one set of hypothesis examples in CI."""

import os

import hypothesis
import pytest

# No deadline: the machines that run these tests are shared, and a slow example is not a wrong one.
hypothesis.settings.register_profile("default", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what is marked gpu where there is none, saying what is missing."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    reason = missing_gpu() if marked else None
    for item in marked:
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))


def missing_gpu() -> str | None:
    """Why no GPU test can run here; None if they can."""
    import torch

    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if not torch.cuda.is_available():
        return "torch finds no NVIDIA GPU or driver"
    return None
