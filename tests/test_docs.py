"""The documentation: its links lead somewhere, its commands exist, and the front page stays short."""

import re
import shlex
from pathlib import Path
from typing import Iterator, List

import pytest

from rdpnet_timm import cli

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])

pytestmark = pytest.mark.skipif(not (ROOT / "README.md").exists(), reason="needs the source tree")


def anchors(page: Path) -> set:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_are_there(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{target} is not there"
        assert not anchor or anchor in anchors(linked), f"{target}: {sorted(anchors(linked))}"


def commands(page: Path) -> Iterator[List[str]]:
    """The words of every `rdpnet` command in a page's blocks of shell lines."""
    for block in re.findall(r"^```(?:bash|sh|console)?\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            if line.removeprefix("$ ").startswith("rdpnet "):
                yield shlex.split(line.removeprefix("$ "), comments=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_their_options_exist(page: Path, capsys: pytest.CaptureFixture) -> None:
    for words in commands(page):
        two = words[1] == "bench" and words[2].startswith(("int8", "docs"))
        with pytest.raises(SystemExit) as ended:
            cli.main([*words[1 : 3 if two else 2], "--help"])
        described = capsys.readouterr().out
        assert ended.value.code == 0, words
        options = [word.split("=")[0] for word in words[2:] if re.match(r"--?[a-z]", word)]
        assert "all other options" in described or all(option in described for option in options), words


def test_the_front_page_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= 900
