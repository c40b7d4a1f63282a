"""Files are written whole or not at all."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

__all__ = ["write_whole"]


def write_whole(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write ``content`` so that a reader sees the old file or the new one, never a part.

    Parameters
    ----------
    path
        Target; its folder must exist. The permissions of an existing file are kept.
    content
        Text, written as UTF-8, or bytes.

    Raises
    ------
    FileNotFoundError
        The folder does not exist.
    IsADirectoryError
        ``path`` is a folder.
    OSError
        It cannot be written (the disk is full, no permission); the message names the file and says why.
    """
    target = Path(path)
    if target.is_symlink():
        target = target.resolve()  # replace what the link points to, not the link
    if target.is_dir():
        raise IsADirectoryError(f"'{target}' is a folder; name a file in it")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"the folder '{target.parent}' does not exist; make it or write elsewhere")
    mode = target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~_umask()
    data = content.encode() if isinstance(content, str) else content
    temporary: str | None = None
    try:
        # The temporary file lies in the same folder: os.replace is atomic only within one file system.
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, target)
    except BaseException as error:
        if temporary is not None:
            os.unlink(temporary)
        if isinstance(error, OSError) and error.errno is not None:  # the system names no file when a disk is full
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            room = f" for {len(data)} bytes; make room or write elsewhere" if full else ""
            raise OSError(error.errno, f"not written, {error.strerror}{room}", str(target)) from error
        raise


def _umask() -> int:
    # The mask can only be read by setting it; mkstemp files are private, ours should be as private as others.
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
