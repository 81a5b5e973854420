"""The tables and pictures of a page of the documentation, from the results of ``rdpnet bench``."""

import json
import shutil
from pathlib import Path
from typing import Mapping

from .plots import draw
from .report import markdown

__all__ = ["splice", "update"]


def splice(document: str, results: Mapping[str, str]) -> str:
    """Replace what stands between ``<!-- NAME -->`` and ``<!-- /NAME -->`` by the Markdown of table NAME."""
    for name, text in results.items():
        before, start, rest = document.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- /{name} -->")
        if end:
            document = f"{before}{start}\n{text}\n{end}{after}"
    return document


def update(directory: Path, document: Path) -> None:
    """Put the results in ``directory`` into ``document``, and their pictures into the folder ``images`` beside it."""
    results = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(directory.glob("*.json"))}
    bodies = {name: markdown(result, details=False, ties=False) for name, result in results.items()}
    tables = {name: body.split("\n\n", 1)[1] for name, body in bodies.items()}  # the document has its own headings
    for name in tables:
        for picture in draw(results[name], directory):
            shutil.copyfile(picture, document.parent / "images" / f"bench_{name}.png")
            tables[name] = f"![{results[name]['title']}](images/bench_{name}.png)\n\n{tables[name]}"
    document.write_text(splice(document.read_text(encoding="utf-8"), tables), encoding="utf-8")
