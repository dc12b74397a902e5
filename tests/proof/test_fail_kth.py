"""Everything that can fail does: each read, write, sync, allocation, pin, submit and thread start of a training step,
a gather epoch, a streamed step and a packing, the k-th of it, once and for good, in every way that the system knows.

CI strikes with every kind at the first operation, at the last and at one in between that changes from day to day; the
run in earnest at every one.
"""

from __future__ import annotations

import datetime
import logging
import time
from pathlib import Path

import pytest
from built import needs_memsys

needs_memsys()

import proof  # noqa: E402
from fault_loads import LOADS, load_named  # noqa: E402
from fault_loop import ENGINES, Found, Loop, check  # noqa: E402

from memsys import _C  # noqa: E402

pytestmark = [pytest.mark.proof, pytest.mark.filterwarnings("ignore:spill_dir")]

HAS_URING, WHY_NOT = _C.probe_uring()


def engines_of(name: str) -> list[str]:
    """Streaming, gathering and packing know no device but the host."""
    return [engine for engine in ENGINES if engine != "simulated" or name.startswith("train")]


PAIRS = [
    pytest.param(name, engine, marks=pytest.mark.skipif(engine == "uring" and not HAS_URING, reason=WHY_NOT))
    for name in LOADS
    for engine in engines_of(name)
]


@pytest.mark.parametrize(("name", "engine"), PAIRS)
def test_a_few_of_every_kind(name: str, engine: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "memsys")  # each step that falls back says so
    found = Found()
    Loop(name, load_named(name, tmp_path), engine, found, datetime.date.today().toordinal()).run()
    print(found.table())
    check(found)
    assert found.case_count >= 4


@pytest.mark.nightly
@pytest.mark.timeout(4 * 3600)
def test_every_k_of_every_kind(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "memsys")
    found, begin = Found(), time.monotonic()
    for name, engine in (pair.values for pair in PAIRS):
        if engine == "uring" and not HAS_URING:
            continue
        folder = tmp_path / f"{name}-{engine}"
        folder.mkdir()
        Loop(name, load_named(name, folder), engine, found).run()
    print(found.table())
    kinds = {(operation, kind) for _, _, operation, kind, _ in found.cells}
    told = sum(cell.cases - cell.exact for cell in found.cells.values())
    good = not found.wrong and not found.hangs
    proof.record(
        "R3", "fail-kth", measure="fail every k-th operation of a step, once and for good",
        figure=f"{found.case_count} faults of {len(kinds)} kinds: {found.case_count - told} bit-exact, {told} typed "
               f"errors, {len(found.wrong)} wrong, {len(found.hangs)} hangs",
        target="every one bit-exact or a typed error; no hang of 10 s; the next step bit-exact", is_met=good,
        seconds=time.monotonic() - begin,
        engines=[engine for engine in ENGINES if engine != "uring" or HAS_URING], uring=WHY_NOT or "works",
        table=found.table().splitlines(), wrong=found.wrong, hangs=found.hangs,
    )  # fmt: skip
    check(found)
