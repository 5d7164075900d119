"""The tables there are, as data: another one is another entry, with its file of printed numbers in `published/`."""

from flexlora.report.tables.ablations import ABLATIONS
from flexlora.report.tables.commonsense import COMMONSENSE
from flexlora.report.tables.cost import COSTS
from flexlora.report.tables.glue import GLUE
from flexlora.report.tables.vtab import VTAB, VTAB_TABLE_16

BENCHMARKS = (GLUE, COMMONSENSE, VTAB, VTAB_TABLE_16)
"""What is shown, where it has runs, unless another is asked for: each benchmark, VTAB in the paper's two settings."""

TABLES = {table.name: table for table in (*BENCHMARKS, *ABLATIONS, *COSTS)}
