#!/usr/bin/env bash
# What only a machine with an NVIDIA GPU can show, in phases of at most eight minutes, each with one JSON file under
# benchmarks/results/. A phase stands alone: run them in any order, and again where one was cut off.
#   build      installs memsys with CUDA, and builds the C++ tests
#   handles    a statically linked CUDA runtime accepts torch's streams, events and pointers
#   links      host-device rates by copy engine, by multiprocessors, and in both directions at once
#   pinned     registered memory copies asynchronously, as fast as torch's pinned memory
#   tests      pytest -m gpu, and the C++ tests
#   sanitizer  compute-sanitizer's memcheck, racecheck, initcheck and synccheck on the C++ tests, seen to have run;
#              `sanitizer TOOL...` for some of them, where all four would not end in eight minutes
#   bench      the benchmarks' CUDA grid
# Exit status: 0 passed, 1 failed, 2 no GPU or no such phase.
set -euo pipefail
cd "$(dirname "$0")/.."
phase=${1:-}
gpu=benchmarks/gpu

if ! nvidia-smi -L >/dev/null 2>&1; then
  echo "gpu_check: nvidia-smi finds no GPU here, so nothing was measured" >&2
  exit 2
fi
# No network is needed: what the build requires must be installed already.
build=(python3 -m pip install --no-build-isolation --no-deps --editable .)
native=(cmake -S . -B build/tests -G Ninja -DMEMSYS_TESTS=ON -DMEMSYS_PYTHON=OFF -DMEMSYS_WERROR=ON -DMEMSYS_CUDA=ON)

case $phase in
  build) exec python3 $gpu/command.py build "${build[@]}" -- "${native[@]}" -- cmake --build build/tests ;;
  handles | links | pinned) exec timeout 480 python3 "$gpu/$phase.py" ;;
  tests) exec python3 $gpu/command.py tests pytest -m "gpu and not nightly" -- pytest tests/csrc ;;
  sanitizer) exec python3 $gpu/sanitizer.py "${@:2}" ;;
  bench) exec python3 $gpu/command.py bench pytest benchmarks -m gpu --benchmark-json=benchmarks/results/gpu-grid.json ;;
  *)
    echo "gpu_check: no phase '$phase': build, handles, links, pinned, tests, sanitizer or bench" >&2
    exit 2
    ;;
esac
