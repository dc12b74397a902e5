"""What pip is told: the build needs no torch and no GPU, the command line exists, the types travel along."""

import importlib
import tomllib
from pathlib import Path

from built import needs_memsys
from sources import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_build_needs_no_torch() -> None:
    """One build serves every torch version, so the build must not see one."""
    assert not [name for name in PROJECT["build-system"]["requires"] if "torch" in name]
    for path in (ROOT / "setup.py", ROOT / "CMakeLists.txt"):
        assert "import torch" not in path.read_text()
        assert "find_package(Torch" not in path.read_text()


def test_the_build_needs_no_gpu() -> None:
    """CUDA is compiled where nvcc is, whether or not a GPU is visible; with a static runtime no driver is needed."""
    text = (ROOT / "CMakeLists.txt").read_text()
    assert "check_language(CUDA)" in text
    assert "CUDA::cudart_static" in text
    assert "nvidia-smi" not in text


def test_the_command_line_exists() -> None:
    module, _, function = PROJECT["project"]["scripts"]["memsys"].partition(":")
    needs_memsys()
    assert callable(getattr(importlib.import_module(module), function))


def test_the_types_travel() -> None:
    needs_memsys()
    assert (Path(importlib.import_module("memsys").__file__).parent / "py.typed").exists()
