"""Runs commands as one phase of the GPU check and keeps how each ended: `command.py PHASE COMMAND [-- COMMAND]...`."""

import os
import signal
import subprocess
import sys
import time

TAIL_CHARACTERS = 3000
LIMIT_S = 450  # a phase has eight minutes, and a report must still be written


def execute(command: list[str], limit_s: float) -> tuple[int, str, float]:
    """Runs one command, its output shown; returns its exit status (124 past the limit), all its output, and seconds."""
    begin = time.monotonic()
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = subprocess.Popen(command, **pipes, text=True, errors="replace", start_new_session=True)
    try:
        output, _ = process.communicate(timeout=limit_s)
        status = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # what it started too: they hold the pipe open
        output, _ = process.communicate()
        status = 124
    print(output, flush=True)
    return status, output, round(time.monotonic() - begin, 1)


def told(command: list[str], status: int, output: str, seconds: float) -> dict:
    """What a report keeps of a command."""
    return {"command": command, "status": status, "seconds": seconds, "output_tail": output[-TAIL_CHARACTERS:]}


def split(arguments: list[str]) -> list[list[str]]:
    """The commands between the `--`."""
    commands: list[list[str]] = [[]]
    for argument in arguments:
        if argument == "--":
            commands.append([])
        else:
            commands[-1].append(argument)
    return commands


def main() -> None:
    """Runs the commands in turn within one limit; the exit status is 1 if any failed."""
    import report

    report.require_gpu()
    phase, end = sys.argv[1], time.monotonic() + LIMIT_S
    commands = split(sys.argv[2:])
    results = [told(command, *execute(command, max(1.0, end - time.monotonic()))) for command in commands]
    report.save(phase, {"passed": all(result["status"] == 0 for result in results), "commands": results})
    raise SystemExit(any(result["status"] != 0 for result in results))


if __name__ == "__main__":
    main()
