"""What the pages point at exists: files, headings, tests."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text()):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tests_that_are_named_exist(page: Path) -> None:
    # `...` is the file before, and on the page of faults always the same one.
    always = ROOT / "tests/deploy/test_faults.py" if page.name == "faults.md" else None
    file = ROOT
    for name, test in re.findall(r"`(tests/[\w/]+\.py|\.\.\.)(?:::(\w+))?`", page.read_text()):
        file = ROOT / name if name != "..." else always or file
        assert file.is_file(), name
        assert not test or f"def {test}(" in file.read_text(), test
