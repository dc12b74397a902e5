"""The links of this machine are measured through the engine itself, once, and are worth planning with."""

from __future__ import annotations

import pytest
import torch
from built import needs_memsys

needs_memsys()

from memsys.activations import calibrate  # noqa: E402


@pytest.mark.slow
def test_the_file_link_is_measured_once(tmp_path, monkeypatch):
    monkeypatch.setattr(calibrate, "_measured", {})
    found = calibrate.measured_hardware(torch.device("cpu"), str(tmp_path), 1 << 20)
    assert found.host is None and found.window_bytes == 1 << 20
    assert found.file.out_rate > 1e6 and found.file.in_rate > 1e6
    assert 0 <= found.file.slowdown <= calibrate._MOST_SLOWDOWN
    monkeypatch.setattr(calibrate, "_measure_file", None)  # would fail
    assert calibrate.measured_hardware(torch.device("cpu"), str(tmp_path), 2 << 20).file == found.file
