"""Each C++ test as one pytest item, so that `pytest -k arena` finds them and one summary counts everything.

They are built when collected: at first from scratch, later only what changed. With MEMSYS_SANITIZE=address,undefined
or MEMSYS_SANITIZE=thread in the environment they are built with those sanitizers, in a folder of their own.
"""

import functools
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SANITIZE = os.environ.get("MEMSYS_SANITIZE", "")
BUILD = ROOT / "build" / "-".join(["tests", *filter(None, SANITIZE.split(","))])
SKIPPED = 77  # the exit status of check_main.cpp when everything asked for was skipped
# Below the limit of pytest-timeout, so that the test's own output is shown; the Makefile raises it for sanitizers.
TEST_SECONDS = 570 if SANITIZE else 150
# The symbol that each sanitizer leaves in every program built with it.
MARKS = {"address": "__asan_init", "undefined": "__ubsan_handle", "thread": "__tsan_init"}


def floors() -> list[str]:
    """The floors that have C++ tests; what lies beside them is for all floors."""
    names = (path.name for path in Path(__file__).parent.iterdir() if list(path.glob("*.cpp")))
    return sorted(name for name in names if (ROOT / "csrc" / name).is_dir())


def configure_command() -> list[str]:
    """CMake's arguments. Sanitized builds leave CUDA out: its runtime allocates in ways they do not understand."""
    options = {
        "CMAKE_BUILD_TYPE": "RelWithDebInfo",
        "MEMSYS_TESTS": "ON",
        "MEMSYS_PYTHON": "OFF",
        "MEMSYS_WERROR": "ON",
    }
    options["CMAKE_MAKE_PROGRAM"] = shutil.which("ninja") or "ninja"
    if SANITIZE:
        options |= {"MEMSYS_SANITIZE": SANITIZE, "MEMSYS_CUDA": "OFF"}
    defines = [f"-D{name}={value}" for name, value in options.items()]
    return ["cmake", "-S", str(ROOT), "-B", str(BUILD), "-G", "Ninja", *defines]


def run(*command: str, **options) -> subprocess.CompletedProcess[str]:
    """Runs a command and returns its exit status and its output, both streams together."""
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )


@functools.cache
def build() -> dict[str, str]:
    """Builds every floor's tests; returns {floor: what went wrong}, empty when all is well."""
    for tool in ("cmake", "ninja"):
        if shutil.which(tool) is None:
            return dict.fromkeys(floors(), f"the C++ tests need {tool}, and there is none on PATH: pip install {tool}")
    configured = run(*configure_command())
    if configured.returncode != 0:
        return dict.fromkeys(floors(), f"CMake failed:\n{configured.stdout[-4000:]}")
    if run("cmake", "--build", str(BUILD), "--", "-k", "0").returncode == 0:
        return {floor: "no library to test: CMake found no source for it" for floor in floors() if not has(floor)}
    # Once more, floor by floor, to tell whose build it is that fails.
    results = {floor: run("cmake", "--build", str(BUILD), "--target", f"test_{floor}") for floor in floors()}
    return {floor: result.stdout[-4000:] for floor, result in results.items() if result.returncode != 0}


def program(floor: str) -> Path:
    """Where the tests of one floor are built."""
    return BUILD / f"test_{floor}"


def has(floor: str) -> bool:
    return program(floor).exists()


@functools.cache
def runner() -> tuple[str, ...]:
    """What to put before a test program: the thread sanitizer fails where addresses are randomised too far."""
    fixed = ("setarch", platform.machine(), "-R")
    needs = "thread" in SANITIZE and shutil.which("setarch") is not None
    return fixed if needs and run(*fixed, "true").returncode == 0 else ()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One item per C++ test; a floor that does not build is one item too, which fails."""
    if "native_test" in metafunc.fixturenames:
        broken = build()
        tests = [
            (floor, name)
            for floor in floors()
            for name in (["build"] if floor in broken else run(str(program(floor)), "--list").stdout.split())
        ]
        metafunc.parametrize("native_test", tests, ids="-".join)


@pytest.fixture(scope="session")
def results(request: pytest.FixtureRequest) -> Iterator[dict[tuple[str, str], Future]]:
    """What the chosen tests are about to give, in their order, as many at once as there are processors."""
    items = [item for item in request.session.items if item.name.startswith("test_native[")]
    chosen = [item.callspec.params["native_test"] for item in items]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {(floor, name): pool.submit(run, *runner(), str(program(floor)), name, timeout=TEST_SECONDS)
               for floor, name in chosen if floor not in build()}  # fmt: skip
        pool.shutdown(cancel_futures=True)


def test_native(native_test: tuple[str, str], results: dict[tuple[str, str], Future]) -> None:
    """Runs one C++ test in a process of its own."""
    floor, name = native_test
    if floor in build():
        pytest.fail(f"the C++ tests of {floor} do not build:\n{build()[floor]}", pytrace=False)
    result = results[floor, name].result()
    if result.returncode == SKIPPED:
        pytest.skip(result.stdout.partition(f"skip {name}: ")[2].splitlines()[0])
    if result.returncode != 0:
        pytest.fail(f"exit status {result.returncode}\n{result.stdout}", pytrace=False)


def test_every_floor_lists_tests() -> None:
    """A program that lists nothing would pass by doing nothing."""
    assert floors()
    for floor in set(floors()) - build().keys():
        assert run(str(program(floor)), "--list").stdout.split(), f"test_{floor} lists no test"


@pytest.mark.parametrize("sanitizer", SANITIZE.split(",") if SANITIZE else [])
def test_programs_are_instrumented(sanitizer: str) -> None:
    """A sanitizer that was asked for is really in every test program."""
    for floor in set(floors()) - build().keys():
        assert MARKS[sanitizer] in run("nm", "-C", str(program(floor))).stdout, f"test_{floor} has no {sanitizer}"
