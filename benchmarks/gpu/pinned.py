"""Is memory that is mapped and then registered, as in memsys's arena, as good to copy from as torch's pinned memory?

It is if torch calls it pinned, if a copy from it returns long before it ends, and if the rate is the same.
"""

import mmap
import time

import report
import torch
from probe import Probe
from timing import rate_gbs

BYTES = 1 << 30
ASYNCHRONOUS_SHARE = 0.1  # a call that returns within a tenth of the copy's time did not wait for it


def issue_share(target: torch.Tensor, source: torch.Tensor, stream: torch.cuda.Stream) -> float:
    """The time that the call takes, as a share of the time that the copy takes."""
    stream.synchronize()
    begin = time.perf_counter()
    with torch.cuda.stream(stream):
        target.copy_(source, non_blocking=True)
    issued = time.perf_counter()
    stream.synchronize()
    return (issued - begin) / (time.perf_counter() - begin)


def measure(source: torch.Tensor) -> dict[str, float]:
    """Rate and issue share of copies from `source` to the device."""
    target, stream = torch.empty(BYTES, dtype=torch.uint8, device="cuda"), torch.cuda.Stream()

    def copy() -> None:
        with torch.cuda.stream(stream):
            target.copy_(source, non_blocking=True)

    torch.cuda.synchronize()
    rate = rate_gbs(copy, BYTES, stream)
    return {"rate_gbs": rate, "issue_share": round(min(issue_share(target, source, stream) for _ in range(5)), 5)}


def main() -> None:
    report.require_gpu()
    probe, pages = Probe(), mmap.mmap(-1, BYTES)
    ours = torch.frombuffer(pages, dtype=torch.uint8).fill_(1)
    begin = time.perf_counter()
    probe.call("register", ours.data_ptr(), BYTES)
    registration_s = time.perf_counter() - begin
    is_pinned = ours.is_pinned()
    results = {"registered": measure(ours), "torch": measure(torch.ones(BYTES, dtype=torch.uint8, pin_memory=True))}
    probe.call("unregister", ours.data_ptr())
    asynchronous = results["registered"]["issue_share"] < ASYNCHRONOUS_SHARE
    summary = {"is_pinned": is_pinned, "asynchronous": asynchronous, "registration_s": round(registration_s, 4)}
    report.save("pinned", {**summary, "unit": "GB/s", **results})
    if not (is_pinned and asynchronous):
        raise SystemExit("registered memory does not copy asynchronously")


if __name__ == "__main__":
    main()
