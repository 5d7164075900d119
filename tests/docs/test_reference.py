"""The generated pages: every setting, method and public name has its place, with the words of its source."""

from pathlib import Path

import pytest
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import flexlora
from flexlora.conf_path import conf_dir
from flexlora.reference.api_page import api_page
from flexlora.reference.methods_page import methods_page
from flexlora.reference.settings_page import settings_page, text
from flexlora.reference.site import GENERATED, on_config, on_page_markdown
from flexlora.settings.comments import Commented, commented_settings, head_comment

ROOT = Path(__file__).resolve().parents[2]
YAML = """\
# @package _global_
# The file's own comment,
# on two lines.
defaults:
  - _self_
first: 1  # behind the value
# Above the key,
# on two lines.
second: "a # b"
third: {a: 1,  # inside
        b: 2}  # behind the end
group:
  inner: null
recipes:
  glue: {training.learning_rate: 1.0e-3}
"""


def test_a_setting_has_the_comment_behind_its_value_or_above_its_key(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(YAML)
    assert head_comment(file) == "The file's own comment, on two lines."
    assert commented_settings(file) == [
        Commented("first", "1", "behind the value"),
        Commented("second", '"a # b"', "Above the key, on two lines."),
        Commented("third", "{a: 1, b: 2}", "behind the end"),
        Commented("group.inner", "null", ""),
    ]


def test_the_comment_of_a_file_is_not_that_of_its_first_key(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("# The file.\nfirst: 1\n")
    assert commented_settings(file) == [Commented("first", "1", "")]


def test_every_setting_of_the_run_has_a_meaning_on_the_page() -> None:
    page = settings_page()
    settings = commented_settings(conf_dir() / "config.yaml")
    assert len(settings) > 20
    for item in settings:
        assert item.meaning, f"conf/config.yaml: {item.key} has no comment"
        assert f"| `{item.key}` | " in page
        assert text(item.meaning) in page


def test_every_file_of_settings_is_on_the_page() -> None:
    page = settings_page()
    for group in ("benchmark", "model", "scale", "experiment"):
        for file in (conf_dir() / group).glob("*.yaml"):
            assert f"`{file.stem}`" in page or not commented_settings(file)


def test_every_public_name_is_on_the_page_of_the_interface() -> None:
    page = api_page()
    missing = [name for name in flexlora.__all__ if f".{name}\n" not in page]
    assert not missing
    assert "flexlora.baselines.moslora.MoSLoraConfig" in page


@pytest.mark.slow  # every method is composed for two benchmarks
def test_every_method_is_on_its_page_with_paper_count_and_recipes() -> None:
    page = methods_page()
    for file in (conf_dir() / "method").glob("*.yaml"):
        assert f"## `{file.stem}`" in page
    assert "| [`lora`](#lora) | PEFT | ✓ | ✓ | ✓ | ✓ | 1,327,104 | 1,179,648 | LoRA (Hu et al., 2022) |" in page
    assert "| `glue/cola` | `training.learning_rate=0.0008`, `method.tinit=1000`" in page


@pytest.fixture
def site() -> MkDocsConfig:
    config = MkDocsConfig()
    config.load_dict({"site_name": "x", "docs_dir": str(ROOT / "docs"), "site_dir": str(ROOT / "build/site")})
    return config


def test_the_index_is_the_navigation(site: MkDocsConfig) -> None:
    nav = on_config(site).nav
    assert nav[0] == {"Home": "README.md"}
    named = {target for section in nav[1:] for links in section.values() for link in links for target in link.values()}
    pages = {file.relative_to(ROOT / "docs").as_posix() for file in (ROOT / "docs").rglob("*.md")}
    assert named >= {*pages, *GENERATED} - {"README.md"}


@pytest.mark.parametrize(
    ("source", "written", "shown"),
    [
        ("docs/README.md", "[a](../CONTRIBUTING.md)", "[a](CONTRIBUTING.md)"),
        ("CONTRIBUTING.md", "[a](docs/how-to/add-a-task.md#x)", "[a](how-to/add-a-task.md#x)"),
        ("docs/how-to/add-a-task.md", "[a](../../pyproject.toml)", "a"),
        ("docs/how-to/add-a-task.md", "[a](missing.md)", "[a](missing.md)"),
        ("docs/how-to/add-a-task.md", "[a](https://peft.example)", "[a](https://peft.example)"),
    ],
)
def test_links_lead_to_pages_of_the_site(site: MkDocsConfig, source: str, written: str, shown: str) -> None:
    def page_of(path: str) -> File:
        folder = ROOT / "docs" if path.startswith("docs/") else ROOT
        return File(path.removeprefix("docs/"), str(folder), str(ROOT / "build/site"), True)

    file = page_of(source)
    files = Files([page_of(path) for path in ("CONTRIBUTING.md", "docs/README.md", "docs/how-to/add-a-task.md")])
    assert on_page_markdown(written, Page(None, file, site), site, files) == shown
