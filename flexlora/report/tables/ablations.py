"""The ablations of FlexLoRA on GLUE: Tables 4, 5, 6 and 15 of the paper. Their rows are variants of `flexlora`."""

from dataclasses import replace

from flexlora.report.table import PaperRow, Table, TableRow
from flexlora.report.tables.glue import GLUE

DEFAULTS = {"importance": "entropy", "direction": "both", "growth_init": "zero_impact"}


def _flexlora(table: str, row: str, **other: str) -> PaperRow:
    """The row of FlexLoRA as it is by default but for `other`."""
    return PaperRow("flexlora", row, (table,), tuple((name, (value,)) for name, value in (DEFAULTS | other).items()))


def _table(
    number: str, what: str, varied: str, *rows: PaperRow, footnotes: tuple[tuple[str | None, str], ...] = ()
) -> Table:
    """GLUE's table for runs that differ in the setting `varied` of their method, and in no other."""
    paper_rows = (PaperRow("full", "Full FT", (number,)), *rows, _flexlora(number, "FlexLoRA"))
    return replace(
        GLUE,
        name=f"glue_table{number}",
        tasks=what,
        paper_title=f"{what}, as Table {number} of the FlexLoRA paper",
        paper_rows=paper_rows,
        rows=tuple(TableRow(method) for method in dict.fromkeys(row.method for row in paper_rows)),
        fixed=tuple((f"method.{name}", value) for name, value in DEFAULTS.items() if name != varied),
        varied=varied,
        footnotes=(*footnotes, *(note for note in GLUE.footnotes if str(note[0]).startswith("glue/"))),
    )


ABLATIONS = (
    _table(
        "4",
        "Importance metrics on GLUE",
        "importance",
        PaperRow("adalora", "AdaLoRA", ("4",)),
        _flexlora("4", "Nuclear", importance="nuclear"),
        _flexlora("4", "Frobenius", importance="frobenius"),
        footnotes=((None, "The sensitivity of Table 4 is AdaLoRA itself, not FlexLoRA with importance=sensitivity."),),
    ),
    _table(
        "5",
        "Pruning and expansion on GLUE",
        "direction",
        _flexlora("5", "Prune-only", direction="prune_only"),
        _flexlora("5", "Expand-only", direction="expand_only"),
    ),
    _table(
        "6",
        "Initialization of new directions on GLUE",
        "growth_init",
        _flexlora("6", "Small-init", growth_init="small"),
        _flexlora("6", "Zero-init", growth_init="zero"),
        _flexlora("6", "Orthogonal-init", growth_init="orthogonal"),
        footnotes=(
            ("average", "Section 5.3 says 85.8 'across the four GLUE benchmarks' where Table 6 has 89.1 over eight."),
            (None, "The paper gives no magnitude for Small-init; method.growth_lambda is ours."),
        ),
    ),
    _table(
        "15",
        "Energy in the importance on GLUE",
        "importance",
        _flexlora("15", "Elem", importance="elementwise_energy_entropy"),
        _flexlora("15", "Mat", importance="matrixwise_energy_entropy"),
        footnotes=((None, "Equations 10 and 11 are lost in our copy: both metrics are reconstructed."),),
    ),
)
"""They show the runs of GLUE's own table again, those of their methods only."""
