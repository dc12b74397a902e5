"""The project's own files, as the house-rule tests see them: which there are, and C++ without what is not code."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("csrc", "memsys", "tests", "benchmarks", ".ci")
ROOT_FILES = ("CMakeLists.txt", "conftest.py", "Makefile", "setup.py", "pyproject.toml")
CPP = (".cpp", ".h", ".cu", ".cuh")
GENERATED = {"__pycache__", "build", "results"}

# Comments, raw strings, strings and characters of C++; the first two may span lines.
_CPP_NOISE = re.compile(
    r'//[^\n]*|/\*.*?\*/|R"(?P<tag>\w*)\(.*?\)(?P=tag)"|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])\'', re.DOTALL
)


def files(*suffixes: str, under: str = "") -> list[Path]:
    """Source files with these suffixes (any, if none is given) in the folder `under` (everywhere, if empty)."""
    return sorted(path for path in _all() if _is_wanted(path, suffixes) and relative(path).startswith(under))


def relative(path: Path) -> str:
    """The path as people write it, from the top of the repository."""
    return path.relative_to(ROOT).as_posix()


def strip_cpp(text: str) -> str:
    """C++ with comments, strings and characters blanked out; every line keeps its number."""
    return _CPP_NOISE.sub(lambda match: re.sub(r"[^\n]", " ", match.group()), text)


def _is_wanted(path: Path, suffixes: tuple[str, ...]) -> bool:
    return not suffixes or path.suffix in suffixes


def _all() -> Iterator[Path]:
    yield from (ROOT / name for name in ROOT_FILES if (ROOT / name).exists())
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and not GENERATED & set(path.parts) and path.suffix in {*CPP, ".py", ".pyi", ".sh", ""}:
                yield path
