"""The journal: what it remembers, and that a line cut or changed ends what counts."""

import errno
import io
import os
from pathlib import Path

import pytest
from built import needs_memsys

needs_memsys()

from memsys import SpillError  # noqa: E402
from memsys.weights import journal  # noqa: E402
from memsys.weights.journal import Journal  # noqa: E402

PURPOSE = {"version": 1, "layout": "abc", "source": [["path", 1, 2]]}


def journal_of(path: Path, purpose: dict[str, object] = PURPOSE) -> list[bytes]:
    journal = Journal(str(path), purpose)
    journal.close()
    return journal.finished


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Beside it lies a journal of three tensors, one of them of no bytes."""
    journal = Journal(str(tmp_path / "a"), PURPOSE)
    for checksums in (b"1111", b"", b"33334444"):
        journal.append(checksums)
    journal.close()
    return tmp_path / "a"


def test_it_remembers(path: Path) -> None:
    assert journal_of(path) == [b"1111", b"", b"33334444"]


def test_a_journal_that_cannot_be_read_or_cut_is_told_and_closed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "refused")

    for name in ("readall", "truncate"):
        with monkeypatch.context() as patch:
            kind = type(name, (io.FileIO,), {name: refuse})
            patch.setattr(journal, "open", lambda file, *_, kind=kind, **__: kind(file, "r+b"), raising=False)
            before = len(os.listdir("/proc/self/fd"))
            with pytest.raises(SpillError, match="journal"):
                Journal(str(path), PURPOSE)
            assert len(os.listdir("/proc/self/fd")) == before
    assert journal_of(path) == [b"1111", b"", b"33334444"]


def test_another_purpose_empties_it(path: Path) -> None:
    assert journal_of(path, {**PURPOSE, "source": None}) == []
    assert journal_of(path) == []


def test_what_is_cut_stays_cut(path: Path) -> None:
    journal = Journal(str(path), PURPOSE)
    journal.cut(1)
    journal.append(b"5555")
    journal.close()
    assert journal_of(path) == [b"1111", b"5555"]


@pytest.mark.parametrize("lost", [1, 2, 10, 21])
def test_a_torn_line_does_not_count_and_is_written_again(lost: int, path: Path) -> None:
    """Also one of which only the end of the line is missing: the next line would stick to it."""
    file = f"{path}.partial.journal"
    os.truncate(file, os.path.getsize(file) - lost)
    journal = Journal(str(path), PURPOSE)
    assert journal.finished == [b"1111", b""]
    journal.append(b"6666")
    journal.close()
    assert journal_of(path) == [b"1111", b"", b"6666"]


@pytest.mark.parametrize("line", [b"[]", b'{"crc": 3}', b'{"crc": "*"}', b"{}", b"\xff", b"[" * 100_000])
def test_a_line_that_says_nothing_ends_it(line: bytes, path: Path) -> None:
    with open(f"{path}.partial.journal", "ab") as file:
        file.write(line + b"\n" + b'{"crc": "MTExMQ=="}\n')
    assert journal_of(path) == [b"1111", b"", b"33334444"]


def test_it_goes_away(path: Path) -> None:
    journal = Journal(str(path), PURPOSE)
    journal.remove()
    journal.remove()
    assert os.listdir(path.parent) == []
