"""A file that appears whole or not at all: written beside its place, synced, then renamed into it.

The pages that were written leave the page cache, so that packing a model does not push everything else out of memory.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat

import torch

from memsys.errors import InputError, SpillError

PARTIAL_SUFFIX = ".partial"
_SYNC_BYTES = 64 * 2**20


class Output:
    """The file on its way to `path`. Either `finish` or `abandon` ends it; a process that dies leaves the partial file.

    Raises SpillError for whatever the system refuses; `is_lost` says that what is on disk can't be trusted.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = checked_target(path)
        self.partial = self.path + PARTIAL_SUFFIX
        self.is_lost = False
        self._unsynced_bytes = 0
        self._descriptor = self._open()

    def reserve(self, bytes_: int, is_resumed: bool = False) -> None:
        """Makes the file `bytes_` long and takes its space; unless it is resumed, it is all zeros.

        Raises SpillError naming wanted and free bytes.
        """
        try:
            os.ftruncate(self._descriptor, bytes_ if is_resumed else 0)
        except OSError as error:
            raise self._refused("resizing", 0, error) from error
        state = os.fstat(self._descriptor)
        folder = os.fstatvfs(self._descriptor)
        free_bytes = folder.f_bavail * folder.f_frsize
        held_bytes = state.st_blocks * 512
        if bytes_ - held_bytes > free_bytes:
            raise self._no_space(bytes_ - held_bytes, free_bytes)
        try:
            os.posix_fallocate(self._descriptor, 0, bytes_)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise self._no_space(bytes_ - held_bytes, free_bytes, error.errno) from error
            raise self._refused("reserving space", 0, error) from error

    def write(self, data: torch.Tensor | bytes, offset: int) -> None:
        """Writes all of the bytes (of a contiguous CPU tensor) at `offset`."""
        view = memoryview(data) if isinstance(data, bytes) else bytes_view(data)
        try:
            while len(view) > 0:
                moved = os.pwrite(self._descriptor, view[:_SYNC_BYTES], offset)
                if moved == 0:
                    raise OSError(errno.EIO, "nothing was written")
                view, offset = view[moved:], offset + moved
                self._unsynced_bytes += moved
                if self._unsynced_bytes >= _SYNC_BYTES:
                    self.sync()
        except OSError as error:
            raise error if isinstance(error, SpillError) else self._refused("writing", offset, error) from error

    def read(self, target: torch.Tensor, offset: int) -> int:
        """Reads what was written before into a contiguous CPU tensor; returns how many bytes there were."""
        view, at = bytes_view(target), 0
        try:
            while at < len(view):
                moved = os.preadv(self._descriptor, [view[at:]], offset + at)
                if moved == 0:
                    break
                at += moved
        except OSError as error:
            raise self._refused("reading back", offset + at, error) from error
        return at

    def sync(self) -> None:
        """To the disk, and out of the page cache."""
        self._unsynced_bytes = 0
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            self.is_lost = True  # the system forgets which pages it could not write
            raise self._refused("syncing", 0, error) from error
        os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def finish(self) -> None:
        """Gives the file its name, for good."""
        self.sync()
        try:
            os.rename(self.partial, self.path)
            folder = os.open(os.path.dirname(self.path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise self._refused("renaming", 0, error) from error
        self.close()

    def abandon(self) -> None:
        """Removes what was written."""
        if self._descriptor >= 0:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.partial)
        self.close()

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = -1
        try:
            descriptor = os.open(self.partial, flags, 0o666)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between the two calls its owner may have given the file its name.
            here, there = os.fstat(descriptor), os.stat(self.partial, follow_symlinks=False)
            if (here.st_dev, here.st_ino) != (there.st_dev, there.st_ino) or not stat.S_ISREG(here.st_mode):
                raise OSError(errno.EWOULDBLOCK, "another process has just renamed it, or it is no regular file")
        except OSError as error:
            if descriptor >= 0:
                os.close(descriptor)
            if error.errno == errno.EWOULDBLOCK:
                raise SpillError(error.errno, f"{self.partial}: wanted to be its only writer, found another process "
                                              "writing it; wait for that one") from error  # fmt: skip
            raise self._refused("opening", 0, error) from error
        return descriptor

    def _refused(self, what: str, offset: int, error: OSError) -> SpillError:
        return SpillError(error.errno, f"{self.partial}: {what} at byte {offset}: {error.strerror}; "
                                       "check the disk and call again")  # fmt: skip

    def _no_space(self, wanted_bytes: int, free_bytes: int, number: int = errno.ENOSPC) -> SpillError:
        return SpillError(number, f"{self.partial}: wanted {wanted_bytes} bytes, found {free_bytes} free "
                                  f"({os.strerror(number)}); free some, or choose another folder")  # fmt: skip


def checked_target(path: str | os.PathLike) -> str:
    """The absolute path, if a file may be put there. Raises SpillError for a link, a folder, or a missing folder."""
    path = os.path.abspath(os.fspath(path))
    if not isinstance(path, str):
        raise InputError("a path: wanted text, found bytes; use os.fsdecode")
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        raise SpillError(errno.ENOENT, f"{path}: the folder {folder} is missing; make it first")
    if os.path.islink(path):
        raise SpillError(errno.ELOOP, f"{path}: wanted a place for a file, found a link, which would be replaced; "
                                      "name the file it leads to")  # fmt: skip
    if os.path.exists(path) and not os.path.isfile(path):
        raise SpillError(errno.EISDIR if os.path.isdir(path) else errno.EINVAL,
                         f"{path}: wanted a place for a file, found no regular file; choose another name")  # fmt: skip
    return path


def bytes_view(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, borrowed."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())
