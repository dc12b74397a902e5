"""Names that have one home, or none: threads, torch's private parts, raw addresses, words on how this was made."""

import ast
import re

import pytest
from sources import CPP, files, relative, strip_cpp

# Asynchrony lives in the executor alone, so that one seed is one schedule.
ASYNCHRONY = re.compile(
    r"\bstd::j?thread\b(?!::)|\bsleep_(?:for|until)\b|\bcondition_variable|\bu?sleep\(|\bnanosleep\b|\bpthread_create\b"
    r"|\bstd::async\b|\bcudaLaunchHostFunc\b|\bcudaStreamAddCallback\b"
)
EXECUTOR = re.compile(r"csrc/base/\w*executor\w*\.(cpp|h)$")
# torch's private names and a tensor's raw address stay behind one file, those of its allocator behind another.
TORCH_FILES = {"memsys/_tensor.py", "memsys/_cuda_memory.py"}
ADDRESSES = {"data_ptr", "untyped_storage"}
# Put together from parts, so that this file does not offend against itself.
FOREIGN = re.compile(
    "|".join(
        [
            "anthro" + "pic",
            "clau" + "de",
            r"chat" + "gpt",
            r"\bCE" + r"O\b",
            "work" + "place",
            r"\.lib" + "rary/",
            r"(?<![\w.])/wo" + r"rk/",
            "/opt/" + "(wheels|pypi)",
            r"\b(?-i:A" + r"I)\b",
            r"\bsub-?" + r"agents?\b",
            r"\bissue" + r" #?\d{1,2}\b",
            "langu" + r"age model(?! that)\b.*\bwrote",
        ]
    ),
    re.IGNORECASE,
)


def asynchrony(path: str, text: str) -> list[str]:
    """Threads, sleeps and condition variables outside the executor, and host callbacks anywhere."""
    if EXECUTOR.search(path):
        return []
    rows = enumerate(strip_cpp(text).splitlines(), 1)
    return [f"{path}:{line}: {found.group()}" for line, row in rows if (found := ASYNCHRONY.search(row))]


def private_torch(text: str) -> list[str]:
    """Uses of torch's private names and of tensors' addresses in Python."""
    found = []
    for node in ast.walk(ast.parse(text)):
        names = torch_names(node)
        found += [f"{node.lineno}: {name}" for name in names if any(is_private(part) for part in name.split("."))]
        if isinstance(node, ast.Attribute) and node.attr in ADDRESSES:
            found.append(f"{node.lineno}: .{node.attr}")
    return found


def torch_names(node: ast.AST) -> list[str]:
    """The dotted names below torch that a node imports or spells."""
    names = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.level == 0:
        names = [f"{node.module}.{alias.name}" for alias in node.names]
    elif isinstance(node, ast.Attribute):
        names = [ast.unparse(node)]
    return [name for name in names if name.startswith("torch.")]


def is_private(part: str) -> bool:
    return part.startswith("_") and not part.startswith("__")


def foreign_words(text: str) -> list[str]:
    """Words that speak of how the project is made rather than of the project."""
    rows = enumerate(text.splitlines(), 1)
    return [f"{line}: {found.group()}" for line, row in rows if (found := FOREIGN.search(row))]


@pytest.mark.parametrize(
    "text",
    [
        "std::thread t;",
        "std::jthread t;",
        "std::this_thread::sleep_for(1ms);",
        "std::condition_variable_any c;",
        "usleep(1);",
    ],
)
def test_asynchrony_is_found(text: str) -> None:
    assert asynchrony("csrc/io/a.cpp", text)
    assert not asynchrony("csrc/base/threaded_executor.cpp", text)
    assert not asynchrony("csrc/io/a.cpp", f"// {text}\nstd::mutex m;\nint n = std::thread::hardware_concurrency();")


@pytest.mark.parametrize(
    "text",
    [
        "torch._C._functions()",
        "from torch._subclasses import FakeTensor",
        "import torch._dynamo",
        "from torch.utils._pytree import tree_map",
        "x = torch.autograd._calculate()",
        "t.data_ptr()",
        "t.untyped_storage().nbytes()",
    ],
)
def test_private_torch_is_found(text: str) -> None:
    assert private_torch(text)


def test_public_torch_passes() -> None:
    assert not private_torch("import torch\ntorch.ops.aten.mm\nself._torch\ntorch.Tensor.__add__\nfrom torch import nn")


@pytest.mark.parametrize("text", ["see issue" + " 2", "by Clau" + "de", "/wo" + "rk/main", "an A" + "I wrote"])
def test_foreign_words_are_found(text: str) -> None:
    assert foreign_words(text)


def test_own_words_pass() -> None:
    assert not foreign_words("LLM in a flash; session; pytorch issue 187320; /home/work/; aim; main")


@pytest.mark.parametrize("path", files(*CPP, under="csrc/"), ids=relative)
def test_asynchrony_stays_in_the_executor(path) -> None:
    assert asynchrony(relative(path), path.read_text()) == []


@pytest.mark.parametrize("path", files(".py", under="memsys/"), ids=relative)
def test_private_torch_stays_in_its_files(path) -> None:
    if relative(path) not in TORCH_FILES:
        assert private_torch(path.read_text()) == []


@pytest.mark.parametrize("path", files(), ids=relative)
def test_the_project_speaks_of_itself(path) -> None:
    assert foreign_words(path.read_text()) == []
