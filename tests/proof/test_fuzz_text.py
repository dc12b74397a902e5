"""Fuzz of what people write and of what memsys saves: budgets, and the files of plans and traces.

A budget's text gives the bytes that exact arithmetic gives, or its one error. A saved file that was altered anywhere is
refused by InputError, or loads to the same value; one that was altered and signed again may load, and then it can be
shown and simulated, or is refused by an error of memsys.
"""

from __future__ import annotations

import copy
import json
import random
import re
import time
from fractions import Fraction
from pathlib import Path

import proof
import pytest
from built import needs_memsys
from plan_files import signed
from step_traces import decoder_trace

needs_memsys()

from memsys.budget import BudgetFormatError, parse_budget  # noqa: E402
from memsys.errors import InputError, MemsysError  # noqa: E402
from memsys.planning.addresses import AddressPlan, plan_addresses  # noqa: E402
from memsys.planning.plan import Plan  # noqa: E402
from memsys.planning.solve import solve  # noqa: E402
from memsys.planning.swap_plan import Budgets, Hardware, Link  # noqa: E402
from memsys.planning.trace import Request  # noqa: E402

pytestmark = pytest.mark.proof

SEED, STRINGS_IN_EARNEST, FILES_IN_EARNEST = 61, 1_000_000, 20_000
FREE_BYTES = 123_456_789
UNITS = {"": 1, "b": 1, "bytes": 1} | {f"{letter}b": 1000**power for power, letter in enumerate("kmgtp", 1)}
UNITS |= {f"{letter}ib": 1024**power for power, letter in enumerate("kmgtp", 1)}
MARKS = [
    *UNITS,
    "%",
    " ",
    "\t",
    "\n",
    ".",
    "-",
    "+",
    "e",
    "E9",
    "_",
    ",",
    "inf",
    "nan",
    "0x",
    "٣",
    "²",
    "\0",
    "Gi",
    "KiB",
    "GB",
]


def drawn_number(rng: random.Random) -> str:
    kind = rng.randrange(6)
    if kind == 0:
        return str(rng.choice([0, 1, 100, 101, 2**63, 2**63 - 1, 2**64]) + rng.randint(-1, 1))
    if kind == 1:
        return "".join(rng.choices("0123456789", k=rng.choice([1, 3, 20, 60, 101, 5000])))
    if kind == 2:
        return f"{rng.randint(0, 999)}.{rng.randint(0, 10**6)}"
    return str(rng.randint(0, 10 ** rng.randint(1, 21)))


def drawn_budget(rng: random.Random) -> str:
    text = drawn_number(rng) + rng.choice(["", " "]) + rng.choice([*UNITS, "%"])
    if rng.random() < 0.3:
        text = "".join(letter.upper() if rng.random() < 0.5 else letter for letter in text)
    for _ in range(rng.choice([0, 0, 0, 1, 2, 4])):
        at = rng.randint(0, len(text))
        text = text[:at] + rng.choice([*MARKS, chr(rng.randrange(0xD800))]) + text[at + rng.randint(0, 2) :]
    return text


def exact_budget(text: str) -> int | None:
    """What the text means, by rules of its own; None for what means nothing."""
    found = re.match(r"^[ \t\n\r\f\v]*([0-9]+)(\.([0-9]+))?[ \t\n\r\f\v]*([A-Za-z]*|%)[ \t\n\r\f\v]*\Z", text)
    if found is None or len(text) > 100:
        return None
    number = Fraction(int(found[1] + (found[3] or "")), 10 ** len(found[3] or ""))
    if found[4] == "%":
        return int(number * FREE_BYTES / 100) if number <= 100 else None
    unit = UNITS.get(found[4].lower())
    if unit is None or (unit == 1 and number.denominator != 1):
        return None
    return int(number * unit) if int(number * unit) < 2**63 else None


def fuzz_budgets(rng: random.Random, count: int) -> int:
    """How many of the texts mean something."""
    accepted = 0
    for _ in range(count):
        text = drawn_budget(rng)
        try:
            found = parse_budget(text, lambda: FREE_BYTES)
        except BudgetFormatError as error:
            found = None
            if "accepted:" not in str(error) or len(str(error)) > 900:
                pytest.fail(f"{text!r}: {error}")
        if found != exact_budget(text):
            pytest.fail(f"{text!r} gives {found}, wanted {exact_budget(text)}")
        accepted += found is not None
    return accepted


def saved(folder: Path) -> dict[type, Path]:
    """A file of each kind."""
    trace, hardware = decoder_trace(), Hardware(Link(2e9, 1e9, 2.5e9, 3.0, 0.1), Link(4e9, 4e9))
    budgets = Budgets(int(0.4 * trace.saved_bytes), trace.saved_bytes)
    requests = [Request(1000 * (1 + step % 3), step, step + 5, layer=step // 4) for step in range(16)]
    swap = solve(trace, hardware, budgets)
    values = [Plan(trace, swap, budgets, hardware, 65536), swap, trace, plan_addresses(requests)]
    paths = {type(value): folder / f"{type(value).__name__}.json" for value in values}
    for value, path in zip(values, paths.values(), strict=True):
        value.save(path)
    return paths


def altered_text(rng: random.Random, text: bytes) -> bytes:
    """One byte, or one stretch, is another, is gone, or is there twice."""
    at, count = rng.randrange(len(text)), rng.choice([1, 1, 1, rng.randint(1, 40)])
    kind = rng.randrange(5)
    if kind == 0:
        return text[:at] + bytes([text[at] ^ 1 << rng.randrange(8)]) + text[at + 1 :]
    if kind == 1:
        return text[:at] + text[at + count :]
    if kind == 2:
        return text[:at] + text[at : at + count] + text[at:]
    if kind == 3:
        return text[:at]
    return text[:at] + rng.choice([b"0", b"9", b" ", b"-", b'"', b"]", b"}", b",", b"e5", b"NaN", b"null"]) + text[at:]


VALUES = [
    None,
    True,
    -1,
    0,
    1,
    2**31,
    2**63,
    10**400,
    0.5,
    -0.0,
    1e300,
    "",
    "keep",
    "file",
    "rows",
    [],
    [0],
    {},
    {"0": 0},
]


def altered_value(rng: random.Random, body: object) -> object:
    """One field, however deep, is another, is gone, or has a stranger beside it."""
    body = copy.deepcopy(body)
    at = body
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        if not keys:
            break
        key = rng.choice(keys)
        if isinstance(at[key], dict | list) and at[key] and rng.random() < 0.85:
            at = at[key]
            continue
        change = rng.randrange(6)
        if change == 0:
            del at[key]
        elif change == 1 and isinstance(at, list):
            at.insert(key, copy.deepcopy(rng.choice(at)))
        elif change == 2 and isinstance(at, dict):
            at[rng.choice(["index", "0", "stranger"])] = rng.choice(VALUES)
        elif change == 3 and isinstance(at[key], int | float):
            at[key] = at[key] * rng.choice([-1, 0, 2, 1000]) + rng.choice([-1, 0, 1])
        else:
            at[key] = rng.choice(VALUES)
        break
    return body


def fuzz_texts(rng: random.Random, folder: Path, count: int) -> dict[str, int]:
    """Alters files without signing them."""
    paths, told = saved(folder), {"refused": 0, "same": 0}
    wanted = {kind: (kind.load(path), path.read_bytes()) for kind, path in paths.items()}
    for _ in range(count):
        kind = rng.choice(list(paths))
        value, text = wanted[kind]
        changed = altered_text(rng, text)
        paths[kind].write_bytes(changed)
        try:
            found = kind.load(paths[kind])
        except InputError:
            told["refused"] += 1
            continue
        if found != value:
            pytest.fail(f"{kind.__name__} loads to another value from {changed!r}")
        told["same"] += 1
    return told


def use(value: object) -> None:
    """Whatever loads can be shown, and a plan simulated."""
    str(value)
    if isinstance(value, Plan):
        value.schedule()


def fuzz_values(rng: random.Random, folder: Path, count: int) -> dict[str, int]:
    """Alters values, and signs the file as memsys would."""
    paths, told = saved(folder), {"refused": 0, "loaded": 0, "refused later": 0}
    bodies = {kind: json.loads(path.read_text()) for kind, path in paths.items()}
    for _ in range(count):
        kind = rng.choice(list(paths))
        found = bodies[kind]
        body = altered_value(rng, found["body"])
        paths[kind].write_text(signed(found["format"], body))
        try:
            value = kind.load(paths[kind])
        except InputError:
            told["refused"] += 1
            continue
        told["loaded"] += 1
        try:
            use(value)
        except MemsysError:
            told["refused later"] += 1
        except Exception as error:
            error.add_note(f"{kind.__name__} from a file that was signed: {paths[kind]}")
            raise
    return told


def test_budgets_mean_what_they_say() -> None:
    accepted = fuzz_budgets(random.Random(SEED), 20_000)
    assert 4_000 < accepted < 16_000


def test_an_altered_file_is_refused_or_the_same(tmp_path: Path) -> None:
    told = fuzz_texts(random.Random(SEED), tmp_path, 1_000)
    assert told["refused"] > 700 and told["same"] > 0


def test_a_signed_alteration_is_refused_or_usable(tmp_path: Path) -> None:
    told = fuzz_values(random.Random(SEED), tmp_path, 1_000)
    assert told["refused"] > 300 and told["loaded"] > 100


def test_every_byte_of_a_plan_counts(tmp_path: Path) -> None:
    """Each byte in turn is exchanged by another: refused, or the same plan."""
    path = saved(tmp_path)[AddressPlan]
    plan, text = AddressPlan.load(path), path.read_bytes()
    for at in range(len(text)):
        path.write_bytes(text[:at] + bytes([text[at] ^ 1]) + text[at + 1 :])
        try:
            assert AddressPlan.load(path) == plan, at
        except InputError:
            continue


@pytest.mark.nightly
@pytest.mark.timeout(3 * 3600)
def test_a_million_budgets_and_twenty_thousand_files(tmp_path: Path) -> None:
    begin, rng = time.monotonic(), random.Random(SEED + 1)
    accepted = fuzz_budgets(rng, STRINGS_IN_EARNEST)
    texts = fuzz_texts(rng, tmp_path, FILES_IN_EARNEST // 2)
    values = fuzz_values(rng, tmp_path, FILES_IN_EARNEST // 2)
    proof.record("R7", "strings", measure="budget strings and altered plan files: right, or the typed error",
                 figure=f"{STRINGS_IN_EARNEST:,} strings, {FILES_IN_EARNEST:,} files",
                 target="no other error, no other value", is_met=True, seconds=time.monotonic() - begin,
                 seed=SEED + 1, accepted_budgets=accepted, altered_texts=texts, signed_values=values)  # fmt: skip
