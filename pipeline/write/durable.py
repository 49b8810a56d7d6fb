"""Files that are either whole or absent, whenever the process or the machine stops.

Every write goes to a temporary name in the same folder, is flushed to the disk, and appears under its name in one step:
``create`` with ``os.link`` (fails when the name exists: first one wins), ``replace`` with ``os.replace``. Both work on
local disks and on NFS; folders of object stores have no hard links and are refused with a clear text.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Checkpoint = Callable[[str], None]
    """Called with the name of the step just finished; kill tests stop the process in it."""

TEMP_PREFIX = ".tmp-"


def passed(step: str) -> None:
    """Do nothing: the default checkpoint."""


def local_path(path: str | Path) -> Path:
    """The absolute local path of an output.

    Raises:
        OutputError: A URL. Without rename and conditional create "committed" cannot be told from "half written".
    """
    text = str(path)
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    if "://" in text:
        scheme = text.split("://", 1)[0]
        raise OutputError(
            f"output {scheme}://... cannot be written directly: use a folder of this machine; only the embedding "
            "store may lie elsewhere (store.path)"
        )
    return Path(text).absolute()


def create(path: Path, data: bytes, *, at: Checkpoint = passed) -> bool:
    """Write ``path`` unless it exists; returns False when it did.

    Raises:
        OutputError: The folder cannot be written, or its file system has no hard links.
    """
    temp = _write_temp(path, data)
    at("temp")
    try:
        os.link(temp, path)
    except FileExistsError:
        return False
    except OSError as err:
        raise OutputError(_why(path, err)) from err
    finally:
        temp.unlink(missing_ok=True)
    sync_folder(path.parent)
    return True


def replace(path: Path, data: bytes, *, at: Checkpoint = passed) -> None:
    """Write ``path``, replacing what was there.

    Raises:
        OutputError: The folder cannot be written.
    """
    temp = _write_temp(path, data)
    at("temp")
    try:
        temp.replace(path)
    except OSError as err:
        temp.unlink(missing_ok=True)
        raise OutputError(_why(path, err)) from err
    sync_folder(path.parent)


@contextlib.contextmanager
def placed(path: Path) -> Iterator[Path]:
    """A name to write a large file under; at the end of the block it is flushed and moved to ``path`` in one step.

    The name lies in a folder of its own, so that what a writer keeps beside its file (SQLite's journal) goes with it.
    When the block raises, or writes nothing, ``path`` stays as it was.

    Raises:
        OutputError: The file cannot be written.
    """
    folder = path.with_name(f"{TEMP_PREFIX}{path.name[:80]}-{os.getpid()}-{uuid.uuid4().hex[:8]}")
    temp = folder / path.name
    try:
        folder.mkdir(parents=True)
        yield temp
        if temp.exists():
            sync_file(temp)
            temp.replace(path)
            sync_folder(path.parent)
    except OSError as err:
        raise OutputError(_why(path, err)) from err
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sync_file(path: Path) -> None:
    """Flush a file that somebody else wrote to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(path: Path) -> None:
    """Flush the names in a folder to the disk; file systems that cannot are left alone."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as err:
        if err.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def sweep(folder: Path, *, older_than_s: float, below: bool = True) -> int:
    """Delete temporary files left by killed writers; returns how many. Younger ones may belong to a live writer.

    Args:
        folder: Where to look.
        older_than_s: Since the last change, seconds.
        below: Whether to look into its folders too.
    """
    count = 0
    if not folder.is_dir():
        return count
    pattern = f"{TEMP_PREFIX}*"
    for file in list(folder.rglob(pattern) if below else folder.glob(pattern)):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - file.stat().st_mtime >= older_than_s:
                if file.is_dir():
                    shutil.rmtree(file, ignore_errors=True)
                else:
                    file.unlink()
                count += 1
    return count


@contextlib.contextmanager
def locked(path: Path, *, exclusive: bool) -> Iterator[None]:
    """Hold an advisory lock on the file ``path``; the system drops it when the process dies.

    Raises:
        OutputError: The lock file cannot be made.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as err:
        if err.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            handle = _open_read_only(path)
        else:
            raise OutputError(_why(path, err)) from err
    try:
        if handle >= 0:
            fcntl.flock(handle, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        yield
    finally:
        if handle >= 0:
            os.close(handle)


def _open_read_only(path: Path) -> int:
    """A handle to lock with, or -1: who may only read a published store without a lock file needs none."""
    try:
        return os.open(path, os.O_RDONLY)
    except OSError:
        return -1


def _write_temp(path: Path, data: bytes) -> Path:
    temp = path.with_name(f"{TEMP_PREFIX}{path.name[:80]}-{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temp.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as err:
        with contextlib.suppress(OSError):
            temp.unlink(missing_ok=True)
        raise OutputError(_why(path, err)) from err
    return temp


def _why(path: Path, err: OSError) -> str:
    if err.errno in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
        return f"{path}: this file system has no hard links ({err.strerror}), use a local disk or NFS"
    return f"{path}: cannot be written: {err.strerror or err}"
