"""Files that are written whole or not at all, and their sums."""

import hashlib
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, Union

__all__ = ["all_or_nothing", "atomic_path", "sha256"]


@contextmanager
def atomic_path(path: Union[str, Path]) -> Iterator[Path]:
    """A temporary path beside ``path``, renamed to it at the end, or removed where there was an error.

    Raises:
        OSError: the folder of ``path`` does not exist or cannot be written.
    """
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())  # mkstemp's files are for their owner alone
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def all_or_nothing(output: Path) -> Iterator[Path]:
    """A scratch folder in ``output``, whose files move up at the end; an error leaves ``output`` as it was."""
    made = next((folder for folder in [*reversed(output.parents), output] if not folder.exists()), None)
    try:
        output.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=output, prefix=".export-"))
    except OSError as error:
        raise type(error)(f"cannot write to '{output}' ({error.strerror or error}): choose another folder") from None
    try:
        yield scratch
        for file in sorted(scratch.iterdir()):
            os.replace(file, output / file.name)
        made = None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)


def sha256(path: Union[str, Path]) -> str:
    """The SHA-256 sum of a file, in hexadecimal."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
