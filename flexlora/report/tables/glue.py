"""GLUE with DeBERTaV3-base: Table 1 of the paper, whose scores our copy has from Table 4."""

from flexlora.report.table import Average, Column, PaperRow, Table

MAIN = (
    Column("glue/cola", ("CoLA", "Mcc."), "matthews_correlation", "Mcc."),
    Column("glue/mnli", ("MNLI-m", "Acc."), "matched_accuracy", "Acc."),
    Column("glue/mrpc", ("MRPC", "Acc."), "accuracy", "Acc."),
    Column("glue/rte", ("RTE", "Acc."), "accuracy", "Acc."),
    Column("glue/qnli", ("QNLI", "Acc."), "accuracy", "Acc."),
    Column("glue/sst2", ("SST-2", "Acc."), "accuracy", "Acc."),
    Column("glue/stsb", ("STS-B", "their mean"), "pearson_spearman_mean", "Corr."),
    Column("glue/qqp", ("QQP", "Acc."), "accuracy", "Acc."),
)
COLA, MNLI, MRPC, RTE, QNLI, SST2, STSB, QQP = MAIN

GLUE = Table(
    name="glue",
    tasks="GLUE",
    paper_title="GLUE, as Table 1 of the FlexLoRA paper",
    paper_model="deberta_v3_base",
    columns=(
        COLA,
        MNLI,
        Column("glue/mnli", ("MNLI-mm", "Acc."), "mismatched_accuracy"),
        MRPC,
        Column("glue/mrpc", ("MRPC", "F1"), "f1"),
        RTE,
        QNLI,
        SST2,
        Column("glue/stsb", ("STS-B", "Pearson"), "pearson"),
        Column("glue/stsb", ("STS-B", "Spearman"), "spearman"),
        STSB,
        QQP,
        Column("glue/qqp", ("QQP", "F1"), "f1"),
    ),
    averages=(Average("average", ("Avg.", ""), "average", "Avg.", of=(MAIN,)),),
    methods=(
        *("full", "linear", "bitfit", "houlsby", "pfeiffer", "adapter_fusion", "lora", "dora", "sora"),
        *("adalora", "adalora_r8", "flexlora", "flexlora_released"),
    ),
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
