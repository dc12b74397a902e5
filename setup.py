"""Lets setuptools build the one extension, memsys._C, by calling CMake.

The build folder build/release-<python> persists, so that a second install compiles only what changed. Environment:
CMAKE_ARGS (more arguments for the configuration, for instance -DMEMSYS_CUDA=OFF) and MAX_JOBS (parallel compilers).
"""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """Builds memsys._C with CMake and installs it where setuptools expects the extension."""

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = ROOT / "build" / f"release-{sys.implementation.cache_tag}"
        forget_moved_build(build)
        cmake = find_tool("cmake")
        run(cmake, "-S", str(ROOT), "-B", str(build), "-G", "Ninja", *configure_arguments())
        jobs = os.environ.get("MAX_JOBS")
        run(cmake, "--build", str(build), "--target", "_C", *(["-j", jobs] if jobs else []))
        run(cmake, "--install", str(build), "--prefix", str(target), "--component", "python", "--strip")


def configure_arguments() -> list[str]:
    """CMake's arguments; ninja is named because an isolated build finds another one, elsewhere, each time."""
    return [
        "-DCMAKE_BUILD_TYPE=Release",
        f"-DCMAKE_MAKE_PROGRAM={find_tool('ninja')}",
        f"-DPython_EXECUTABLE={sys.executable}",
        *shlex.split(os.environ.get("CMAKE_ARGS", "")),
    ]


def find_tool(name: str) -> str:
    """The path of a build tool, or an error that says how to get it."""
    path = shutil.which(name)
    if path is None:
        raise RuntimeError(f"memsys is built with {name}, and there is none on PATH: run `pip install cmake ninja`")
    return path


def forget_moved_build(build: Path) -> None:
    """Drops CMake's cache if the source folder has moved since: CMake refuses to go on with it."""
    cache = build / "CMakeCache.txt"
    if cache.exists() and f"CMAKE_HOME_DIRECTORY:INTERNAL={ROOT}\n" not in cache.read_text():
        shutil.rmtree(build)


def run(*command: str) -> None:
    """Runs a build step, its output shown; a failure ends the build."""
    print("memsys:", shlex.join(command), flush=True)
    subprocess.run(command, check=True)


setup(ext_modules=[Extension("memsys._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
