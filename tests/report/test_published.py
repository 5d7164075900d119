"""`published/*.csv` against the paper's own text: every number stands in the row and column it is said to."""

import re
from pathlib import Path

import pytest
from glue_helpers import settings_of

from flexlora.report.published import Published, lines_of, printed_value, read_published
from flexlora.report.tables import TABLES

GLUE_TABLES = ("1", "4", "5", "6", "15")
TASKS = ("cola", "mnli", "mrpc", "rte", "qnli", "sst2", "stsb", "qqp")
SCORES = "CoLA Mcc. | MNLI Acc. | MRPC Acc. | RTE Acc. | QNLI Acc. | SST-2 Acc. | STS-B Corr. | QQP Acc. | Avg."
HEADER = f"| Method | Params. | {SCORES} |"


@pytest.fixture(scope="module")
def paper(shared: Path) -> list[str]:
    (file,) = (shared / "seeds").glob("002_*.txt")
    return file.read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def printed(paper: list[str]) -> dict[str, list[list[str]]]:
    """The rows of each GLUE table, as they stand: the paper has them in the order of GLUE_TABLES."""
    starts = [i for i, line in enumerate(paper) if line == HEADER]
    assert len(starts) == len(GLUE_TABLES)
    tables = {}
    for name, start in zip(GLUE_TABLES, starts, strict=True):
        end = next(i for i in range(start, len(paper)) if not paper[i].startswith("|"))
        tables[name] = [[cell.strip() for cell in line.strip("|").split("|")] for line in paper[start + 1 : end]]
    return tables


def glue() -> tuple[Published, ...]:
    return read_published("glue.csv")


def test_every_score_stands_in_its_row_and_column(printed):
    columns = {(f"glue/{task}"): 2 + place for place, task in enumerate(TASKS)} | {"average": 10}
    scores = [line for line in glue() if line.value is not None and line.table != "1" and "text" not in line.metric]
    assert len(scores) == 9 * sum(len(printed[table]) for table in ("4", "5", "6", "15"))
    heads = [cell.strip() for cell in HEADER.strip("|").split("|")]
    for line in scores:
        (row,) = [row for row in printed[line.table] if row[0] == line.row]
        place = columns[line.task]
        assert float(row[place]) == line.value, line
        assert row[1] == line.params, line
        assert heads[place].split()[-1] == line.metric, line


def test_table_1_has_no_scores_and_its_rows_are_all_there(printed):
    rows = list(dict.fromkeys((line.row, line.params, line.inferred) for line in glue() if line.table == "1"))
    assert len(rows) == len(printed["1"])
    for (name, params, inferred), row in zip(rows, printed["1"], strict=True):
        assert not any(re.search(r"\d\d\.\d", cell) for cell in row[2:])
        assert row[:2] == ([params, ""] if inferred == "label" else [name, params])


def test_averages_that_only_the_text_gives(paper):
    text = "\n".join(paper)
    given = {line.row: line.value for line in glue() if line.table == "1" and line.value is not None}
    assert given.keys() == {"LoRA", "AdaLoRA", "FlexLoRA"}
    sentence = "average score of {FlexLoRA}, outperforming AdaLoRA ({AdaLoRA}) and LoRA ({LoRA})"
    assert sentence.format(**given) in text
    (four,) = [line for line in glue() if line.metric == "Avg. in the text"]
    assert f"highest average score ({four.value}), consistently" in text
    assert "across the four GLUE benchmarks" in text


def test_printed_averages_are_those_of_the_eight_scores_but_for_one():
    rows: dict[tuple[str, str], dict[tuple[str, str], float]] = {}
    for line in glue():
        if line.value is not None and line.table != "1":
            rows.setdefault((line.table, line.row), {})[line.task, line.metric] = line.value
    wrong = []
    for row, scores in rows.items():
        tasks = [value for (task, _), value in scores.items() if task != "average"]
        assert len(tasks) == 8
        mean = sum(tasks) / 8
        wrong += [(*row, key[1]) for key, value in scores.items() if key[0] == "average" and abs(value - mean) > 0.0501]
    assert wrong == [("6", "FlexLoRA", "Avg. in the text")]  # section 5.3 against Table 6


def test_what_several_tables_repeat_is_the_same_in_all():
    seen: dict[tuple[str, str, str], set[float]] = {}
    for line in glue():
        if line.value is not None and line.row in ("Full FT", "FlexLoRA", "AdaLoRA"):
            seen.setdefault((line.row, line.task, line.metric), set()).add(line.value)
    assert all(len(values) == 1 for values in seen.values())
    assert len(seen) == 3 * 9 + 1


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.name)
def test_a_tables_rows_and_columns_are_in_its_file(table):
    for row in table.paper_rows:
        lines = lines_of(row, table.published)
        assert {line.method for line in lines} == {row.method}, row
        counted = ("adapter", "adapter+head", "model", "unknown")
        assert all(line.params_of in counted if line.params else not line.params_of for line in lines)
        assert all(line.inferred in ("no", "label", "params") for line in lines)
    known = {(line.task, line.metric) for line in read_published(table.published)}
    columns = (*table.columns, *table.averages)
    assert {(column.task, column.published) for column in columns if column.published} <= known


def test_the_row_of_flexlora_is_whole():
    table = TABLES["glue"]
    (row,) = [row for row in table.paper_rows if row.method == "flexlora"]
    lines = lines_of(row, table.published)
    of_table_4 = {line.task: line.value for line in glue() if (line.table, line.row) == ("4", "FlexLoRA")}
    assert {column.task: printed_value(lines, column) for column in (*table.main, *table.averages)} == of_table_4
    assert [printed_value(lines, column) for column in table.columns if column not in table.main] == [None] * 5


def test_the_glue_tables_columns_are_figures_that_the_tasks_give():
    """Each task's main figure is the one that its settings name, every other one is recorded too."""
    from flexlora.tasks.metrics import METRICS

    for task in map(settings_of, TASKS):
        splits = task.hub.evaluation
        prefixes = [f"{name}_" for name in splits] if len(splits) > 1 else [""]
        given = {f"{prefix}{score}" for prefix in prefixes for score in METRICS[task.metric].scores}
        columns = [column for column in TABLES["glue"].columns if column.task == task.name]
        assert {column.metric for column in columns} <= given
        assert [column.metric for column in columns if column in TABLES["glue"].main] == [task.main_metric]
