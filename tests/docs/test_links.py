"""Every link between pages, and every page that code, settings and tests name, exists."""

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("tutorials", "how-to", "reference", "explanation")
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"^```.*?^```", re.M | re.S)
COMMENT = re.compile(r"<!--.*?-->", re.S)  # the index names generated pages for the site's navigation in one
LINK = re.compile(r"\]\(([^)\s]+)\)")
NAMED_PAGE = re.compile(r"docs/[\w/.-]*\.md")
NAMED_FILE = re.compile(r"`((?:flexlora|conf|scripts|tests|docs)/[\w/.-]+\.\w+)")


@cache
def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target in LINK.findall(COMMENT.sub("", FENCE.sub("", page.read_text(encoding="utf-8")))):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_exist(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    assert not [name for name in NAMED_FILE.findall(text) if not (ROOT / name).exists()]


def test_pages_that_code_settings_and_tests_name_exist() -> None:
    folders = ("conf", "flexlora", "scripts", "tests")
    files = [file for name in folders for ending in ("*.py", "*.yaml") for file in (ROOT / name).rglob(ending)]
    missing = {
        f"{file.relative_to(ROOT)}: {page}"
        for file in [*files, ROOT / "Makefile", ROOT / "pyproject.toml"]
        for page in NAMED_PAGE.findall(file.read_text(encoding="utf-8"))
        if not (ROOT / page).is_file()
    }
    assert not missing


def test_every_page_is_of_one_kind_and_in_the_index() -> None:
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    linked = {(ROOT / "docs" / target.partition("#")[0]).resolve() for target in LINK.findall(index)}
    pages = {page for page in PAGES if (ROOT / "docs") in page.parents and page.parent != ROOT / "docs"}
    assert {page.parent.name for page in pages} <= set(KINDS)
    assert pages <= linked
