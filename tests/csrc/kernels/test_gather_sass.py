"""What nvcc makes of the gather's kernels: everything stays in registers, and host memory is read 16 bytes a lane.

Neither needs a GPU. A spill would be device memory traffic for every chunk, and a narrower load more requests.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SOURCE = ROOT / "csrc" / "kernels" / "cuda_gather.cu"
KERNELS = {"gather_aligned_kernel": 6, "gather_plain_kernel": 5}  # the shapes of a warp; the widths of a word
FRAME = "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"


def nvcc(target: Path, *options: str) -> str:
    """Compiles the gather's kernels for sm_90 into `target`; returns what nvcc prints."""
    program = shutil.which("nvcc")
    if program is None:
        pytest.skip("there is no nvcc on PATH")
    flags = ["-std=c++20", "-arch=sm_90", "--expt-relaxed-constexpr", "-I", str(ROOT / "csrc")]
    command = [program, *flags, *options, "-o", str(target), str(SOURCE)]
    finished = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert finished.returncode == 0, finished.stdout
    return finished.stdout


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The kernels' machine code, and what ptxas says of their resources."""
    cubin = tmp_path_factory.mktemp("gather") / "gather.cubin"
    return cubin, nvcc(cubin, "-cubin", "-Xptxas", "-v")


def frames(printed: str) -> dict[str, str]:
    """The stack and spill line of each kernel, from what ptxas prints."""
    return dict(re.findall(r"Function properties for (\S*_kernel\S*)\s+(\d+ bytes stack frame[^\n]*)", printed))


def disassemble(cubin: Path) -> dict[str, str]:
    """The instructions of each kernel; skips where there is no disassembler."""
    beside = [str(Path(program).resolve().parent) for program in [shutil.which("nvcc")] if program]
    for name, option in (("cuobjdump", "-sass"), ("nvdisasm", "-c")):
        program = shutil.which(name) or shutil.which(name, path=":".join([*beside, "/usr/local/cuda/bin"]))
        if program is None:
            continue
        finished = subprocess.run([program, option, str(cubin)], capture_output=True, text=True)
        if finished.returncode == 0:
            return functions(finished.stdout)
    return pytest.skip("neither cuobjdump nor nvdisasm works here, so the machine code cannot be read")


def functions(listing: str) -> dict[str, str]:
    """Splits a listing at its functions' headings: cuobjdump's `Function : name`, nvdisasm's `.text.name:`."""
    parts = re.split(r"^\s*(?:Function : |\.text\.)([\w$]+):?\s*$", listing, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def named(kernels: dict[str, str], name: str) -> list[str]:
    """What belongs to the kernels of one name, of which there are as many as the launchers choose from."""
    found = [text for kernel, text in kernels.items() if name in kernel]
    assert len(found) == KERNELS[name]
    return found


@pytest.mark.parametrize("name", KERNELS)
def test_nothing_leaves_the_registers(compiled: tuple[Path, str], name: str) -> None:
    """No stack frame and no spill."""
    assert set(named(frames(compiled[1]), name)) == {FRAME}


def test_every_unrolled_load_is_16_bytes_wide(tmp_path: Path) -> None:
    """The PTX of each aligned kernel has vector loads for what is in flight, and none from local memory."""
    target = tmp_path / "gather.ptx"
    nvcc(target, "-ptx")
    parts = re.split(r"^\.visible \.entry (\w+)|^\.entry (\w+)", target.read_text(), flags=re.M)
    kernels = dict(zip((a or b for a, b in zip(parts[1::3], parts[2::3], strict=True)), parts[3::3], strict=True))
    for text in named(kernels, "gather_aligned_kernel"):
        assert len(re.findall(r"\bld\.global[.\w]*\.v4\.[ubs]32\b", text)) in (2, 4)
        assert not re.search(r"\b(ld|st)\.local\b", text)


def test_machine_code_reads_16_bytes_and_no_local_memory(compiled: tuple[Path, str]) -> None:
    """The loads in flight follow each other with no store, shuffle or branch between them."""
    kernels = disassemble(compiled[0])
    for text in named(kernels, "gather_aligned_kernel"):
        opcodes = re.findall(r"\b(LDG|LDL|STL|ST|STG|SHFL|BRA)\b([.\w]*)", text)
        wide = [at for at, (name, kind) in enumerate(opcodes) if name == "LDG" and kind.endswith(".128")]
        assert len(wide) in (2, 4)
        assert wide[-1] - wide[0] == len(wide) - 1
        assert not {"LDL", "STL", "ST"} & {name for name, _ in opcodes}
    for text in named(kernels, "gather_plain_kernel"):
        assert not re.search(r"\b(LDL|STL)\b", text)
