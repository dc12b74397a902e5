"""Compiles probe.cu and calls it: a second CUDA runtime in this process, as memsys's is."""

import ctypes
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("probe.cu")
BUILD = Path(__file__).resolve().parents[2] / "build" / "gpu"


class Probe:
    """The functions of probe.cu; those that return an error code raise RuntimeError with its text."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(str(compile_probe()))
        self._library.probe_error.restype = ctypes.c_char_p

    def runtime_version(self) -> int:
        return self._library.probe_runtime_version()

    def pointer_type(self, pointer: int) -> str:
        """What the second runtime takes the pointer for."""
        code = self._library.probe_pointer(ctypes.c_uint64(pointer))
        if code < 0:
            self._check("pointer", -code)
        return ("unregistered", "host", "device", "managed")[code]

    def call(self, name: str, *arguments: int) -> None:
        """Calls probe_<name> with 64-bit integers."""
        function = getattr(self._library, f"probe_{name}")
        self._check(name, function(*(ctypes.c_int64(argument) for argument in arguments)))

    def _check(self, name: str, code: int) -> None:
        if code != 0:
            raise RuntimeError(f"probe_{name}: CUDA error {code}: {self._library.probe_error(code).decode()}")


def compile_probe() -> Path:
    """Builds the library if its source is newer."""
    target = BUILD / "libprobe.so"
    if not target.exists() or target.stat().st_mtime < SOURCE.stat().st_mtime:
        BUILD.mkdir(parents=True, exist_ok=True)
        flags = ["-O2", "-std=c++20", "-shared", "-Xcompiler=-fPIC", "-cudart=static", "-arch=native"]
        subprocess.run(["nvcc", *flags, str(SOURCE), "-o", str(target)], check=True)
    return target
