"""The floors of the house: a file may include or import only from its own floor and from those below it.

Each checker is itself tested on a small offender first: a rule that cannot be broken is no rule.
"""

import ast
import re
import sys
from pathlib import PurePosixPath

import pytest
from sources import CPP, ROOT, files, relative

# Floor: the floors it may see besides itself.
BELOW = {
    "base": set(),
    "plan": {"base"},
    "device": {"base"},
    "io": {"base"},
    "memory": {"base", "plan", "device", "io"},
    "kernels": {"base", "plan", "device", "io", "memory"},
    "engine": {"base", "plan", "device", "io", "memory", "kernels"},
    "bindings": {"base", "plan", "device", "io", "memory", "kernels", "engine"},
    "fuzz": {"base", "plan", "io", "engine"},  # of tests alone
}
# Headers with one home: a pattern of the header's name, and one of the files that may include it.
HOMES = {
    r"pybind11/": r"csrc/bindings/",
    r"cuda|cub/|thrust/|nvtx3/|driver_types|cooperative_groups": r"csrc/device/cuda_|csrc/kernels/[^/]+\.cuh?$",
    r"liburing|linux/io_uring": r"csrc/io/",
    r"torch/|ATen/|c10/": r"(?!)",
}
# What a file of memsys may import at its top, besides the standard library; the rest is imported where it is used.
LIBRARY = {"memsys", "torch", "numpy", "psutil"}
# Folders that nothing in the library needs, and what they may import besides.
EXTRAS = {"cli": {"rich"}, "report": {"rich"}, "integrations": {"transformers", "torch_geometric"}}


def bad_includes(path: str, text: str) -> list[str]:
    """What is wrong with the #include lines of the file `path` (from the top of the repository)."""
    floor = PurePosixPath(path).parts[-2]
    seen = BELOW.get(floor, set()) | {floor}
    if path.startswith("tests/"):  # tests share headers of their own, by the same order
        seen |= {"csrc", *(f"csrc/{name}" for name in seen)}
    complaints = []
    for line, (quote, name) in enumerate_includes(text):
        if quote == '"' and PurePosixPath(name).parent.as_posix() not in seen:
            complaints.append(f"{path}:{line}: {floor} may not include {name}")
        for pattern, home in HOMES.items():
            if quote == "<" and re.match(pattern, name) and not re.match(home, path):
                complaints.append(f"{path}:{line}: <{name}> has no place here")
    return complaints


def enumerate_includes(text: str) -> list[tuple[int, tuple[str, str]]]:
    """(line, (opening quote, header)) of every #include."""
    found = [(line, re.match(r'\s*#\s*include\s*([<"])([^>"]+)', row)) for line, row in enumerate(text.splitlines(), 1)]
    return [(line, match.groups()) for line, match in found if match]


def bad_imports(path: str, text: str) -> list[str]:
    """What is wrong with the imports of a file of memsys."""
    folder = PurePosixPath(path).parts[1]
    tree = ast.parse(text)
    complaints = []
    for node in tree.body:
        for name in imported(node):
            top = name.split(".")[0]
            if top not in sys.stdlib_module_names | LIBRARY | EXTRAS.get(folder, set()):
                complaints.append(f"{path}:{node.lineno}: import {name} inside the function that needs it")
    for node in ast.walk(tree):
        if folder != "cli" and any(name.startswith("memsys.cli") for name in imported(node)):
            complaints.append(f"{path}:{node.lineno}: only the command line may import memsys.cli")
    return complaints


def imported(node: ast.AST) -> list[str]:
    """The full names a statement imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.level == 0:
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("csrc/base/a.h", '#include "plan/a.h"'),
        ("csrc/plan/a.cpp", '#include "device/device.h"'),
        ("csrc/io/a.cpp", '#include "plan/a.h"'),
        ("csrc/device/a.cpp", '#include "io/file.h"'),
        ("csrc/plan/a.cpp", '#include "a.h"'),
        ("csrc/engine/a.cpp", '#include "bindings/a.h"'),
        ("csrc/engine/a.cpp", "#include <pybind11/pybind11.h>"),
        ("csrc/device/host_device.cpp", "#  include <cuda_runtime.h>"),
        ("csrc/bindings/a.cpp", "#include <torch/extension.h>"),
        ("csrc/device/cuda_device.cpp", "#include <c10/util/Exception.h>"),
        ("csrc/engine/a.cpp", "#include <linux/io_uring.h>"),
        ("tests/csrc/plan/test_a.cpp", '#include "memory/arena.h"'),
        ("tests/csrc/plan/test_a.cpp", '#include "csrc/memory/fixture.h"'),
        ("csrc/plan/a.cpp", '#include "csrc/plan/a.h"'),
    ],
)
def test_a_bad_include_is_found(path: str, text: str) -> None:
    assert len(bad_includes(path, "// Why.\n" + text)) == 1


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("csrc/engine/a.cpp", '#include "plan/a.h"\n#include "engine/b.h"\n#include <vector>'),
        ("csrc/device/cuda_device.cpp", "#include <cuda_runtime.h>"),
        ("csrc/kernels/gather.cu", "#include <cuda_bf16.h>"),
        ("csrc/bindings/a.cpp", "#include <pybind11/pybind11.h>"),
        (
            "tests/csrc/memory/test_a.cpp",
            '#include "csrc/check.h"\n#include "csrc/memory/fixture.h"\n#include "memory/arena.h"',
        ),
    ],
)
def test_a_good_include_passes(path: str, text: str) -> None:
    assert bad_includes(path, text) == []


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("memsys/_budget.py", "import rich"),
        ("memsys/_budget.py", "from transformers import Trainer"),
        ("memsys/activations/a.py", "def f():\n    from memsys.cli import main"),
        ("memsys/activations/a.py", "from memsys import cli"),
        ("memsys/cli/a.py", "import pandas"),
    ],
)
def test_a_bad_import_is_found(path: str, text: str) -> None:
    assert len(bad_imports(path, text)) == 1


def test_a_good_import_passes() -> None:
    assert bad_imports("memsys/cli/a.py", "import os\nimport rich.table\nfrom memsys.cli import b") == []
    assert bad_imports("memsys/_budget.py", "import torch\ndef f():\n    import pandas") == []


@pytest.mark.parametrize("path", files(*CPP), ids=relative)
def test_includes(path) -> None:
    assert bad_includes(relative(path), path.read_text()) == []


@pytest.mark.parametrize("path", files(".py", under="memsys/"), ids=relative)
def test_imports(path) -> None:
    assert bad_imports(relative(path), path.read_text()) == []


def test_every_folder_of_csrc_is_a_floor() -> None:
    assert {path.name for path in (ROOT / "csrc").iterdir() if path.is_dir()} <= set(BELOW)
