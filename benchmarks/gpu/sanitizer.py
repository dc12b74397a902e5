"""The phase `sanitizer`: the C++ tests under each tool of compute-sanitizer, which must be seen to have run.

A tool that is missing, that does not know the driver, or that checked nothing can end with status 0 or be mistaken for
a clean run. So each run needs the tool's banner, its summary without an error, and tests that passed beneath it.
`sanitizer.py [TOOL]...`: all four where none is named.
"""

import re
import sys
import time
from pathlib import Path

from command import LIMIT_S, execute, told

ROOT = Path(__file__).resolve().parents[2]
BANNER = "========= COMPUTE-SANITIZER"
# What each tool says at its end when it found nothing.
SUMMARIES = {
    "memcheck": "ERROR SUMMARY: 0 errors",
    "racecheck": "RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)",
    "initcheck": "ERROR SUMMARY: 0 errors",
    "synccheck": "ERROR SUMMARY: 0 errors",
}
# The floors that start CUDA work; those below the device have none.
FLOORS = ("device", "memory", "kernels", "engine")


def what_is_missing(tool: str, status: int, output: str) -> list[str]:
    """Why a run is no proof; empty for a clean run that took place."""
    missing = [] if status == 0 else [f"exit status {status}"]
    missing += [f"no line {line!r}" for line in (BANNER, f"========= {SUMMARIES[tool]}") if line not in output]
    if not re.search(r"^[1-9]\d* passed, 0 failed", output, re.MULTILINE):
        missing.append("no C++ test passed beneath it")
    return missing


def run_tools(programs: list[Path], tools: list[str], limit_s: float) -> list[dict]:
    """Each program under each tool; `missing` is empty where all is well."""
    end, results = time.monotonic() + limit_s, []
    for tool in tools:
        for program in programs:
            command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "1", str(program)]
            try:
                status, output, seconds = execute(command, max(1.0, end - time.monotonic()))
            except OSError as error:
                status, output, seconds = 127, str(error), 0.0
            missing = what_is_missing(tool, status, output)
            results.append({"tool": tool, **told(command, status, output, seconds), "missing": missing})
    return results


def main() -> None:
    """Saves the report; the exit status is 1 unless every tool was seen to run without an error."""
    import report

    report.require_gpu()
    tools = sys.argv[1:] or list(SUMMARIES)
    programs = [path for floor in FLOORS if (path := ROOT / "build" / "tests" / f"test_{floor}").exists()]
    results = run_tools(programs, tools, LIMIT_S)
    for result in results:
        for reason in result["missing"]:
            print(f"gpu_check: {' '.join(result['command'])}: {reason}", file=sys.stderr)
    passed = len(programs) == len(FLOORS) and not any(result["missing"] for result in results)
    if len(programs) < len(FLOORS):
        print("gpu_check: not all C++ tests are in build/tests: run the phase build first", file=sys.stderr)
    report.save("sanitizer", {"passed": passed, "tools": tools, "commands": results})
    raise SystemExit(not passed)


if __name__ == "__main__":
    main()
