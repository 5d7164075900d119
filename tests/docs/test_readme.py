"""The README: its lines of Python run as they stand, its claims agree with the project's other files."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from page_helpers import ROOT, readme_script
from peft import PeftModel

import flexlora

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_lines_of_python_run_as_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(readme_script(), names)
    ranks = flexlora.module_ranks(names["model"])
    assert len(set(ranks.values())) > 1, "no rank moved"
    plain = names["AutoModelForSequenceClassification"].from_config(names["model"].get_base_model().config)
    assert PeftModel.from_pretrained(plain, str(tmp_path / "adapter")).peft_config["default"].peft_type == "LORA"


def test_the_learning_rate_is_that_of_the_recipe_that_it_names() -> None:
    (rate,) = re.findall(r"learning_rate=([\d.e-]+)", readme_script())
    assert float(rate) == flexlora.recipe("glue/cola")["training.learning_rate"]


def test_the_numbers_of_does_flexlora_win_are_those_of_the_measurements() -> None:
    measured = (ROOT / "docs/explanation/measurements.md").read_text(encoding="utf-8")
    section = README.split("## Does FlexLoRA win?")[1].split("## ")[0]
    numbers = re.findall(r"\d+\.\d ± \d\.\d", section)
    assert len(numbers) == 4
    assert all(number in measured for number in numbers)


def test_every_extra_is_described() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = re.findall(r"^(\w+) = \[", text.split("[project.optional-dependencies]")[1].split("\n[")[0], re.M)
    assert len(extras) > 4
    assert not [extra for extra in extras if f"`{extra}`" not in README]


def test_the_citation_has_the_version_of_the_package() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == flexlora.__version__
    assert citation["license"] == "Apache-2.0"


def test_the_changelog_has_the_version_of_the_package() -> None:
    assert f"## [{flexlora.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
