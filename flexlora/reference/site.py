"""The hooks of the documentation site: `mkdocs.yml` names this file.

They add the generated pages and the pages at the top of the repository, and lead links between both to the right place.
The index `docs/README.md` is also the navigation.
"""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url

from flexlora.reference.api_page import api_page
from flexlora.reference.methods_page import methods_page
from flexlora.reference.settings_page import settings_page

GENERATED = {
    "reference/all-settings.md": settings_page,
    "reference/all-methods.md": methods_page,
    "reference/api.md": api_page,
}
TOP = ("CONTRIBUTING.md", "CHANGELOG.md")
"""Pages at the top of the repository that the site shows too."""
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s#]*)(#[^)\s]*)?\)")
INDEX_LINK = re.compile(r"\[([^\]]+)\]\(([^)]+\.md)\)")
OTHER = ("http://", "https://", "mailto:")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Make the navigation from the sections and links of the index."""
    nav: list[dict[str, object]] = [{"Home": "README.md"}]
    for section in (Path(config.docs_dir) / "README.md").read_text(encoding="utf-8").split("\n## ")[1:]:
        title, _, text = section.partition("\n")
        links = INDEX_LINK.findall(text)
        nav.append({title: [{label.replace("`", ""): target.removeprefix("../")} for label, target in links]})
    config.nav = nav
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages and those at the top of the repository."""
    for name, make in GENERATED.items():
        files.append(File.generated(config, name, content=make()))
    for name in TOP:
        files.append(File(name, _root(config), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links between `docs` and the top of the repository to the pages of the site."""
    source = page.file.abs_src_path
    if source is None or page.file.src_uri in GENERATED:
        return markdown
    root = Path(_root(config)).resolve()

    def lead(match: re.Match[str]) -> str:
        label, target, anchor = match[1], match[2], match[3] or ""
        if not target or target.startswith(OTHER):
            return match[0]
        wanted = (Path(source).parent / target).resolve()
        if not wanted.is_relative_to(root):
            return match[0]
        place = wanted.relative_to(root).as_posix().removeprefix("docs/")
        if files.get_file_from_path(place) is None:
            return match[0] if wanted.is_relative_to(root / "docs") or not wanted.exists() else label
        return f"[{label}]({get_relative_url(place, page.file.src_uri)}{anchor})"

    return LINK.sub(lead, markdown)


def _root(config: MkDocsConfig) -> str:
    return str(Path(config.docs_dir).parent)
