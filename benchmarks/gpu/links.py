"""How fast is the link between host and device: by copy engine, by multiprocessors, and in both directions at once?

Every other figure is given as a share of these.
"""

import report
import torch
from probe import Probe
from timing import rate_gbs

SIZES = {"1MiB": 1 << 20, "16MiB": 16 << 20, "256MiB": 256 << 20, "1GiB": 1 << 30}


def measure(size: int, probe: Probe) -> dict[str, float]:
    """Rates in GB/s for one size; `both` adds the bytes of the two directions."""
    device = [torch.empty(size, dtype=torch.uint8, device="cuda") for _ in range(2)]
    host = [torch.ones(size, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
    main, other = torch.cuda.Stream(), torch.cuda.Stream()

    def engine(target: torch.Tensor, source: torch.Tensor, stream: torch.cuda.Stream = main) -> None:
        with torch.cuda.stream(stream):
            target.copy_(source, non_blocking=True)

    def multiprocessors(target: torch.Tensor, source: torch.Tensor) -> None:
        probe.call("copy_sm", target.data_ptr(), source.data_ptr(), size, main.cuda_stream)

    def both() -> None:
        other.wait_stream(main)
        engine(device[0], host[0])
        engine(host[1], device[1], other)
        main.wait_stream(other)

    torch.cuda.synchronize()
    return {
        "engine_to_device": rate_gbs(lambda: engine(device[0], host[0]), size, main),
        "engine_to_host": rate_gbs(lambda: engine(host[1], device[1]), size, main),
        "engine_both": rate_gbs(both, 2 * size, main),
        "multiprocessors_to_device": rate_gbs(lambda: multiprocessors(device[0], host[0]), size, main),
        "multiprocessors_to_host": rate_gbs(lambda: multiprocessors(host[1], device[1]), size, main),
    }


def main() -> None:
    report.require_gpu()
    probe = Probe()
    report.save("links", {"unit": "GB/s", "rates": {name: measure(size, probe) for name, size in SIZES.items()}})


if __name__ == "__main__":
    main()
