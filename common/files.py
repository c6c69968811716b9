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
        if callable(content):
            content(temporary)
        else:
            temporary.write_bytes(content)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def write_json(path: Path, content: dict) -> None:
    """Indented JSON without NaN (see `finite_or_none`), written atomically."""
    write_atomically(path, (json.dumps(finite_or_none(content), indent=2) + "\n").encode())


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
