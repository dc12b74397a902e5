"""Named GPUs: every number with its source. What no source was read for is marked, and what a simulation needs most,
the rate of the link under load, differs between machines with the same GPU: measure it (`memsys plan --here`).
"""

from __future__ import annotations

from memsys.errors import InputError
from memsys.planning.hardware import Figure, Machine, between, exactly

_A100 = "NVIDIA A100 Tensor Core GPU datasheet, 80GB SXM"
_H100 = "NVIDIA H100 Tensor Core GPU datasheet, SXM, dense"
_FLASH2 = "FlashAttention-2 (Dao, ICLR 2024), abstract: 50-73 % of the A100's peak; section 1: backward up to 63 %"
_MAMF = "ml-engineering (Bekman), maximum achievable matmul FLOPS"
_STREAM = "Calculon, systems/a100_80g.json: 0.75-0.90 of the peak from 10 MB up; NVIDIA forum topic 339083: 0.88"
_BIDIRECTIONAL = "NVIDIA/nvbandwidth#53 (8x A100-SXM4-80GB): 25 GB/s out and 11 GB/s in, both at once"
_GEN4 = (
    "NVIDIA/nvbandwidth#53 (8x A100-SXM4-80GB): 25 GB/s for one GPU alone, 11 GB/s the slower direction when both "
    "are busy; two GPUs behind one switch have 12.5 GB/s each"
)
_NVME = "DeepSpeed DeepNVMe: 4 Gen4 drives of one machine, 10 GB/s read and 5 GB/s written"
_ASSUMED = "assumed"

_FILE = {"file_out_rate": exactly(5e9, _NVME), "file_in_rate": exactly(10e9, _NVME)}
_STREAMING = between(0.75, 0.90, _STREAM)
# The lower end: training as a whole, where products are most of it, reached 205 of 312 TFLOP/s.
_A100_GEMM = between(
    0.66, 0.869, f"{_MAMF}: 271 of 312 TFLOP/s; FlashAttention-2, table 1: GPT3-2.7B at 2k trains at 205"
)
_A100_LIKE = {
    "peak_flops": exactly(312e12, _A100),
    "memory_bytes": exactly(80 << 30, _A100),
    "memory_rate": exactly(2.039e12, _A100),
    "memory_share": _STREAMING,
    "gemm_share": _A100_GEMM,
    "attention_forward_share": between(0.50, 0.73, _FLASH2),
    "attention_backward_share": between(0.50, 0.63, _FLASH2),
    "out_rate": between(11e9, 25e9, _GEN4),
    "in_rate": between(11e9, 25e9, _GEN4),
    "both_share": exactly(1.44, _BIDIRECTIONAL),
    **_FILE,
}
_A800_COLLECTIVE = (
    "a report of NCCL all-reduce on 8x A800-SXM4-80GB: bus bandwidth of 152 GB/s at 1 GiB, 144 GB/s at 256 MiB; "
    "NVIDIA/nccl-tests#149: 20 GB/s for each of 8 links"
)
_H100_FLASH = (
    "FlashAttention-2, section 4.1: 335 of 989 TFLOP/s on H100; FlashAttention-3 (Shah et al., 2024), abstract: 75 %"
)
_H100_BACKWARD = "FlashAttention-2, section 4.1: 335 of 989 TFLOP/s on H100; FlashAttention-3: about 0.55"
_H100_LINK = (
    "NVIDIA/nvbandwidth#24 (8x H100): 52.8 GB/s out, 35 GB/s in by the multiprocessors; half where two GPUs share"
)
_H100_COLLECTIVE = "NVIDIA/nccl#1374: about 370 GB/s attained of 450; nccl-tests#272 (8x H200): 475 by NVLS"
_H100_LIKE = {
    "peak_flops": exactly(989e12, _H100),
    "memory_share": _STREAMING,
    "gemm_share": between(0.60, 0.803, f"{_MAMF}: H100 SXM 794 of 989 TFLOP/s; lower end {_ASSUMED}", False),
    "attention_forward_share": between(0.34, 0.75, _H100_FLASH),
    "attention_backward_share": between(0.34, 0.55, _H100_BACKWARD, False),
    "out_rate": Figure(52.8e9, 26.4e9, 55e9, _H100_LINK),
    "in_rate": Figure(52.8e9, 26.4e9, 55e9, _H100_LINK, False),
    "both_share": between(1.4, 2.0, _ASSUMED, False),
    "collective_rate": between(320e9, 475e9, _H100_COLLECTIVE),
    **_FILE,
}
_GB200_SPEC = "NVIDIA GB200 NVL72 datasheet, one GPU of 72, dense"
_RTX_4090 = "NVIDIA Ada GPU architecture whitepaper, GeForce RTX 4090, fp32 accumulation"
_RTX_LINK = "NVIDIA/nvbandwidth#15 (8x RTX 4090): 25.5 GB/s in, 26.8 GB/s out; both at once 11 GB/s and up"

_MACHINES = (
    Machine(
        "a800",
        **_A100_LIKE,
        collective_rate=between(144e9, 160e9, _A800_COLLECTIVE),
    ),
    Machine(
        "a100",
        **_A100_LIKE,
        collective_rate=between(200e9, 230e9, "NVIDIA/nccl-tests#149 (8x A100-SXM4-80GB): 200-230 GB/s"),
    ),
    Machine(
        "h100",
        **_H100_LIKE,
        memory_bytes=exactly(80 << 30, _H100),
        memory_rate=exactly(3.35e12, _H100),
    ),
    Machine(
        "h200",
        **_H100_LIKE,
        memory_bytes=exactly(141 << 30, "NVIDIA H200 Tensor Core GPU datasheet"),
        memory_rate=exactly(4.8e12, "NVIDIA H200 Tensor Core GPU datasheet"),
    ),
    Machine(
        "gb200",
        peak_flops=exactly(2.5e15, _GB200_SPEC),
        memory_bytes=exactly(186 << 30, _GB200_SPEC, False),
        memory_rate=exactly(8e12, _GB200_SPEC),
        memory_share=_STREAMING,
        gemm_share=between(0.50, 0.75, _ASSUMED, False),
        attention_forward_share=between(0.40, 0.65, "Dao-AILab/flash-attention#2280: 1418 TFLOP/s causal"),
        attention_backward_share=between(0.30, 0.50, "Dao-AILab/flash-attention#2280: 1209 TFLOP/s causal"),
        out_rate=between(120e9, 350e9, "pytorch/torchtitan#3489: 350 GB/s, 120 GB/s across nodes"),
        in_rate=between(120e9, 350e9, "NVIDIA/nvbandwidth#23: 346 GB/s; torchtitan#3489: 120 across nodes"),
        both_share=between(1.4, 2.0, _ASSUMED, False),
        collective_rate=between(600e9, 770e9, "Azure benchmarking guide#7: 770 GB/s between two", False),
        **_FILE,
    ),
    Machine(
        "rtx4090",
        peak_flops=exactly(165.2e12, _RTX_4090, False),
        memory_bytes=exactly(24 << 30, _RTX_4090),
        memory_rate=exactly(1.008e12, _RTX_4090),
        memory_share=_STREAMING,
        gemm_share=between(0.70, 0.95, _ASSUMED, False),
        attention_forward_share=between(0.50, 0.90, _ASSUMED, False),
        attention_backward_share=between(0.45, 0.75, _ASSUMED, False),
        out_rate=between(11e9, 26.8e9, _RTX_LINK),
        in_rate=between(11e9, 25.5e9, _RTX_LINK),
        both_share=between(1.0, 1.44, _ASSUMED, False),
        collective_rate=between(10e9, 25e9, _ASSUMED, False),
        **_FILE,
    ),
)  # fmt: skip
MACHINES = {machine.name: machine for machine in _MACHINES}


def find_machine(name: str | Machine) -> Machine:
    """The machine of that name (any case), or the machine itself. Raises InputError, which lists the names."""
    if isinstance(name, Machine):
        return name
    found = MACHINES.get(name.lower())
    if found is None:
        raise InputError(f"GPU {name!r}: no such name; known are {', '.join(MACHINES)}, or measure yours by "
                         "`memsys plan --here`")  # fmt: skip
    return found
