"""The tables of the package. Each table is one YAML file in this folder and needs no entry anywhere else."""

from pathlib import Path

from flexlora.report.table import Table
from flexlora.report.table_file import read_table

TABLES: dict[str, Table] = {
    table.name: table
    for table in sorted(
        (read_table(path) for path in Path(__file__).parent.glob("*.yaml")),
        key=lambda table: (not table.default, table.paper_table is None, table.paper_table or 0, table.name),
    )
}
"""The tables by name. The default tables come first, then the others, both in the order of the paper."""

DEFAULTS = tuple(table for table in TABLES.values() if table.default)
