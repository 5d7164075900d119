"""What training costs: Tables 12 to 14 of the paper. They show the runs of `experiment=cost`."""

from flexlora.report.table import Cost, PaperRow, Table

NOTE = "The paper names no GPU, and not whether its memory is what was allocated or what the driver had given out."


def _columns(
    task: str, name: str, seconds: tuple[str, float] = ("s", 1), memory: tuple[str, float] = ("MB", 2**20)
) -> tuple[Cost, ...]:
    """A task's costs. Memory in the paper's MB and GB, which are powers of two wherever it can be told."""
    (time, second), (size, byte) = seconds, memory
    evaluation = "Eval Runtime (s)" if time == "s" else None  # Table 13 has none
    return (
        Cost(task, (name, f"train {time}"), "train_seconds", f"Train Runtime ({time})", name, unit=second),
        Cost(task, (name, f"evaluation {time}"), "eval_seconds", evaluation, name, unit=second),
        Cost(task, (name, f"GPU {size}"), "device_bytes", f"GPU Mem ({size})", name, optional=True, unit=byte),
        Cost(task, (name, f"process {size}"), "process_bytes", None, name, optional=True, unit=byte),
        Cost(task, (name, "GFLOP a step"), "flops", None, name, unit=1e9),
        Cost(task, (name, "samples/s"), "samples_per_second", None, name),
    )


def _table(number: str, tasks: str, model: str, columns: tuple[Cost, ...], *notes: tuple[str | None, str]) -> Table:
    rows = {"lora": "LoRA", "adalora": "AdaLoRA", "flexlora": "FlexLoRA"}
    rows |= {"lora_dash": "LoRA-Dash"} if number == "13" else {}
    return Table(
        name=f"cost_table{number}",
        tasks=f"Training cost on {tasks}",
        paper_title=f"Training cost on {tasks}, as Table {number} of the FlexLoRA paper",
        paper_model=model,
        columns=columns,
        averages=(),
        methods=("lora", "lora_dash", "adalora", "flexlora", "flexlora_released"),
        published="cost.csv",
        paper_rows=tuple(PaperRow(method, row, (number,)) for method, row in rows.items()),
        footnotes=((None, NOTE), *notes),
    )


COSTS = (
    _table(
        "12",
        "GLUE",
        "deberta_v3_base",
        (*_columns("glue/cola", "CoLA"), *_columns("glue/rte", "RTE")),
        ("glue/rte", "The paper has the same memory on CoLA and RTE, at lengths of 64 and of 512."),
        (
            "glue/cola",
            "The paper's text says that FlexLoRA evaluates faster than AdaLoRA; in its table it is slower on both.",
        ),
    ),
    _table(
        "13",
        "Commonsense170K",
        "llama3_8b",
        _columns("commonsense170k", "Commonsense", ("h", 3600), ("GB", 2**30)),
        (None, "The paper does not say at which rank Table 13 was measured."),
    ),
    _table(
        "14",
        "VTAB-1K",
        "vit_b16",
        (
            *_columns("vtab/cifar100", "Cifar100"),
            *_columns("vtab/resisc45", "Resisc45"),
            *_columns("vtab/dmlab", "DMLab"),
        ),
        ("vtab/dmlab", "On DMLab the paper's FlexLoRA trains in 0.90 of its LoRA's time, on all other tasks in more."),
    ),
)
