"""Files that are replaced as a whole: a reader sees the old one or the new one, whenever the writer is killed."""

import errno
import json
import math
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from common.errors import BadInput


def write_atomically(path: Path, content: bytes | Callable[[Path], None]) -> None:
    """Write beside `path`, flush to disk, rename over. Raises OSError; a temporary file does not outlive an exception.

    content: the bytes, or what is called with the temporary path and writes the file there.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        # What a writer that was killed has left may be a second name of a file that is still needed: not to be written into.
        temporary.unlink(missing_ok=True)
        if callable(content):
            content(temporary)
        else:
            temporary.write_bytes(content)
        flush_to_disk(temporary)
        os.replace(temporary, path)
        temporary.unlink(missing_ok=True)  # of two names of one file, replace keeps both
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    with suppress(OSError):  # not every file system can flush a folder
        flush_to_disk(path.parent)  # the new name too is then there after a power cut


def flush_to_disk(path: Path) -> None:
    """Have the disk hold what was written to a file, or the names in a folder. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def copy_atomically(source: Path, path: Path) -> None:
    """Give `path` the content that `source` has now: by a second name for the same file, which needs no space, where the file
    system can do that. `source` must be replaced as a whole later, never written into. Raises OSError."""

    def second_name(temporary: Path) -> None:
        try:
            os.link(source, temporary)
        except OSError:
            temporary.write_bytes(source.read_bytes())

    write_atomically(path, second_name)


def write_json(path: Path, content: dict) -> None:
    """Indented JSON without NaN (see `finite_or_none`), written atomically."""
    write_atomically(path, (json.dumps(finite_or_none(content), indent=2) + "\n").encode())


def check_folder(path: Path) -> None:
    """As far as can be told without writing: the folder, or the nearest place above it that exists, takes new files. Raises
    OSError where a file or a link to nowhere is in the way, a right is missing, or the name cannot be one."""
    place = path.absolute()
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    if not os.path.isdir(place):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    if not os.access(place, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    with suppress(FileNotFoundError):
        os.stat(path)


def require_writable(path: Path, flag: str) -> None:
    """Make the folder of a file that is to be written after long work; BadInput now where it cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise BadInput(f"{flag} {path} cannot be written: {error.strerror or error}") from None


def finite_or_none(value):
    """JSON has no NaN: undefined numbers become null, at any depth."""
    if isinstance(value, dict):
        return {key: finite_or_none(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_none(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
