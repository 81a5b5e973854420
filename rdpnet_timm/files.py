"""Files that are written whole or not at all, their sums, and where the files lie that come with the package."""

import errno
import hashlib
import os
import shutil
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Iterator, List, Optional, Union

__all__ = [
    "all_or_nothing",
    "atomic_path",
    "configs",
    "copy_configs",
    "read_lines",
    "recipes",
    "require_writable",
    "sha256",
]

PACKAGE = Path(__file__).resolve().parent


@contextmanager
def atomic_path(path: Union[str, Path]) -> Iterator[Path]:
    """A temporary path beside ``path``, renamed to it at the end, or removed where there was an error.

    Raises:
        OSError: the folder of ``path`` does not exist or cannot be written.
    """
    path = Path(path)
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    except OSError as error:
        raise _renamed(error, path) from None
    os.close(handle)
    temporary = Path(name)
    try:
        with _explained(temporary, path):
            yield temporary
            temporary.chmod(0o666 & ~_umask())  # mkstemp's files are for their owner alone
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _renamed(error: OSError, path: Path) -> OSError:
    return type(error)(error.errno, error.strerror or str(error), str(path))


@contextmanager
def _explained(temporary: Path, path: Path) -> Iterator[None]:
    """Let errors speak of ``path`` rather than of the temporary name, and say so where the disk is full.

    Not every library passes the system's own words on: on a full disk torch reports an unexpected position.
    """
    try:
        yield
    except Exception as error:
        if _is_full(error, temporary.parent):
            full = OSError(f"cannot write '{path}': the disk is full; free some space, or choose another folder")
            full.errno = errno.ENOSPC
            raise full from error
        if isinstance(error, OSError) and error.filename is not None:
            raise _renamed(error, Path(str(error.filename).replace(str(temporary), str(path)))) from error
        error.args = tuple(
            each.replace(str(temporary), str(path)) if isinstance(each, str) else each for each in error.args
        )
        raise


def _is_full(error: BaseException, folder: Path) -> bool:
    """Whether an error came of a full disk; its own number tells, or a trial."""
    chain: Optional[BaseException] = error
    while chain is not None:
        if isinstance(chain, OSError) and chain.errno is not None:
            return chain.errno in (errno.ENOSPC, errno.EDQUOT)
        chain = chain.__cause__ or chain.__context__
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(1 << 16))
    except OSError as trial:
        return trial.errno in (errno.ENOSPC, errno.EDQUOT)
    return False


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def all_or_nothing(output: Path) -> Iterator[Path]:
    """A scratch folder in ``output``, whose files move up at the end; an error leaves ``output`` as it was.

    Raises:
        OSError: ``output`` cannot be written, or a folder has the name of a file.
    """
    made = [folder for folder in (output, *output.parents) if not folder.exists()]
    require_writable(output)
    scratch = Path(tempfile.mkdtemp(dir=output, prefix=".export-"))
    try:
        with _explained(scratch, output):
            yield scratch
            files = {file: output / file.name for file in sorted(scratch.iterdir())}
            for target in files.values():
                if target.is_dir():
                    raise IsADirectoryError(f"cannot write '{target}': it is a folder; move it, or choose another one")
            for file, target in files.items():
                os.replace(file, target)
        made = []
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        with suppress(OSError):  # others may have written there since
            for folder in made:
                folder.rmdir()


def require_writable(output: Path) -> None:
    """Make the folder ``output`` where needed, before the work whose results go there.

    Raises:
        OSError: it cannot be made, or nothing can be written to it.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as error:
        raise type(error)(f"cannot write to '{output}' ({error.strerror or error}): choose another folder") from None


def read_lines(path: Union[str, Path]) -> List[str]:
    """The lines of a text in UTF-8, without the mark that Windows' editors put in front.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"'{path}' is no text in UTF-8 ({error}): save it as that") from None


def sha256(path: Union[str, Path]) -> str:
    """The SHA-256 sum of a file, in hexadecimal."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def configs() -> Path:
    """The folder of OpenMMLab configs: the wheel's, where mim looks for them, else that of the source tree."""
    return _shipped(".mim/configs", "mm_configs")


def recipes() -> Path:
    """The folder of recipes for timm's train.py: the wheel's, else that of the source tree."""
    return _shipped("recipes", "recipes")


def _shipped(in_wheel: str, in_source: str) -> Path:
    for folder in (PACKAGE / in_wheel, PACKAGE.parent / in_source):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"neither '{in_wheel}' in {PACKAGE} nor '{in_source}' beside it: reinstall rdpnet-timm")


def copy_configs(folder: Path) -> List[Path]:
    """Copy configs and recipes to ``folder/mm_configs`` and ``folder/recipes``, and return these two.

    Raises:
        FileExistsError: one of the two exists; nothing is copied then.
    """
    sources = {folder / "mm_configs": configs(), folder / "recipes": recipes()}
    for target in sources:
        if target.exists() or target.is_symlink():
            raise FileExistsError(f"{target} exists, and is never overwritten: name another folder, or move it away")
    with all_or_nothing(folder) as scratch:
        for target, source in sources.items():
            shutil.copytree(
                source, scratch / target.name, ignore=shutil.ignore_patterns("__pycache__", "*.sh")
            )  # which run in a clone
    return list(sources)
