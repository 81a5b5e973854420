"""The pages of tables in the documentation, and their pictures, from the results of ``rdpnet bench``."""

import json
from pathlib import Path
from typing import List

from ..extras import require_all
from ..files import atomic_path, require_writable
from .plots import draw
from .report import markdown
from .run import NAMES

__all__ = ["update"]


def update(directory: Path, pages: Path) -> List[Path]:
    """Write ``TABLE.md`` into the folder ``pages`` for each table's result in ``directory``, its picture beside it.

    Raises:
        FileNotFoundError: there is no result in ``directory``.
        ImportError: matplotlib is not installed.
        OSError: nothing can be written to ``pages``.
        ValueError: a result is not whole, or ``pages`` is ``directory``.
    """
    sources = [path for name in sorted(NAMES) if (path := directory / f"{name}.json").is_file()]
    if not sources:
        raise FileNotFoundError(f"expected results of 'rdpnet bench' (TABLE.json) in '{directory}', found none")
    require_all(("matplotlib",), "rdpnet bench docs", "bench")
    require_writable(pages)
    if pages.samefile(directory):
        raise ValueError(
            f"'{pages}' holds the results, whose own TABLE.md have every figure, which a page has not: name another "
            "folder for the pages"
        )
    written = []
    for source in sources:
        try:
            result = json.loads(source.read_text(encoding="utf-8"))
            heading, body = markdown(result, details=False, ties=False).split("\n\n", 1)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            what = f"{type(error).__name__}: {error}"
            raise ValueError(f"'{source}' is not a whole result of 'rdpnet bench' ({what})") from None
        for picture in draw(result, pages):
            body = f"![{result['title']}]({picture.name})\n\n{body}"
        with atomic_path(pages / f"{source.stem}.md") as path:
            path.write_text(f"{heading.removeprefix('##')}\n\n{body}", encoding="utf-8")
        written.append(pages / f"{source.stem}.md")
    return written
