"""Which tensors of a partial file are finished, so that packing goes on where it was interrupted.

Nothing here is believed by itself: a tensor is finished if the bytes in the file have the checksums of its line. So the
journal needs no care about the order in which the system brings it and the data to the disk.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os

from memsys.errors import SpillError

JOURNAL_SUFFIX = ".partial.journal"


class Journal:
    """The file beside the partial one: a line that says what is being packed, then one line a finished tensor.

    `finished` holds each finished tensor's checksums. A journal of something else is emptied.
    """

    def __init__(self, path: str, purpose: dict[str, object]) -> None:
        self.path = path + JOURNAL_SUFFIX
        self.finished: list[bytes] = []
        self._ends: list[int] = []
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self._file = open(os.open(self.path, flags, 0o666), "r+b", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise self._refused(error) from error
        try:
            self._read(purpose)
        except BaseException:
            self.close()
            raise

    def append(self, checksums: bytes) -> None:
        """Notes that the next tensor is written."""
        self._write({"crc": base64.b64encode(checksums).decode("ascii")})
        self.finished.append(checksums)

    def cut(self, count: int) -> None:
        """Forgets all but the first `count` tensors."""
        del self.finished[count:], self._ends[count + 1 :]
        self._truncate(self._ends[-1])

    def remove(self) -> None:
        """Removes the file, which nobody needs any more."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
        self.close()

    def close(self) -> None:
        self._file.close()

    def _read(self, purpose: dict[str, object]) -> None:
        end = 0
        try:
            lines = self._file.readall().splitlines(keepends=True)
        except OSError as error:
            raise self._refused(error) from error
        for line in lines:
            if not self._ends and _decode(line) != purpose:
                break
            if self._ends:
                checksums = _checksums_in(line)
                if checksums is None:
                    break
                self.finished.append(checksums)
            end += len(line)
            self._ends.append(end)
        self._truncate(end)
        if not self._ends:
            self._write(purpose)

    def _write(self, value: dict[str, object]) -> None:
        line = _encode(value)
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            raise self._refused(error) from error
        self._ends.append(self._file.tell())

    def _truncate(self, end: int) -> None:
        try:
            self._file.truncate(end)
            self._file.seek(end)
        except OSError as error:
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> SpillError:
        return SpillError(error.errno, f"{self.path}: {error.strerror}; check the disk and call again")


def _encode(value: dict[str, object]) -> bytes:
    return json.dumps(value).encode("ascii") + b"\n"


def _decode(line: bytes) -> object:
    """What a whole line says; None for one that was cut or changed."""
    try:
        return json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None


def _checksums_in(line: bytes) -> bytes | None:
    try:
        return base64.b64decode(_decode(line)["crc"], validate=True)
    except (KeyError, TypeError, ValueError):
        return None
