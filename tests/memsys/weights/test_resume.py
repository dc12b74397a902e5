"""What an interruption leaves: the old file or the new one, and work that the next call checks and goes on with."""

import os
import random
from pathlib import Path

import pytest
import torch
from built import needs_memsys
from safetensors.torch import save_file
from weight_files import assert_same_bits, random_bits

needs_memsys()

from fresh_process import output_of  # noqa: E402

from memsys import SpillError, pack_weights  # noqa: E402
from memsys.weights import output  # noqa: E402
from memsys.weights.checked import Weights, open_weights  # noqa: E402

KILL = """
import os, random, signal, sys
import torch
from memsys import pack_weights
from memsys.weights.checked import open_weights
from weight_files import assert_same_bits, random_bits
path, seed = sys.argv[1], int(sys.argv[2])
old = {f"layers.{place}.w": random_bits((2000, 3), torch.int8, place) for place in range(3)}
new = {f"layers.{place}.w": random_bits((300_000 + place,), torch.int8, 100 + place) for place in range(8)}
steps = 0
def counted(function, die_at, after):
    def call(*arguments, **keywords):
        global steps
        steps += 1
        if steps == die_at and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*arguments, **keywords)
        if steps == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return call
def packed(die_at, after=False):
    pid = os.fork()
    if pid == 0:
        for name in ("open", "pwrite", "posix_fallocate", "ftruncate", "fdatasync", "rename", "fsync", "unlink"):
            setattr(os, name, counted(getattr(os, name), die_at, after))
        pack_weights(new, path)
        os._exit(10 + steps)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
def holds(tensors):
    weights = open_weights(path)
    found = {name: weights.read(name) for name in weights.names()}
    if found.keys() == tensors.keys() and found["layers.0.w"].shape == tensors["layers.0.w"].shape:
        assert_same_bits(found, tensors)
        return True
    return False
def fresh():
    pid = os.fork()
    if pid == 0:
        pack_weights(old, path)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
def asked(question):
    pid = os.fork()
    if pid == 0:
        os._exit(0 if question() else 3)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
fresh()
count = packed(-1) - 10
assert count > 12, count
draw = random.Random(seed)
points = sorted(draw.sample(range(1, count + 1), 6)) + [count - 2, count - 1, count]
for point in points:
    fresh()
    assert packed(point, after=draw.random() < 0.5) == -signal.SIGKILL
    is_old, is_new = asked(lambda: holds(old)), asked(lambda: holds(new))
    assert sorted((is_old, is_new)) == [0, 3], (point, is_old, is_new)
    assert packed(-1) > 10
    assert asked(lambda: holds(new)) == 0
    assert os.listdir(os.path.dirname(path)) == [os.path.basename(path)], point
    print(point, "old" if is_old == 0 else "new")
"""


def test_a_kill_leaves_the_old_file_or_the_new(tmp_path: Path) -> None:
    """Killed before or after system calls drawn by seed, and the last three; the next call finishes."""
    seed = random.randrange(2**30)
    print(f"seed {seed}")  # shown when the test fails
    lines = output_of(KILL, tmp_path / "model.safetensors", seed).splitlines()
    assert len(lines) == 9
    assert {line.split()[1] for line in lines} == {"old", "new"}


class Interrupt:
    """Stands in for os.pwrite: interrupts the writing of a tensor after so many."""

    def __init__(self, monkeypatch, count: int, error: BaseException) -> None:
        self.count, self.error, self.write = count, error, os.pwrite
        monkeypatch.setattr(output.os, "pwrite", self)

    def __call__(self, descriptor: int, data: memoryview, offset: int) -> int:
        self.count -= 1
        if self.count < 0:
            raise self.error
        return self.write(descriptor, data, offset)


def interrupted(monkeypatch, source: object, path: Path, error: BaseException | None = None) -> None:
    """Packs until three tensors are finished, at one write a tensor."""
    with monkeypatch.context() as patch:
        Interrupt(patch, 3, error or KeyboardInterrupt())
        with pytest.raises((KeyboardInterrupt, SpillError)):
            pack_weights(source, path)


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), OSError(28, "No space left on device"), OSError(5, "I/O error")]
)
def test_packing_goes_on_where_it_was_interrupted(error: BaseException, tmp_path: Path, monkeypatch) -> None:
    tensors = {f"{place}.w": random_bits((5000,), torch.uint8, place) for place in range(6)}
    save_file(tensors, tmp_path / "source.safetensors")
    path = tmp_path / "a.safetensors"
    interrupted(monkeypatch, tmp_path / "source.safetensors", path, error)
    assert sorted(os.listdir(tmp_path)) == [
        "a.safetensors.partial",
        "a.safetensors.partial.journal",
        "source.safetensors",
    ]
    read = []
    real = Weights.read
    monkeypatch.setattr(Weights, "read", lambda self, name: (read.append(name), real(self, name))[1])
    pack_weights(tmp_path / "source.safetensors", path)
    assert read == ["3.w", "4.w", "5.w"]
    monkeypatch.undo()
    weights = open_weights(path)
    assert_same_bits({name: weights.read(name) for name in weights.names()}, tensors)
    assert sorted(os.listdir(tmp_path)) == ["a.safetensors", "source.safetensors"]


@pytest.mark.parametrize("damage", ["none", "data", "journal", "no journal", "cut", "other source"])
def test_what_was_left_is_not_believed(damage: str, tmp_path: Path, monkeypatch) -> None:
    """Only bytes with the right checksums are kept, and only if they are this source's."""
    tensors = {f"{place}.w": random_bits((5000,), torch.uint8, place) for place in range(6)}
    path = tmp_path / "a.safetensors"
    interrupted(monkeypatch, tensors, path)
    partial, journal = Path(f"{path}.partial"), Path(f"{path}.partial.journal")
    data, lines = partial.read_bytes(), journal.read_bytes()
    if damage == "data":
        partial.write_bytes(flip(data, len(data) // 3))
    elif damage == "journal":
        journal.write_bytes(flip(lines, len(lines) - 20))
    elif damage == "no journal":
        journal.unlink()
    elif damage == "cut":
        os.truncate(partial, 6000)
    elif damage == "other source":
        tensors = {name: tensor ^ 1 for name, tensor in tensors.items()}
    pack_weights(tensors, path)
    weights = open_weights(path)
    assert_same_bits({name: weights.read(name) for name in weights.names()}, tensors)
    assert os.listdir(tmp_path) == ["a.safetensors"]


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def test_a_source_that_changed_starts_anew(tmp_path: Path, monkeypatch) -> None:
    """Of files the times and sizes tell, so that finished tensors are not read again. Nothing old is left."""
    source, path = tmp_path / "source.safetensors", tmp_path / "a.safetensors"
    save_file({f"{place}.w": random_bits((5000,), torch.uint8, place) for place in range(6)}, source)
    interrupted(monkeypatch, source, path)
    changed = {f"{place}.w": random_bits((3000,), torch.uint8, 50 + place) for place in range(6)}
    save_file(changed, source)
    pack_weights(source, path)
    pack_weights(source, tmp_path / "fresh.safetensors")
    assert path.read_bytes() == (tmp_path / "fresh.safetensors").read_bytes()
    weights = open_weights(path)
    assert_same_bits({name: weights.read(name) for name in weights.names()}, changed)
