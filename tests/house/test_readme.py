"""The README tells the truth: its examples run in order, its keywords are those of the code, its commands exist."""

import inspect
import re
from pathlib import Path

from built import needs_memsys
from sources import ROOT

README = (ROOT / "README.md").read_text()


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def keywords(text: str) -> list[str]:
    """The first cells of the table of keywords."""
    table = text.partition("| keyword | meaning |\n")[2].partition("\n\n")[0]
    return re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)


def test_blocks_and_keywords_are_found() -> None:
    assert blocks("a\n```python\nx = 1\n```\n```bash\nls\n```\n", "python") == ["x = 1\n"]
    assert keywords("| keyword | meaning |\n|---|---|\n| `a` | b |\n| `c` | d |\n\n| `e` | f |") == ["a", "c"]


def test_the_examples_run(tmp_path: Path, monkeypatch) -> None:
    needs_memsys()
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    found = blocks(README, "python")
    assert found
    namespace: dict[str, object] = {"__name__": "readme"}
    for block in found:
        exec(compile(block, "README.md", "exec"), namespace)


def test_the_keywords_are_those_of_offload() -> None:
    needs_memsys()
    import memsys

    for function in (memsys.offload, memsys.offload_activations):
        parameters = set(inspect.signature(function).parameters) - {"model", "plan"}  # there is no planner yet
        assert set(keywords(README)) == parameters


def test_the_commands_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for document in (README, (ROOT / "CONTRIBUTING.md").read_text()):
        code = "\n".join([*blocks(document, "bash"), *re.findall("`[^`]+`", document)])
        targets = set(re.findall(r"\bmake ([a-z-]+)", code))
        assert targets
        assert [target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
