"""The documentation: its links lead somewhere, its commands exist, and the front page stays short."""

import re
import shlex
from pathlib import Path
from string import Template
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
    """The words behind `rdpnet` in every command of a page's blocks of shell lines."""
    for language, block in re.findall(r"^```([^\n]*)\n(.*?)^```$", page.read_text(), flags=re.DOTALL | re.MULTILINE):
        if language in ("", "bash", "console", "sh"):
            block = Template(block).safe_substitute(dict(re.findall(r"\b([A-Z]+)=(\S+)", block)))  # what it exports
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True) if "rdpnet " in line else []
                if words[:1] == ["rdpnet"] or words[:2] == ["$", "rdpnet"]:
                    yield words[words.index("rdpnet") + 1 :]


def test_there_are_commands_in_the_documentation() -> None:
    assert sum(len(list(commands(page))) for page in PAGES) >= 50


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_is_one_that_the_parser_takes(page: Path, capsys: pytest.CaptureFixture) -> None:
    for words in commands(page):
        try:
            args = cli.parse(words[: words.index("|")] if "|" in words else words)
            if args.command == "table":
                cli._options_of_runs(args)
        except SystemExit:
            pytest.fail(f"rdpnet {shlex.join(words)}: {capsys.readouterr().err}")


def test_the_front_page_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= 900
