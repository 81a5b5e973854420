"""The pages of tables in the documentation, and their pictures, from the results of ``rdpnet bench``."""

import json
import shutil
from pathlib import Path
from typing import List

from ..files import atomic_path
from .plots import draw
from .report import markdown

__all__ = ["update"]


def update(directory: Path, pages: Path) -> List[Path]:
    """Write ``TABLE.md`` into the folder ``pages`` for each result in ``directory``, its picture beside it.

    Raises:
        FileNotFoundError: there is no result in ``directory``.
    """
    sources = sorted(directory.glob("*.json"))
    if not sources:
        raise FileNotFoundError(f"expected results of 'rdpnet bench' (TABLE.json) in '{directory}', found none")
    pages.mkdir(parents=True, exist_ok=True)
    written = []
    for source in sources:
        result = json.loads(source.read_text(encoding="utf-8"))
        heading, body = markdown(result, details=False, ties=False).split("\n\n", 1)
        for picture in draw(result, directory):
            shutil.copyfile(picture, pages / f"{source.stem}.png")
            body = f"![{result['title']}]({source.stem}.png)\n\n{body}"
        with atomic_path(pages / f"{source.stem}.md") as path:
            path.write_text(f"{heading.removeprefix('##')}\n\n{body}", encoding="utf-8")
        written.append(pages / f"{source.stem}.md")
    return written
