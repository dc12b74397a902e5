"""Small files and small functions: no file over 400 lines, half of them under 150, no function over 60."""

import ast
import re
import statistics

import pytest
from sources import CPP, files, relative, strip_cpp

FILE_LINES = 400
MEDIAN_LINES = 150
FUNCTION_LINES = 60

# What opens a brace that is no function: these may hold functions.
_SCOPE = re.compile(r"\s*(template\s*<.*>\s*)?(inline\s+)?(namespace|class|struct|union|enum|extern)\b", re.DOTALL)


def long_python_functions(text: str, limit: int = FUNCTION_LINES) -> list[str]:
    """The functions of a Python file with more than `limit` lines, decorators not counted."""
    functions = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    lengths = ((node.name, node.lineno, node.end_lineno - node.lineno + 1) for node in functions)
    return [f"{line}: {name} has {length} lines" for name, line, length in lengths if length > limit]


def cpp_functions(text: str) -> list[tuple[int, int]]:
    """(first line, last line) of each outermost function of a C++ file, told by its braces.

    A brace opens a function if there is a parenthesis before it and no word such as `class`; what is inside a
    function belongs to it.
    """
    found, stack, head_start, text = [], [], 0, blank_directives(strip_cpp(text))
    for position, letter in enumerate(text):
        if letter == "{":
            head = text[head_start:position]
            inside = bool(stack) and stack[-1] is not None
            is_function = inside or ("(" in head and not _SCOPE.match(head))
            start = head_start + len(head) - len(head.lstrip())
            stack.append(stack[-1] if inside else (start if is_function else None))
        elif letter == "}" and stack:
            start = stack.pop()
            if start is not None and not (stack and stack[-1] is not None):
                found.append((text.count("\n", 0, start) + 1, text.count("\n", 0, position) + 1))
        if letter in "{};":
            head_start = position + 1
    return found


def blank_directives(text: str) -> str:
    """Blanks preprocessor lines, so that a macro's braces do not count; every line keeps its number."""
    return re.sub(r"^[ \t]*#(?:[^\n\\]|\\\n|\\.)*", lambda match: "\n" * match.group().count("\n"), text, flags=re.M)


def long_cpp_functions(text: str, limit: int = FUNCTION_LINES) -> list[str]:
    """The functions of a C++ file with more than `limit` lines."""
    return [f"{first}: {last - first + 1} lines" for first, last in cpp_functions(text) if last - first + 1 > limit]


def conditionals_in_functions(text: str) -> list[int]:
    """Lines of `#if` inside a function body: a backend is a file, not a condition."""
    ranges = cpp_functions(text)
    rows = enumerate(strip_cpp(text).splitlines(), 1)
    lines = [line for line, row in rows if re.match(r"\s*#\s*(if|ifdef|ifndef)\b", row)]
    return [line for line in lines if any(first < line < last for first, last in ranges)]


def opening(path_suffix: str, text: str) -> str:
    """The comment or docstring a file begins with; empty if there is none."""
    if path_suffix in (".py", ".pyi"):
        return ast.get_docstring(ast.parse(text)) or ""
    rows = text.splitlines()
    if rows and rows[0].startswith("#!"):
        rows = rows[1:]
    mark = "//" if path_suffix in CPP else "#"
    return rows[0].removeprefix(mark).strip() if rows and rows[0].startswith(mark) else ""


def test_long_functions_are_found() -> None:
    body = "  f();\n" * 61
    assert long_python_functions("def g():\n" + "    f()\n" * 60)
    assert not long_python_functions("def g():\n" + "    f()\n" * 59)
    assert long_cpp_functions("namespace a {\nclass B : C {\n  int g() {\n" + body + "  }\n};\n}")
    assert long_cpp_functions("TEST(name) {\n" + body + "}\n")
    assert not long_cpp_functions("namespace a {\n" + "int g() { return 1; }\n" * 100 + "}")
    assert not long_cpp_functions("struct A {\n" + "  int a = 0;\n" * 100 + "};")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("int f(int a) {\n  if (a) {\n  }\n}\n", [(1, 4)]),
        ("A::A(int a)\n    : a_(a) {\n}\n\nvoid g() {\n}", [(1, 3), (5, 6)]),
        ("// f() {\nvoid g() {\n  h(\"}\");\n  h('{');\n}", [(2, 5)]),
        ("#define X(a) \\\n  do {      \\\n  } while (a\nint k() {\n}", [(4, 5)]),
        ("enum class A { a, b };\nauto f = [](int a) {\n};", [(2, 3)]),
    ],
)
def test_cpp_functions_are_told_apart(text: str, expected: list[tuple[int, int]]) -> None:
    assert cpp_functions(text) == expected


def test_a_conditional_in_a_function_is_found() -> None:
    assert conditionals_in_functions("#ifdef A\n#endif\nvoid f() {\n#ifdef CUDA\n  g();\n#endif\n}") == [4]


def test_a_missing_opening_is_found() -> None:
    assert opening(".py", "import os\n") == ""
    assert opening(".cpp", "#include <vector>\n// late") == ""
    assert opening("", "#!/bin/bash\nset -e") == ""
    assert opening(".cpp", "// Why.") == opening(".py", '"""Why."""') == opening("", "#!/bin/bash\n# Why.") == "Why."


@pytest.mark.parametrize("path", files(), ids=relative)
def test_file(path) -> None:
    """Length, first lines, functions, conditionals."""
    text = path.read_text()
    assert text.count("\n") <= FILE_LINES
    assert opening(path.suffix, text), "the file does not say first what it is"
    if path.suffix == ".py":
        assert long_python_functions(text) == []
    if path.suffix in CPP:
        assert long_cpp_functions(text) == []
        assert conditionals_in_functions(text) == []


def test_the_median_file_is_short() -> None:
    assert statistics.median(path.read_text().count("\n") for path in files(*CPP, ".py")) <= MEDIAN_LINES
