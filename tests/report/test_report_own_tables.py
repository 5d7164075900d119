"""A table of one's own is one YAML file; tasks that no table knows are shown in a plain one."""

import csv
import shutil

import pytest
from page_helpers import commands, write_files
from report_helpers import figures, line_of, report, write_run

from flexlora.errors import UserError
from flexlora.report.table_file import FOLDER, read_table
from flexlora.report.tables import DEFAULTS, TABLES

PAGE = "add-a-report-table.md"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three methods on a task of one's own and on RTE, FlexLoRA at two ranks."""
    root = tmp_path_factory.mktemp("runs")
    for task in ("my/task", "rte"):
        for method, variant in (("full", None), ("flexlora", None), ("flexlora", "method.r-4"), ("lora", None)):
            for seed in (0, 1):
                where = {"task": task, "method": method, "variant": variant or "default", "seed": seed}
                write_run(root, 0.5 + 0.1 * seed, scores=("accuracy", "loss"), main_metric="accuracy", **where)
    return root


@pytest.fixture
def mine(tmp_path):
    """The table of the how-to page."""
    (file,) = write_files(PAGE, tmp_path)
    return file


def refused(folder, text):
    """The line of a file that is no table."""
    file = folder / "mine.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        read_table(file)
    (line,) = str(error.value).splitlines()
    assert line.startswith(str(file))
    return line.removeprefix(str(file)).lstrip(":, ")


def test_a_table_of_ones_own(runs, mine):
    text = report(runs, "--table", mine).stdout
    assert text.startswith("My comparison, small, scale=local\n2 of 2 tasks, last evaluation of each run, in percent")
    assert line_of(text, "lora")[3:] == ["55.0", "±", "7.1", "(2)"] * 3
    assert "full" not in text
    lines = figures(runs, "--table", mine)
    assert {line["table"] for line in lines} == {"my_table"}
    rows = list(dict.fromkeys((line["method"], line["variant"]) for line in lines))
    assert rows == [("lora", "default"), ("flexlora", "method.r-4")]
    columns = list(dict.fromkeys((line["task"], line["metric"]) for line in lines if line["task"]))
    assert columns == [("my/task", "accuracy"), ("glue/rte", "accuracy"), ("average", "average")]


def test_the_steps_of_the_page(runs, tmp_path):
    """Its file, and its commands as they are written there."""
    write_files(PAGE, tmp_path)
    shutil.copytree(runs, tmp_path / "outputs")
    shown, saved = (report(*words, cwd=tmp_path) for words in commands(PAGE, "flexlora-report"))
    assert shown.stdout.startswith("My comparison")
    assert saved.stdout == "outputs/tables/my_table.{md,csv,tex,html}: 1 table\n"


def test_footnotes_are_shown(runs, mine):
    with mine.open("a") as file:
        file.write("footnotes: [These are mine., {for: glue/cola, text: Not here.}]")
    text = report(runs, "--table", mine).stdout
    assert "·  These are mine." in text
    assert "Not here." not in text


def test_without_rows_all_are_shown(runs, tmp_path):
    (tmp_path / "all.yml").write_text("columns: [{task: my/task, metric: accuracy}]")
    lines = figures(runs, "--table", tmp_path / "all.yml")
    assert len({(line["method"], line["variant"]) for line in lines}) == 4


def test_it_is_saved_under_its_name(runs, mine, tmp_path):
    assert report(runs, "--table", mine, "--save", tmp_path / "out").returncode == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {f"my_table.{ending}" for ending in ("csv", "html", "md", "tex")}


def test_what_it_may_take_from_a_table_of_the_package(tmp_path):
    (tmp_path / "small.yaml").write_text("extends: glue\ntitle: Mine\nrows: [lora, flexlora]")
    table = read_table(tmp_path / "small.yaml")
    assert (table.columns, table.averages) == (TABLES["glue"].columns, TABLES["glue"].averages)
    assert (table.paper_model, table.paper_rows) == (None, ())
    write_run(tmp_path / "runs", scale="paper", model="deberta_v3_base")
    text = report(tmp_path / "runs", "--table", tmp_path / "small.yaml").stdout
    assert text.startswith("Mine, deberta_v3_base, scale=paper\n")


def test_numbers_of_another_paper(tmp_path):
    """Its CSV is beside the table."""
    (tmp_path / "theirs.yaml").write_text(
        "title: Theirs\ncolumns: [{task: my/task, metric: accuracy, paper: Acc.}]\n"
        "paper: {title: As they print it, model: small, numbers: theirs.csv, rows: [{row: LoRA, method: lora}]}"
    )
    heads = ("table", "row", "method", "task", "metric", "value", "params", "params_of", "note", "inferred")
    with (tmp_path / "theirs.csv").open("w", newline="") as file:
        line = ("0", "LoRA", "lora", "my/task", "Acc.", "48.5", "0.3M", "adapter", "", "no")
        csv.writer(file).writerows([heads, line])
    write_run(tmp_path / "runs", 0.5, task="my/task", scale="paper")
    text = report(tmp_path / "runs", "--table", tmp_path / "theirs.yaml").stdout
    assert text.startswith("As they print it · small\n")
    assert line_of(text, "  less the paper's")[-1] == "+1.5"
    assert line_of(text, "paper: LoRA")[-2:] == ["0.3M", "48.5"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("colums: []", "colums: there is no such key. Did you mean columns? There are: title, columns, "),
        ("title: T", "columns: a table needs at least one column, with its task and metric"),
        ("columns: [{task: a}]", "columns[0].metric: this key is missing; its value is text"),
        ("columns: [{taks: a}]", "columns[0].taks: there is no such key. Did you mean task?"),
        ("columns: [{task: a, metric: 3}]", "columns[0].metric: its value is text, and not 3"),
        ("columns: [a]", "columns[0]: it is a mapping with the keys task, metric, "),
        ("columns: {task: a}", "columns: its value is a list, and not {'task': 'a'}"),
        ("columns: [{task: a, metric: b}, {task: a, metric: b}]", "columns: two columns have the same task and metric"),
        ("columns: [{task: a, metric: b, heading: [x]}]", "columns[0].heading: it is a text or a list of two"),
        ("columns: [{task: a, metric: b}]\nrows: [{variant: v}]", "rows[0].method: this key is missing"),
        ("columns: [{task: a, metric: b}]\nrows: lora", "rows: its value is a list, and not 'lora'"),
        (
            "columns: [{task: a, metric: b}]\naverages: [{name: m, over: [g]}]",
            "averages[0].over: no column has the group",
        ),
        (
            "columns: [{task: a, metric: b}]\naverages: [{name: m, without: [aa]}]",
            "averages[0].without: no column is of",
        ),
        ("columns: [{task: a, metric: b}]\nwide: 1", "wide: its value is true or false, and not 1"),
        ("extends: gleu", "extends: there is no table 'gleu'. Did you mean glue?"),
        ("costs: [a]\nunits: {time: min}", "units.time: there is no unit 'min'. There are: s, h"),
        ("columns: [{task: a, metric: b}]\npaper: {rows: [{row: r, method: m}], numbers: no.csv}", "paper.numbers: "),
        ("- a", "a table is a mapping with the keys title, "),
        ("a: [", "line 2: the table is not valid YAML: "),
    ],
)
def test_a_file_that_is_no_table_is_refused_in_one_line(tmp_path, text, line):
    assert refused(tmp_path, text).startswith(line)


def test_the_command_refuses_it_before_it_reads_a_run(tmp_path):
    result = report(tmp_path / "nowhere", "--table", tmp_path / "absent.yaml")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.endswith("/absent.yaml: the table cannot be read: No such file or directory\n")


def test_every_file_of_the_package_is_a_table():
    assert sorted(TABLES) == sorted(path.stem for path in FOLDER.glob("*.yaml"))
    assert [table.paper_table for table in TABLES.values() if table.default] == [1, 2, 3, 16, None, None]


def test_tasks_that_no_table_knows_are_in_a_plain_one(runs, tmp_path):
    lines = [line for line in figures(runs) if line["table"] == "other"]
    assert {(line["task"], line["metric"]) for line in lines if line["task"]} == {("my/task", "accuracy")}
    assert len({(line["method"], line["variant"]) for line in lines}) == 4
    text = report(runs).stdout
    assert text.index("GLUE, small") < text.index("Other tasks, small, scale=local\n1 of 1 tasks")
    write_run(tmp_path, None, task="my/failed", status="failed", main_metric=None)
    assert line_of(report(tmp_path).stdout, "lora")[-1] == "failed"
    assert {column.task for table in DEFAULTS for column in table.columns}.isdisjoint({"my/task", "my/failed"})


def test_the_plain_table_takes_the_metric_of_most_runs(tmp_path):
    for seed, metric in enumerate(("f1", "accuracy", "f1", None)):
        write_run(tmp_path, task="my/task", scores=("f1", "accuracy"), seed=seed, main_metric=metric)
    line, _ = [line for line in figures(tmp_path) if line["task"] == "my/task"]
    assert (line["metric"], line["n"]) == ("f1", "4")


def test_a_table_of_ones_own_on_costs(tmp_path):
    (tmp_path / "costs.yaml").write_text("title: My costs\ncosts: [{task: my/task}]\nunits: {memory: GB}")
    for method, seconds in (("lora", 10.0), ("flexlora", 12.0)):
        write_run(
            tmp_path / "runs",
            task="my/task",
            method=method,
            train_seconds=seconds,
            config={"method": {"name": method}, "training": {"count_flops": True}},
        )
    lines = figures(tmp_path / "runs", "--table", tmp_path / "costs.yaml")
    (line,) = [line for line in lines if (line["metric"], line["method"]) == ("train_seconds", "flexlora")]
    assert (float(line["mean"]), float(line["ratio"])) == (12, 1.2)
    text = report(tmp_path / "runs", "--table", tmp_path / "costs.yaml").stdout
    assert text.startswith("My costs, small, scale=local\n")
