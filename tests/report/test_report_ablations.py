"""`--table glue_table4, 5, 6, 15`: each variant of FlexLoRA beside the paper's row of its setting."""

import pytest
import yaml
from report_helpers import figures, report, write_run

from flexlora.conf_path import conf_dir
from flexlora.report.published import lines_of
from flexlora.report.tables import TABLES
from flexlora.report.tables.ablations import ABLATIONS, DEFAULTS

PAPER = {"scale": "paper", "model": "deberta_v3_base"}


def write_variant(root, method="flexlora", **other):
    variant = "+".join(f"method.{name}-{value}" for name, value in other.items()) or "default"
    settings = {"name": method, **DEFAULTS, **other} if method == "flexlora" else {"name": method}
    write_run(root, 0.8, method=method, variant=variant, config={"method": settings}, **PAPER)


@pytest.mark.parametrize(
    ("table", "other", "cola"),
    [
        ("glue_table4", {"importance": "nuclear"}, 69.8),
        ("glue_table4", {"importance": "frobenius"}, 69.4),
        ("glue_table5", {"direction": "prune_only"}, 66.8),
        ("glue_table5", {"direction": "expand_only"}, 68.3),
        ("glue_table6", {"growth_init": "small"}, 69.2),
        ("glue_table6", {"growth_init": "zero"}, 66.4),
        ("glue_table6", {"growth_init": "orthogonal"}, 70.4),
        ("glue_table15", {"importance": "elementwise_energy_entropy"}, 68.1),
        ("glue_table15", {"importance": "matrixwise_energy_entropy"}, 69.0),
    ],
)
def test_a_variant_stands_beside_the_row_of_its_setting(tmp_path, table, other, cola):
    write_variant(tmp_path)
    write_variant(tmp_path, **other)
    lines = figures(tmp_path, "--table", table)
    found = {line["variant"]: line for line in lines if line["source"] == "ours" and line["task"] == "glue/cola"}
    assert {variant: float(line["paper"]) for variant, line in found.items()} == {
        "default": 71.8,
        "-".join(["method." + name + "-" + value for name, value in other.items()]): cola,
    }
    assert [float(line["difference"]) for line in found.values()] == pytest.approx([80 - 71.8, 80 - cola])


def test_only_what_belongs_to_the_ablation_is_shown(tmp_path):
    """No other method, no variant of another ablation; one that the paper does not have stands beside nothing."""
    for method in ("full", "adalora", "lora"):
        write_variant(tmp_path, method)
    write_variant(tmp_path, importance="random")
    write_variant(tmp_path, direction="prune_only")
    write_variant(tmp_path, init_b=0)
    write_variant(tmp_path, importance="nuclear", deltaT=5)
    lines = [line for line in figures(tmp_path, "--table", "glue_table4") if line["source"] == "ours"]
    papers = {(line["method"], line["variant"]): line["paper"] for line in lines if line["task"] == "glue/cola"}
    assert papers == {
        ("full", "default"): "69.2",
        ("adalora", "default"): "70.0",
        ("flexlora", "method.importance-random"): "",
    }
    text = report(tmp_path, "--table", "glue_table5").stdout
    assert text.startswith("Pruning and expansion on GLUE, as Table 5 of the FlexLoRA paper · deberta_v3_base")
    assert "paper: Prune-only" in text
    names = [line.strip() for line in text.splitlines()]
    assert any(name.startswith("method.direction-prune_only") for name in names)
    assert not any(name.startswith(("lora", "adalora", "method.importance")) for name in names)


def test_the_main_table_shows_all_of_them(tmp_path):
    write_variant(tmp_path, importance="nuclear")
    write_variant(tmp_path, direction="prune_only")
    lines = [line for line in figures(tmp_path) if line["source"] == "ours" and line["task"] == "glue/cola"]
    assert [(line["table"], line["paper"]) for line in lines] == [("glue", "71.8")] * 2


def test_the_papers_rows_have_the_settings_that_their_lines_note():
    for table in ABLATIONS:
        for row in table.paper_rows:
            (note,) = {line.note for line in lines_of(row, table.published) if "text" not in line.metric}
            other = [(name, value) for name, (value,) in row.settings if DEFAULTS[name] != value]
            assert note == ", ".join(f"method.{name}={value}" for name, value in other), row


def test_the_defaults_are_the_methods():
    values = yaml.safe_load((conf_dir() / "method" / "flexlora.yaml").read_text(encoding="utf-8"))
    assert {name: values[name] for name in DEFAULTS} == DEFAULTS
    assert [table.name for table in TABLES.values() if table.rows] == [table.name for table in ABLATIONS]
