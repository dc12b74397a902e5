"""What memsys never does with what it reads: run it. Files give numbers and names, and those are checked."""

import ast

import pytest
from sources import CPP, files, relative, strip_cpp

# Modules that make programs of data, and calls that do.
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "torch.package"}
CALLS = {"eval", "exec", "compile", "__import__", "torch.load", "torch.jit.load", "numpy.load", "np.load", "os.system",
         "yaml.load", "pandas.read_pickle"}  # fmt: skip
# torch.save pickles too, but what is pickled is only counted there, and never read.
WRITERS = {"torch.save": {"memsys/cli/saved.py"}}


def dangers(path: str, text: str) -> list[str]:
    """Imports and calls that could run what a file says. np.load is no danger with allow_pickle=False."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            found += [f"{node.lineno}: import {name}" for name in names if name in MODULES]
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            is_plain = any(one.arg == "allow_pickle" and ast.unparse(one.value) == "False" for one in node.keywords)
            if (name in CALLS and not is_plain) or path not in WRITERS.get(name, {path}):
                found.append(f"{node.lineno}: {name}()")
            found += [f"{node.lineno}: shell=True" for one in node.keywords if one.arg == "shell"]
    return found


@pytest.mark.parametrize(
    "text",
    ["import pickle", "from pickle import loads", "import marshal as m", "eval('1')", "exec(text)", "torch.load(path)",
     "torch.load(path, weights_only=True)", "np.load(path)", "np.load(path, allow_pickle=True)", "torch.save(x, path)",
     "subprocess.run(line, shell=True)"],
)  # fmt: skip
def test_dangers_are_found(text: str) -> None:
    assert dangers("memsys/a.py", text)


def test_what_is_harmless_passes() -> None:
    assert not dangers("memsys/a.py", "model.eval()\nre.compile('a')\nnp.load(path, allow_pickle=False)\njson.load(f)")
    assert not dangers("memsys/cli/saved.py", "torch.save(kept, sink)")


@pytest.mark.parametrize("path", files(".py", under="memsys/"), ids=relative)
def test_nothing_that_is_read_is_run(path) -> None:
    assert dangers(relative(path), path.read_text()) == []


@pytest.mark.parametrize("path", files(*CPP, under="csrc/"), ids=relative)
def test_the_core_starts_no_program_and_copies_no_unbounded_text(path) -> None:
    code = strip_cpp(path.read_text())
    for name in ("system(", "popen(", "execv", "strcpy(", "strcat(", "sprintf(", "gets(", "dlopen(", "mktemp("):
        assert not any(before in code for before in (f" {name}", f":{name}", f"({name}")), name
