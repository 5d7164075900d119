"""Every published row names an existing method, so that our row is shown beside it."""

import pytest

from flexlora.conf_path import conf_dir
from flexlora.report.published import read_published
from flexlora.report.tables import TABLES

METHODS = {path.stem for path in (conf_dir() / "method").glob("*.yaml")}
FILES = ("glue.csv", "commonsense.csv", "vtab.csv", "cost.csv")
# Rows of what cannot be trained.
NOT_HERE = {"chatgpt"}


@pytest.mark.parametrize("name", FILES)
def test_every_published_row_names_an_existing_method(name):
    methods = {line.method for line in read_published(name)}
    assert methods
    assert methods - METHODS <= NOT_HERE


@pytest.mark.parametrize("name", TABLES)
def test_the_methods_of_a_table_exist(name):
    assert {*TABLES[name].methods} - METHODS <= NOT_HERE


def test_every_published_row_is_in_a_table():
    """But what only a text, or another's summary, says."""
    rows = [(table.published, row) for table in TABLES.values() for row in table.paper_rows]
    shown = {(file, number, row.row) for file, row in rows for number in row.tables}
    for name in FILES:
        printed = {(name, line.table, line.row) for line in read_published(name) if line.table != "summary"}
        assert printed <= shown


def test_names_are_of_the_papers_methods():
    """By hand, where the spelling does not say it: Table 16's Adapter is Pfeiffer's, its FacT the Tucker form."""
    expected = {
        "H-Adapter": "houlsby", "P-Adapter": "pfeiffer", "Adapter": "pfeiffer", "FacT": "fact_tk",
        "PrecLoRA": "prec_lora", "NoRA+": "nora_plus", "LoRA-Dash": "lora_dash", "VPT-Shallow": "vpt_shallow",
        "VPT-Deep": "vpt_deep",
        "MoSLoRA": "moslora", "FLoRA": "flora", "MLAE": "mlae", "MiLoRA": "milora", "LieRA": "liera", "SoRA": "sora",
        "AdapterFusion": "adapter_fusion", "BitFit": "bitfit", "PISSA": "pissa", "PiSSA": "pissa", "Full FT": "full",
        "Linear": "linear", "SSF": "ssf", "AdaptFormer": "adaptformer", "DoRA": "dora",
    }  # fmt: skip
    found = {line.row: line.method for name in FILES for line in read_published(name)}
    assert {row: found[row] for row in expected} == expected
