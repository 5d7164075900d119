"""The tables there are, as data: another table is another entry, with its file of printed numbers in `published/`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """One figure of the runs of one task. `metric` is a key of the record's evaluations."""

    task: str
    heading: tuple[str, str]
    metric: str
    published: str | None = None
    """What the paper calls this figure; None where it does not print it."""
    main: bool = False
    """Whether it counts in the average."""
    unit: str = "percent"
    """`percent`: a share, shown times 100 as the papers do; `count`: a number of parameters."""


@dataclass(frozen=True)
class PaperRow:
    """A method's printed row: its cells from the first of `tables` that has them (see the `table` column)."""

    method: str
    row: str
    tables: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """What a table shows. `methods` come first and in this order, whatever else was run after them."""

    name: str
    tasks: str
    paper_title: str
    paper_model: str
    columns: tuple[Column, ...]
    methods: tuple[str, ...]
    published: str
    paper_rows: tuple[PaperRow, ...]
    footnotes: tuple[tuple[str | None, str], ...]
    """A task, or None for all, and what is to be said beside the paper's numbers when it is shown."""


ADAPTER = Column("", ("adapter", "params"), "adapter_parameters", unit="count")
TRAINABLE = Column("", ("all", "trained"), "trainable_parameters", unit="count")
AVERAGE = Column("average", ("Avg.", ""), "average", "Avg.")

GLUE = Table(
    name="glue",
    tasks="GLUE",
    paper_title="GLUE, as Table 1 of the FlexLoRA paper",
    paper_model="deberta_v3_base",
    columns=(
        Column("glue/cola", ("CoLA", "Mcc."), "matthews_correlation", "Mcc.", main=True),
        Column("glue/mnli", ("MNLI-m", "Acc."), "matched_accuracy", "Acc.", main=True),
        Column("glue/mnli", ("MNLI-mm", "Acc."), "mismatched_accuracy"),
        Column("glue/mrpc", ("MRPC", "Acc."), "accuracy", "Acc.", main=True),
        Column("glue/mrpc", ("MRPC", "F1"), "f1"),
        Column("glue/rte", ("RTE", "Acc."), "accuracy", "Acc.", main=True),
        Column("glue/qnli", ("QNLI", "Acc."), "accuracy", "Acc.", main=True),
        Column("glue/sst2", ("SST-2", "Acc."), "accuracy", "Acc.", main=True),
        Column("glue/stsb", ("STS-B", "Pearson"), "pearson"),
        Column("glue/stsb", ("STS-B", "Spearman"), "spearman"),
        Column("glue/stsb", ("STS-B", "their mean"), "pearson_spearman_mean", "Corr.", main=True),
        Column("glue/qqp", ("QQP", "Acc."), "accuracy", "Acc.", main=True),
        Column("glue/qqp", ("QQP", "F1"), "f1"),
    ),
    methods=("full", "linear", "bitfit", "lora", "adalora", "adalora_r8", "flexlora", "flexlora_released"),
    published="glue.csv",
    paper_rows=(
        PaperRow("full", "Full FT", ("4", "1")),
        PaperRow("bitfit", "BitFit", ("1",)),
        PaperRow("houlsby", "H-Adapter", ("1",)),
        PaperRow("pfeiffer", "P-Adapter", ("1",)),
        PaperRow("adapter_fusion", "AdapterFusion", ("1",)),
        PaperRow("lora", "LoRA", ("1",)),
        PaperRow("adalora", "AdaLoRA", ("4", "1")),
        PaperRow("dora", "DoRA", ("1",)),
        PaperRow("sora", "SoRA", ("1",)),
        PaperRow("flexlora", "FlexLoRA", ("4", "1")),
    ),
    footnotes=(
        (None, "Our copy of the paper prints no scores in Table 1: per-task figures are those that Table 4 repeats."),
        (None, "The paper's 1.9M counts adapter and head, LoRA's 1.3M the adapter alone."),
        ("average", "The paper's text gives LoRA an average of 81.8, far below the 88 or so that others measure."),
        (
            "glue/mrpc",
            "The paper's Table 1 heads MRPC 'Acc.', its Table 7 says combined score; here beside accuracy.",
        ),
        (
            "glue/mnli",
            "The paper does not say which of MNLI's two sets 'Acc.' is; here beside the matched one.",
        ),
        (
            "glue/stsb",
            "The paper does not say what 'Corr.' is; here beside the mean of Pearson and Spearman.",
        ),
        (
            "glue/qqp",
            "The paper's 'QQP Acc.' has 92.4 and 90.3 beside 86.4 to 87.6: some may be F1 or a combined score.",
        ),
    ),
)

TABLES = {table.name: table for table in (GLUE,)}
