"""`commonsense.csv`, `vtab.csv` and `cost.csv` against the paper's own text, and which of its averages add up."""

from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path
from statistics import fmean

import pytest

from flexlora.report.published import Published, lines_of, printed_value, read_published
from flexlora.report.tables import TABLES

HALF = 0.0501
"""Half of the last printed place, and a little for float arithmetic."""


@pytest.fixture(scope="module")
def paper(shared: Path) -> list[str]:
    (file,) = (shared / "seeds").glob("002_*.txt")
    return file.read_text(encoding="utf-8").splitlines()


def lines_in(name: str, table: str) -> list[Published]:
    """The lines of a printed table; what only the text around it says is not among them."""
    return [line for line in read_published(name) if line.table == table and "text" not in line.metric]


def scores(name: str, table: str) -> dict[str, dict[str, float]]:
    """From a printed row to its scores by their heading, in the file's order."""
    found: dict[str, dict[str, float]] = {}
    for line in lines_in(name, table):
        found.setdefault(line.row, {})[line.metric] = line.value
    return found


def printed_rows(paper: list[str], start: int) -> list[list[str]]:
    """The cells of the table's lines from `start` on, without empty ones: lost labels and merged cells."""
    lines = takewhile(lambda line: line.startswith("|"), paper[start:])
    return [[cell.strip() for cell in line.split("|") if cell.strip()] for line in lines]


def check_rows(
    lines: Sequence[Published], printed: list[list[str]], as_printed: Callable[[str], str] = lambda params: params
) -> None:
    """The file has the printed rows in their order: label where there is one, parameters, every score."""
    rows = list(dict.fromkeys(line.row for line in lines))
    for row, cells in zip(rows, printed, strict=True):
        of_row = [line for line in lines if line.row == row]
        ((params, inferred),) = {(line.params, line.inferred) for line in of_row}
        label = [] if inferred == "label" else [row]
        assert cells[: -len(of_row)] == [*label, as_printed(params)], row
        assert [float(cell) for cell in cells[-len(of_row) :]] == [line.value for line in of_row], row


def test_table_2_is_as_printed(paper):
    start = next(i for i, line in enumerate(paper) if line.startswith("| Model | Method | Param. | BoolQ"))
    heads, *printed = printed_rows(paper, start)
    lines = lines_in("commonsense.csv", "2")
    assert list(dict.fromkeys(line.metric for line in lines)) == heads[3:]
    models = {"LLaMA3-8B": 1}  # merged cells of the column "Model"
    chatgpt, *others = [[cell for cell in row if cell not in models] for row in printed]
    assert chatgpt[:3] == ["ChatGPT", "-", "-"]
    check_rows(lines, [["ChatGPT", *chatgpt[2:]], *others])
    unlabelled = {line.row for line in lines if line.inferred == "label"}
    assert unlabelled == {f"{method} r={rank}" for method in ("LoRA", "AdaLoRA", "FlexLoRA") for rank in (8, 32)}


@pytest.mark.parametrize(("table", "head"), [("3", "| Method | Param. |"), ("16", "| Method | Param.(M) |")])
def test_tables_3_and_16_are_as_printed(paper, table, head):
    start = paper.index(head)
    end = paper.index("Avg. |", start)
    lines = lines_in("vtab.csv", table)
    assert list(dict.fromkeys(line.metric for line in lines)) == [
        line.strip("| ") for line in paper[start + 1 : end + 1]
    ]
    check_rows(
        lines, printed_rows(paper, end + 1), lambda params: params.removesuffix("M") if table == "16" else params
    )
    assert {line.row for line in lines if line.inferred == "label"} == ({"LoRA"} if table == "3" else set())


def test_the_inferred_parameters_of_vtab_are_marked():
    marked = {(line.table, line.params) for line in read_published("vtab.csv") if line.inferred == "params"}
    of_16 = {("16", f"0.{digits}M") for digits in ("16", "24", "31", "34", "37")}
    assert marked == {("3", "1.18M"), ("3", "1.26M"), *of_16}
    unknown = {(line.table, line.params) for line in read_published("vtab.csv") if line.params_of == "unknown"}
    assert unknown == {("3", "1.29M"), ("3", "1.11M")}


def test_the_averages_that_the_texts_give(paper):
    text = "\n".join(paper)
    averages = {row: values["Avg."] for row, values in scores("commonsense.csv", "2").items()}
    ours, adalora, at_32 = (averages[row] for row in ("FlexLoRA r=8", "AdaLoRA r=8", "FlexLoRA r=32"))
    assert f"FlexLoRA achieves an average score of {ours} on LLaMA-3, slightly surpassing AdaLoRA ({adalora})" in text
    assert f"rank is increased to 32, FlexLoRA further improves to {at_32}" in text
    averages = {row: values["Avg."] for row, values in scores("vtab.csv", "3").items()}
    sentence = "average accuracy of {FlexLoRA}%, outperforming both LoRA ({LoRA}%) and AdaLoRA ({AdaLoRA}%)"
    assert sentence.format(**{row: averages[row] for row in ("FlexLoRA", "LoRA", "AdaLoRA")}) in text
    averages = {row: values["Avg."] for row, values in scores("vtab.csv", "16").items()}
    (aside,) = [line for line in read_published("vtab.csv") if "text" in line.metric]
    assert (aside.table, aside.row) == ("16", "LoRA")
    assert aside.value != averages["LoRA"]  # the text and the table differ
    sentence = "average accuracy of {FlexLoRA}%, outperforming LoRA ({LoRA}%) and AdaLoRA ({AdaLoRA}%)"
    given = {"LoRA": aside.value, **{row: averages[row] for row in ("FlexLoRA", "AdaLoRA")}}
    assert sentence.format(**given) in text


def test_the_average_that_a_summary_gives(shared):
    (line,) = [line for line in read_published("commonsense.csv") if line.table != "2"]
    (file,) = (shared / "seeds").glob("003_*.txt")
    assert f"Commonsense170K: {line.value}% average accuracy" in file.read_text(encoding="utf-8")


def test_table_2s_averages_are_those_of_its_eight_scores():
    for row, values in scores("commonsense.csv", "2").items():
        *eight, average = values.values()
        assert len(eight) == 8
        assert average == pytest.approx(fmean(eight), abs=HALF), row


def test_arc_looks_swapped_in_exactly_the_rows_without_a_label():
    lines = lines_in("commonsense.csv", "2")
    rows = scores("commonsense.csv", "2")
    swapped = {
        row: values["ARC-c"] - values["ARC-e"] for row, values in rows.items() if values["ARC-c"] > values["ARC-e"]
    }
    assert set(swapped) == {line.row for line in lines if line.inferred == "label"}
    assert (round(min(swapped.values())), round(max(swapped.values()))) == (10, 11)
    assert len(rows) == 11


def group_means(values: dict[str, float], without: str = "") -> list[float]:
    """Means of the natural (7), specialized (4) and structured (8) tasks, in the paper's order."""
    tasks = [name for name in values if name != "Avg."]
    assert len(tasks) == 19
    groups = (tasks[:7], tasks[7:11], tasks[11:])
    return [fmean(values[name] for name in group if name != without) for group in groups]


def do_not_add_up(table: str, without: str = "", tolerance: float = HALF) -> set[str]:
    """The rows whose printed average is not the mean of their three group means."""
    rows = scores("vtab.csv", table)
    return {row for row, v in rows.items() if abs(fmean(group_means(v, without)) - v["Avg."]) > tolerance}


def test_table_3s_averages_leave_out_clevr_count():
    rows = set(scores("vtab.csv", "3"))
    # Scores are rounded themselves: their mean may be half a place off, and so an average a whole one.
    assert do_not_add_up("3", tolerance=2 * HALF) == rows - {"Full FT"}
    assert do_not_add_up("3", without="Clevr-Count", tolerance=2 * HALF) == {"Full FT"}
    assert do_not_add_up("3", without="Clevr-Count") == {"Full FT", "FlexLoRA"}  # 67.74, printed 67.8
    files = {(line.row, line.task) for line in lines_in("vtab.csv", "3") if line.metric == "Avg."}
    assert files == {(row, "average" if row == "Full FT" else "average_without_clevr_count") for row in rows}


def test_with_clevr_count_full_fine_tuning_is_above_flexlora():
    means = {row: fmean(group_means(values)) for row, values in scores("vtab.csv", "3").items()}
    assert {row: round(means[row], 2) for row in ("Full FT", "FlexLoRA", "LoRA")} == {
        "Full FT": 68.84,
        "FlexLoRA": 68.59,
        "LoRA": 67.83,
    }
    assert max(means, key=means.__getitem__) == "Full FT"


def test_table_16s_averages_count_clevr_count():
    assert do_not_add_up("16", tolerance=2 * HALF) == set()
    assert do_not_add_up("16") == {"Full FT", "Linear", "AdaptFormer"}
    kept = set(scores("vtab.csv", "16")) - do_not_add_up("16", without="Clevr-Count", tolerance=2 * HALF)
    assert kept == set()


def test_no_average_of_vtab_is_the_plain_mean_over_tasks():
    for table in ("3", "16"):
        for row, (*tasks, average) in ((row, values.values()) for row, values in scores("vtab.csv", table).items()):
            assert abs(fmean(tasks) - average) > 1, (table, row)


def test_our_averages_over_the_printed_scores_are_the_papers():
    """The definitions of the table's averages, on the paper's own figures."""
    for name, close in (("vtab", 2 * HALF), ("vtab_table16", 2 * HALF), ("commonsense170k", HALF)):
        table = TABLES[name]
        compared = 0
        for row in table.paper_rows:
            lines = lines_of(row, table.published)
            for average in table.averages:
                printed = printed_value(lines, average)
                if printed is not None:
                    values = {column: printed_value(lines, column) for column in average.columns}
                    assert average.mean(values) == pytest.approx(printed, abs=close), (name, row)
                    compared += 1
        assert compared == len(table.paper_rows)


def test_vtabs_columns_are_the_files_tasks_in_the_papers_groups():
    columns = TABLES["vtab"].columns
    lines = lines_in("vtab.csv", "3")
    assert [column.task for column in columns] == list(dict.fromkeys(line.task for line in lines))[:19]
    assert [column.published for column in columns] == list(dict.fromkeys(line.metric for line in lines))[:19]
    assert [column.group for column in columns] == ["natural"] * 7 + ["specialized"] * 4 + ["structured"] * 8


COST = {
    "12": ("| Dataset | Metric | FlexLoRA | AdaLoRA | LoRA |", {"CoLA": "glue/cola", "RTE": "glue/rte"}),
    "13": ("| Model | Metric | FlexLoRA | AdaLoRA | LoRA | LoRA-Dash |", {"LLaMA3-8B": "commonsense170k"}),
    "14": (
        "| Dataset | Metric | FlexLoRA | AdaLoRA | LoRA |",
        {"Cifar100": "vtab/cifar100", "Resisc45": "vtab/resisc45", "DMLab": "vtab/dmlab"},
    ),
}


@pytest.mark.parametrize("table", COST)
def test_the_cost_of_training_is_as_printed(paper, table):
    head, tasks = COST[table]
    start = paper.index(head, paper.index(COST["13"][0]) if table == "14" else 0)
    (_, _, *methods), *rows = printed_rows(paper, start)
    expected = []
    for row in takewhile(lambda row: "Metric" not in row, rows):  # the next table follows without a gap
        if row[0] in tasks:
            task = tasks[row.pop(0)]
        metric, *values = row
        if metric != "Total FLOPs":  # lost in our copy
            expected += [(task, metric, *pair) for pair in zip(methods, map(float, values), strict=True)]
    assert [(line.task, line.metric, line.row, line.value) for line in lines_in("cost.csv", table)] == expected


def test_what_is_odd_about_the_cost_of_training():
    cost = {(line.task, line.metric, line.row): line.value for line in read_published("cost.csv")}
    for method in ("FlexLoRA", "AdaLoRA", "LoRA"):  # the same memory at length 64 and 512
        assert cost["glue/cola", "GPU Mem (MB)", method] == cost["glue/rte", "GPU Mem (MB)", method]
    for task in ("glue/cola", "glue/rte"):  # the text says that FlexLoRA is faster here
        assert cost[task, "Eval Runtime (s)", "FlexLoRA"] > cost[task, "Eval Runtime (s)", "AdaLoRA"]
    time = "Train Runtime (s)"
    ratios = {
        task: cost[task, time, "FlexLoRA"] / cost[task, time, "LoRA"] for task, metric, _ in cost if metric == time
    }
    assert {task for task, ratio in ratios.items() if ratio < 1} == {"vtab/dmlab"}
    assert round(ratios["vtab/dmlab"], 2) == 0.90
