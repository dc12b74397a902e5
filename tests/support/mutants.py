"""The peers' bugs, put back: each a patch in tests/proof/mutants, applied to a copy of the package, never to the tree.

A patch of memsys/ needs the copy alone; one of csrc/ compiles its file and links the module anew with the objects of
the build that `pip install -e .` leaves. A patch that does not apply, or a build that is not there, is an error.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PATCHES = ROOT / "tests" / "proof" / "mutants"
BUILD = ROOT / "build" / f"release-{sys.implementation.cache_tag}"


class Change(NamedTuple):
    """In the file of that path, `old` becomes `new`."""

    path: str
    old: str
    new: str


class Mutant(NamedTuple):
    """about: the first lines of the patch, which say whose bug it is."""

    name: str
    about: str
    changes: tuple[Change, ...]

    @property
    def is_native(self) -> bool:
        return any(change.path.startswith("csrc/") for change in self.changes)


def all_mutants() -> list[Mutant]:
    return [read_patch(path) for path in sorted(PATCHES.glob("*.patch"))]


def read_patch(path: Path) -> Mutant:
    """Reads a unified diff."""
    about, changes, target = [], [], ""
    for line in path.read_text().splitlines(keepends=True):
        if line.startswith("#"):
            about.append(line[1:].strip())
        elif line.startswith("+++ b/"):
            target = line[6:].split("\t")[0].strip()
        elif line.startswith("@@"):
            changes.append(Change(target, "", ""))
        elif changes and line[0] in " +-" and not line.startswith("--- a/"):
            last = changes[-1]
            old, new = line[1:] if line[0] in " -" else "", line[1:] if line[0] in " +" else ""
            changes[-1] = last._replace(old=last.old + old, new=last.new + new)
    return Mutant(path.stem, " ".join(about), tuple(changes))


def mutated(mutant: Mutant) -> dict[str, str]:
    """The text of each file that the patch changes. Raises ValueError where it does not apply to the tree."""
    texts: dict[str, str] = {}
    for path, old, new in mutant.changes:
        text = texts.get(path) or (ROOT / path).read_text()
        if text.count(old) != 1:
            raise ValueError(f"mutant {mutant.name} does not apply: {path} has this {text.count(old)} times:\n{old}")
        texts[path] = text.replace(old, new)
    return texts


def plant(mutant: Mutant | None, folder: Path) -> Path:
    """Makes a copy of the package with the mutant in it (None: with nothing changed); returns what goes on the path."""
    tree = folder / ("clean" if mutant is None else mutant.name)
    shutil.copytree(ROOT / "memsys", tree / "memsys", ignore=shutil.ignore_patterns("__pycache__", "_C*.so"))
    core = next((ROOT / "memsys").glob("_C*.so"))
    texts = {} if mutant is None else mutated(mutant)
    native = {path: text for path, text in texts.items() if path.startswith("csrc/")}
    for path in texts.keys() - native.keys():
        (tree / path).write_text(texts[path])
    if native:
        build_core(native, tree / "native", tree / "memsys" / core.name)
    else:
        (tree / "memsys" / core.name).symlink_to(core)
    return tree


def build_core(texts: dict[str, str], folder: Path, target: Path) -> None:
    """Compiles the changed sources and links the module with everything else as it was built."""
    entries = {entry["file"]: entry["command"] for entry in json.loads((BUILD / "compile_commands.json").read_text())}
    objects = []
    folder.mkdir(parents=True)
    for path, text in texts.items():
        if not path.endswith(".cpp"):
            raise ValueError(f"a mutant may change .cpp files alone, whose objects are made anew: found {path}")
        source, made = folder / Path(path).name, folder / (Path(path).stem + ".o")
        source.write_text(text)
        command = shlex.split(entries[str(ROOT / path)])
        command = [str(source) if part == str(ROOT / path) else re.sub(r"^-O[23s]$", "-O1", part) for part in command]
        command[command.index("-o") + 1] = str(made)
        call(command)
        objects.append(str(made))
    listed = subprocess.run(["ninja", "-C", str(BUILD), "-t", "commands", "_C"], capture_output=True, text=True,
                            check=True)  # fmt: skip
    link = listed.stdout.splitlines()[-1].split("&&")[1]
    command = shlex.split(link)
    command[command.index("-o") + 1] = str(target)
    first = next(place for place, part in enumerate(command) if part.endswith(".a"))
    call(command[:first] + objects + command[first:])  # before the archives, whose own objects are then not looked at


def refresh_build() -> None:
    """Compiles what has changed since the package was built; raises FileNotFoundError if it never was."""
    if not (BUILD / "build.ninja").exists():
        raise FileNotFoundError(f"{BUILD} is not there: mutants of csrc/ need the objects of `pip install -e .`")
    call(["ninja", "-C", str(BUILD), "_C"])


def call(command: list[str]) -> None:
    done = subprocess.run(command, cwd=BUILD, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)}\n{done.stdout}")
