"""A model with and without rows, for the tests of graphs and of what changes under them."""

from __future__ import annotations

import pytest
from built import needs_memsys
from torch import nn

needs_memsys()

from gradients import assert_idle  # noqa: E402
from row_models import Block, Stack, divided, inputs, made, step  # noqa: E402


@pytest.fixture
def plain() -> nn.Module:
    return made(lambda: Stack(Block(), Block(), Block()))


@pytest.fixture
def model(plain, tmp_path):
    found, policy = divided(plain, tmp_path, 0.3)
    step(found, inputs())
    found.policy_of_test = policy
    yield found
    assert_idle(found)
