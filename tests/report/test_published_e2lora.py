"""`e2lora.csv` against the summary of E²LoRA's paper, and E²LoRA's tables of the report."""

from pathlib import Path

import pytest
from report_helpers import report, write_run

from flexlora.report.published import Published, lines_of, printed_value, read_published
from flexlora.report.tables import TABLES

E2 = {name: table for name, table in TABLES.items() if name.startswith("e2_")}
HEADS = {
    "glue": ["Method", "#Params", "Average"],
    "nlg": ["Method", "GSM8K #Params", "Acc", "HumanEval #Params", "Pass@1"],
    "images": ["Method", "#Params", "Average"],
    "ablation": ["LSS", "HRA", "#Params", "Acc"],
    "budget": ["Method", "Rank", "#Params", "Acc"],
}
# A row of the ablation by its first two cells.
PARTS = {
    ("✓", "×"): "LSS without HRA",
    ("×", "✓"): "HRA without LSS",
    ("cosine", "✓"): "cosine and HRA",
    ("KL", "✓"): "KL and HRA",
    ("✓(RMI)", "✓"): "LSS (RMI) and HRA",
}


@pytest.fixture(scope="module")
def summary(shared: Path) -> list[list[str]]:
    """The rows of all tables of the summary, in order."""
    (file,) = (shared / "seeds").glob("004_*.txt")
    lines = file.read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]


def printed(summary: list[list[str]], table: str) -> list[list[str]]:
    """The rows of one table, below its headings."""
    starts = [i for i, row in enumerate(summary) if row == HEADS[table]]
    start = starts[1] if table == "images" else starts[0]  # GLUE's table has the same headings
    ends = [i for i, row in enumerate(summary) if i > start and (row in HEADS.values())]
    return [row for row in summary[start + 1 : min(ends, default=len(summary))] if not set(row[0]) <= {"-", " "}]


def as_printed(line: Published) -> str:
    return f"{line.value:.2f}"


@pytest.mark.parametrize("table", HEADS)
def test_every_number_stands_in_its_row_and_column(summary, table):
    rows = printed(summary, table)
    found: dict[str, list[Published]] = {}
    for line in read_published("e2lora.csv"):
        if line.table == table:
            found.setdefault(line.row, []).append(line)
    assert len(found) == len(rows)
    for (name, lines), row in zip(found.items(), rows, strict=True):
        cells = [cell for line in lines for cell in (line.params, as_printed(line))]
        if table == "ablation":
            assert (name, cells) == (PARTS[row[0], row[1]], row[2:])
        elif table == "budget":
            assert (name, cells) == (f"{row[0]} r={row[1]}", row[2:])
        else:
            assert (name, cells) == (row[0], row[1:])


@pytest.mark.parametrize("name", E2)
def test_every_printed_figure_is_shown_in_a_table(name):
    table = E2[name]
    columns = [*table.columns, *table.averages]
    wanted = {row.tables[0] for row in table.paper_rows}
    for row in table.paper_rows:
        lines = lines_of(row, "e2lora.csv")
        assert any(printed_value(lines, column) is not None for column in columns), row
    own = name.removeprefix("e2_")
    lines = [line.row for line in read_published("e2lora.csv") if line.table == own]
    assert own in wanted
    assert {row.row for row in table.paper_rows if row.tables == (own,)} == {*lines}


def llama(root: Path, value: float, method: str, seed: int = 0, variant: str = "default", **settings: object) -> None:
    """A run on GSM8K that stands beside the paper's numbers."""
    plan = {"lss": True, "hra": True, "similarity": "rmi", "batches": 8, "partition": "greedy"}
    plan |= {"rank_entropy": "literal", "random_intervals": False, "random_ranks": False}
    own = {"name": method, "r": 8} | (plan if method == "e2lora" else {}) | settings
    write_run(
        root, value, task="gsm8k", scale="paper", model="llama3_1_8b", method=method, seed=seed, variant=variant,
        config={"method": own, "training": {"epochs": 1}, "task": {"epochs": 1}, "seed": seed},
    )  # fmt: skip


def test_ablations_stand_beside_the_row_of_their_settings(tmp_path):
    llama(tmp_path, 0.70, "lora")
    llama(tmp_path, 0.71, "e2lora")
    llama(tmp_path, 0.69, "e2lora", variant="method.hra-false", hra=False)
    llama(tmp_path, 0.66, "e2lora", variant="method.similarity-kl", similarity="kl")
    llama(tmp_path, 0.65, "e2lora", variant="method.random_ranks-true", random_ranks=True)
    llama(tmp_path, 0.60, "e2lora", variant="method.r-16", r=16)
    shown = report(tmp_path, "--table", "e2_ablation").stdout
    assert "Parts of E²LoRA on GSM8K, as E²LoRA's ablation table · llama3_1_8b" in shown
    lines = [line.strip().split("  ")[0] for line in shown.splitlines()]
    order = ["lora", "paper: LoRA r=8", "e2lora", "paper: LSS (RMI) and HRA", "method.hra-false"]
    places = [next(i for i, line in enumerate(lines) if line.startswith(name)) for name in order]
    assert places == sorted(places)
    assert lines[places[-1] :].index("paper: LSS without HRA") < 3
    assert "method.random_ranks-true" in shown
    assert "method.r-16" not in shown
    assert "paper: HRA without LSS" in shown  # no run: it is below, with the paper's other rows
    assert "no numbers of L1 and L2" in shown


def test_budgets_stand_beside_the_row_of_their_rank(tmp_path):
    for method, rank in (("lora", 4), ("lora", 8), ("e2lora", 8), ("e2lora", 16)):
        llama(tmp_path, 0.5 + rank / 100, method, variant="default" if rank == 8 else f"method.r-{rank}", r=rank)
    llama(tmp_path, 0.99, "e2lora", variant="method.hra-false", hra=False)
    shown = report(tmp_path, "--table", "e2_budget").stdout
    differences = [line.split()[-1] for line in shown.splitlines() if "less the paper's" in line]
    assert differences == ["-12.2", "-13.6", "-12.5", "-5.2"]  # LoRA 8, LoRA 4, E²LoRA 8, E²LoRA 16
    assert "99.0" not in shown


def test_runs_on_all_linears_are_not_in_the_table_of_query_and_value(tmp_path):
    for variant, targets in (("e2_glue", ["query", "value"]), ("default", None)):
        write_run(
            tmp_path, 0.5 if targets else 0.9, scale="paper", model="roberta_base", variant=variant,
            config={"method": {"name": "lora", "target_modules": targets}, "training": {}, "seed": 0},
        )  # fmt: skip
    write_run(
        tmp_path, 0.6, scale="paper", model="roberta_base", method="full", variant="e2_glue",
        config={"method": {"name": "full"}, "training": {}, "seed": 0},
    )  # fmt: skip
    shown = report(tmp_path, "--table", "e2_glue").stdout
    assert "50.0" in shown
    assert "60.0" in shown
    assert "90.0" not in shown


def test_ours_are_in_the_order_of_the_paper_and_each_e2_method_is_below_its_own(tmp_path):
    methods = ("full", "lora", "e2lora", "sharelora", "e2_sharelora", "dora", "e2_dora", "e2_vera", "e2_lori")
    for i, method in enumerate(reversed(methods)):
        write_run(tmp_path, 0.5 + i / 100, task="images/svhn", model="small", method=method)
    shown = report(tmp_path, "--table", "e2_images").stdout
    names = [line.split()[0] for line in shown.splitlines() if line.split() and line.split()[0] in methods]
    assert names == [*methods]
