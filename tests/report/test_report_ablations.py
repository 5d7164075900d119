"""`--table glue_table4, 5, 6, 15`: each variant of FlexLoRA beside the paper's row of its setting."""

import pytest
import yaml
from report_helpers import figures, printed, report, write_run

from flexlora.conf_path import conf_dir
from flexlora.report.published import lines_of
from flexlora.report.tables import TABLES

DEFAULTS = {"importance": "entropy", "direction": "both", "growth_init": "zero_impact"}
ABLATIONS = [table for table in TABLES.values() if table.varied and not table.name.startswith("e2_")]
PAPER = {"scale": "paper", "model": "deberta_v3_base"}


def write_variant(root, method="flexlora", **other):
    variant = "+".join(f"method.{name}-{value}" for name, value in other.items()) or "default"
    settings = {"name": method, **DEFAULTS, **other} if method == "flexlora" else {"name": method}
    write_run(root, 0.8, method=method, variant=variant, config={"method": settings}, **PAPER)


def cola(row, table="4"):
    """What the paper prints on CoLA."""
    return printed("glue.csv", table, row, task="glue/cola")


@pytest.mark.parametrize(
    ("table", "other", "row"),
    [
        ("glue_table4", {"importance": "nuclear"}, "Nuclear"),
        ("glue_table4", {"importance": "frobenius"}, "Frobenius"),
        ("glue_table5", {"direction": "prune_only"}, "Prune-only"),
        ("glue_table5", {"direction": "expand_only"}, "Expand-only"),
        ("glue_table6", {"growth_init": "small"}, "Small-init"),
        ("glue_table6", {"growth_init": "zero"}, "Zero-init"),
        ("glue_table6", {"growth_init": "orthogonal"}, "Orthogonal-init"),
        ("glue_table15", {"importance": "elementwise_energy_entropy"}, "Elem"),
        ("glue_table15", {"importance": "matrixwise_energy_entropy"}, "Mat"),
    ],
)
def test_a_variant_stands_beside_the_row_of_its_setting(tmp_path, table, other, row):
    write_variant(tmp_path)
    write_variant(tmp_path, **other)
    lines = figures(tmp_path, "--table", table)
    found = {line["variant"]: line for line in lines if line["source"] == "ours" and line["task"] == "glue/cola"}
    ((name, value),) = other.items()
    expected = {"default": cola("FlexLoRA"), f"method.{name}-{value}": cola(row, table.removeprefix("glue_table"))}
    assert {variant: float(line["paper"]) for variant, line in found.items()} == expected
    differences = [float(line["difference"]) for line in found.values()]
    assert differences == pytest.approx([80 - score for score in expected.values()])


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
        ("full", "default"): str(cola("Full FT")),
        ("adalora", "default"): str(cola("AdaLoRA")),
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
    assert [(line["table"], line["paper"]) for line in lines] == [("glue", str(cola("FlexLoRA")))] * 2


def test_the_papers_rows_have_the_settings_that_their_lines_note():
    assert [table.paper_table for table in ABLATIONS] == [4, 5, 6, 15]
    for table in ABLATIONS:
        for row in table.paper_rows:
            (note,) = {line.note for line in lines_of(row, table.published) if "text" not in line.metric}
            other = [(name, value) for name, (value,) in row.settings if DEFAULTS[name] != value]
            assert note == ", ".join(f"method.{name}={value}" for name, value in other), row
            assert [name for name, _ in row.settings] == ([table.varied] if row.method == "flexlora" else [])


def test_the_defaults_are_the_methods():
    values = yaml.safe_load((conf_dir() / "method" / "flexlora.yaml").read_text(encoding="utf-8"))
    assert {name: values[name] for name in DEFAULTS} == DEFAULTS
    for table in ABLATIONS:
        fixed = {f"method.{name}": value for name, value in DEFAULTS.items() if name != table.varied}
        assert dict(table.fixed) == fixed, table.name
