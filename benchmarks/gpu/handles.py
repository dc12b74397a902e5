"""Does a statically linked CUDA runtime accept torch's streams, events and pointers? memsys rests on yes."""

import report
import torch
from probe import Probe

BYTES = 1 << 20


def main() -> None:
    """Raises at the first handle that is refused."""
    report.require_gpu()
    probe, stream, event = Probe(), torch.cuda.Stream(), torch.cuda.Event()
    block = torch.zeros(BYTES, dtype=torch.uint8, device="cuda")
    pinned = torch.zeros(BYTES, dtype=torch.uint8, pin_memory=True)
    torch.cuda.synchronize()
    probe.call("stream", stream.cuda_stream, block.data_ptr(), BYTES)
    if not bool((block == 7).all()):
        raise RuntimeError("work given to torch's stream by our runtime did not arrive")
    probe.call("stream", torch.cuda.default_stream().cuda_stream, block.data_ptr(), BYTES)
    with torch.cuda.stream(stream):
        block.add_(1)
        event.record()
    probe.call("event", event.cuda_event)
    types = {
        "torch_device": probe.pointer_type(block.data_ptr()),
        "torch_pinned": probe.pointer_type(pinned.data_ptr()),
        "pageable": probe.pointer_type(torch.zeros(BYTES).data_ptr()),
    }
    if types != {"torch_device": "device", "torch_pinned": "host", "pageable": "unregistered"}:
        raise RuntimeError(f"our runtime takes torch's pointers for something else: {types}")
    report.save("handles", {"accepted": True, "runtime_version": probe.runtime_version(), "pointers": types})


if __name__ == "__main__":
    main()
