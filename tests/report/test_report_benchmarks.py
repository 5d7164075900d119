"""`flexlora-report` on Commonsense170K and VTAB-1K: one run of eight test sets, 19 tasks in groups, wide tables."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from report_helpers import figures, line_of, printed, report, write_run

from flexlora.report.published import read_published
from flexlora.report.tables import TABLES

TEST_SETS = [column.metric for column in TABLES["commonsense170k"].columns]
TASKS = [column.task for column in TABLES["vtab"].columns]
LLAMA = {"scale": "paper", "model": "llama3_8b"}
VIT = {"scale": "paper", "model": "vit_b16"}


def write_commonsense(root: Path, value: float = 0.5, method: str = "lora", r: dict | None = None, **fields) -> Path:
    config = {"method": {"name": method, **({"r": 8} if r is None else r)}}
    given = {"task": "commonsense170k", "scores": TEST_SETS, "config": config, "method": method}
    return write_run(root, value, **(given | fields))


def write_vtab(root: Path, values: dict[str, float], **fields) -> None:
    for task, value in values.items():
        write_run(root, value, task=task, **fields)


def our(lines: list[dict[str, str]], key: str = "task", **where: str) -> dict[str, dict[str, str]]:
    """Our score lines of the CSV by one of their columns, of which no two are the same."""
    scores = [line for line in lines if line["source"] == "ours" and line["task"]]
    found = [line for line in scores if all(line[name] == value for name, value in where.items())]
    assert len({line[key] for line in found}) == len(found)
    return {line[key]: line for line in found}


def test_one_run_gives_all_eight_test_sets_and_their_average(tmp_path):
    for seed, values in enumerate(np.random.default_rng(0).uniform(size=(2, 8))):
        write_commonsense(tmp_path, seed=seed, metrics={"last": dict(zip(TEST_SETS, values, strict=True))})
    expected = 100 * np.random.default_rng(0).uniform(size=(2, 8))
    found = our(figures(tmp_path), "metric")
    assert list(found) == [*TEST_SETS, "average"]
    assert [float(found[name]["mean"]) for name in TEST_SETS] == pytest.approx(list(expected.mean(axis=0)))
    average = found["average"]
    assert (float(average["mean"]), average["n"]) == (pytest.approx(expected.mean()), "2")
    assert float(average["std"]) == pytest.approx(expected.mean(axis=1).std(ddof=1))
    assert "8 of 8 test sets, last evaluation" in report(tmp_path).stdout


def test_test_sets_that_were_not_evaluated_are_left_out(tmp_path):
    write_commonsense(tmp_path, scores=["boolq_accuracy", "ARC-Easy_accuracy", "average"])
    found = our(figures(tmp_path), "metric")
    assert list(found) == ["boolq_accuracy", "ARC-Easy_accuracy", "average"]
    assert (found["average"]["mean"], found["average"]["status"]) == ("", "2/8")
    text = report(tmp_path).stdout
    assert "2 of 8 test sets" in text
    assert "n/8  no average: only n of the test sets' main figures are there" in text
    assert "PIQA" not in text
    assert our(figures(tmp_path, "--all-tasks"), "metric")["piqa_accuracy"]["status"] == "no figure"
    write_commonsense(tmp_path, method="flexlora", scores=["piqa_accuracy"])
    assert our(figures(tmp_path), "metric", method="lora")["piqa_accuracy"]["status"] == "no figure"


def test_failed_runs_of_commonsense_show_all_test_sets(tmp_path):
    write_commonsense(tmp_path, status="failed")
    statuses = [line["status"] for line in our(figures(tmp_path), "metric").values()]
    assert statuses == ["failed"] * 8 + ["0/8"]


@pytest.mark.parametrize(
    ("method", "ranks", "row"),
    [
        ("lora", {"r": 8}, "LoRA r=8"),
        ("lora", {"r": 32}, "LoRA r=32"),
        ("adalora", {"init_r": 12, "target_r": 8}, "AdaLoRA r=8"),
        ("adalora", {"init_r": 32, "target_r": 21}, "AdaLoRA r=32"),
        ("flexlora", {"r": 8}, "FlexLoRA r=8"),
        ("flexlora", {"r": 12}, "FlexLoRA r=8"),
        ("flexlora", {"r": 32}, "FlexLoRA r=32"),
        ("lora_dash", {"r": 32}, "LoRA-Dash"),
        ("nora_plus", {"r": 32}, "NoRA+"),
        ("prec_lora", {"r": 32}, "PrecLoRA"),
        ("full", {}, "Full FT"),
    ],
)
def test_a_row_stands_beside_the_papers_of_its_rank(tmp_path, method, ranks, row):
    write_commonsense(tmp_path, 0.8, method, ranks, **LLAMA)
    found = our(figures(tmp_path), "metric")
    boolq, average = (printed("commonsense.csv", "2", row, metric=metric) for metric in ("BoolQ", "Avg."))
    assert (float(found["boolq_accuracy"]["paper"]), float(found["average"]["paper"])) == (boolq, average)
    assert float(found["average"]["difference"]) == pytest.approx(80 - average)


def test_a_rank_that_the_paper_does_not_have_stands_beside_none(tmp_path):
    write_commonsense(tmp_path, 0.8, "lora", {"r": 16}, **LLAMA)
    assert {line["paper"] for line in our(figures(tmp_path), "metric").values()} == {""}


def test_rows_of_one_method_and_two_ranks(tmp_path):
    """Each under its own row of the paper, which says where its label is inferred; what is not run stands below."""
    write_commonsense(tmp_path, 0.8, "flexlora", {"r": 8}, **LLAMA)
    write_commonsense(tmp_path, 0.8, "flexlora", {"r": 12}, variant="method.r-12", **LLAMA)
    write_commonsense(tmp_path, 0.8, "flexlora", {"r": 32}, variant="method.r-32", **LLAMA)
    text = report(tmp_path, columns=130).stdout
    assert text.splitlines()[0] == "Commonsense170K, as Table 2 of the FlexLoRA paper · llama3_8b"
    names = [line[:22].strip() for line in text.splitlines()]
    order = ["flexlora", "flexlora", "method.r-12", "paper: FlexLoRA r=8", "flexlora", "method.r-32"]
    wanted = {*order, "paper: FlexLoRA r=32", "paper: ChatGPT", "(inferred)"}
    shown = [name for name in names if name in wanted]
    assert shown[:9] == [*order[:4], "(inferred)", *order[4:], "paper: FlexLoRA r=32", "(inferred)"]
    assert "paper: ChatGPT" in shown[9:]
    chatgpt = [line.value for line in read_published("commonsense.csv") if line.row == "ChatGPT"]
    assert line_of(text, "paper: ChatGPT")[2:] == ["-", *map(str, chatgpt)]
    assert all(word in text for word in ("21.2M at r = 8 is an initial rank of 12", "look swapped", "79.2"))
    markdown = report(tmp_path, "--format", "markdown").stdout
    boolq = printed("commonsense.csv", "2", "FlexLoRA r=32", metric="BoolQ")
    assert f"| paper: FlexLoRA r=32 (inferred) | 56.6M |  | {boolq} |" in markdown


def test_no_footnote_of_the_paper_beside_other_models(tmp_path):
    write_commonsense(tmp_path, 0.8, "flexlora", model="stories260k")
    text = report(tmp_path).stdout
    assert "another model than the paper's llama3_8b; these figures say nothing about the paper" in text
    assert "swapped" not in text
    assert "paper:" not in text


def test_vtabs_averages_against_numpy(tmp_path):
    values = np.random.default_rng(1).uniform(size=(2, 19))
    for seed in range(2):
        write_vtab(tmp_path, dict(zip(TASKS, values[seed], strict=True)), seed=seed)
    found = our(figures(tmp_path))
    natural, specialized, structured = values[:, :7], values[:, 7:11], values[:, 11:]
    assert TASKS[11] == "vtab/clevr_count"
    groups = [natural.mean(axis=1), specialized.mean(axis=1), structured.mean(axis=1)]
    expected = {
        "average_natural": groups[0],
        "average_specialized": groups[1],
        "average_structured": groups[2],
        "average": np.mean(groups, axis=0),
        "average_without_clevr_count": np.mean([*groups[:2], structured[:, 1:].mean(axis=1)], axis=0),
        "average_of_tasks": values.mean(axis=1),
    }
    assert list(found) == [*TASKS, *expected]
    for name, by_seed in expected.items():
        assert float(found[name]["mean"]) == pytest.approx(100 * by_seed.mean()), name
        assert float(found[name]["std"]) == pytest.approx(100 * by_seed.std(ddof=1)), name
        assert found[name]["n"] == "2"


def test_an_average_of_vtab_is_shown_where_its_tasks_were_run(tmp_path):
    write_vtab(tmp_path, dict.fromkeys(TASKS[7:11], 0.5))
    found = our(figures(tmp_path))
    assert list(found) == [*TASKS[7:11], "average_specialized", "average"]
    assert (found["average_specialized"]["mean"], found["average"]["status"]) == ("50.0", "4/19")
    text = report(tmp_path).stdout
    assert "4 of 19 tasks" in text
    assert "n/k  no average" in text
    assert list(our(figures(tmp_path, "--all-tasks")))[19:] == [average.task for average in TABLES["vtab"].averages]


def test_vtabs_averages_stand_beside_the_papers_own(tmp_path):
    """Table 3's printed average is that without Clevr-Count; the others are computed from its scores and marked."""
    write_vtab(tmp_path, dict.fromkeys(TASKS, 0.7), method="flexlora", **VIT)
    lines = figures(tmp_path)
    found = our(lines)
    count, average = (printed("vtab.csv", "3", "FlexLoRA", metric=metric) for metric in ("Clevr-Count", "Avg."))
    assert float(found["vtab/clevr_count"]["paper"]) == count
    assert float(found["average_without_clevr_count"]["difference"]) == pytest.approx(70 - average)
    assert float(found["average"]["difference"]) == pytest.approx(70 - 68.591, abs=1e-3)
    papers = {(line["method"], line["task"]): line for line in lines if line["source"] == "paper"}
    marks = {task: papers["flexlora", task]["marks"] for task in found}
    assert [task for task, mark in marks.items() if mark == "c"] == [
        average.task for average in TABLES["vtab"].averages if average.task != "average_without_clevr_count"
    ]
    full = papers["full", "average"], papers["full", "average_without_clevr_count"]
    assert [(float(line["mean"]), line["marks"]) for line in full] == [
        (printed("vtab.csv", "3", "Full FT", metric="Avg."), ""),
        (pytest.approx(68.425, abs=1e-3), "c"),
    ]
    text = report(tmp_path).stdout
    assert "ᶜ  not printed: computed from the paper's printed figures" in text
    assert "With Clevr-Count everywhere Full FT (68.8) is above FlexLoRA (68.6)" in " ".join(text.split())


def test_table_16_has_its_own_rows(tmp_path):
    """Each run in the table of its settings, and in no other."""
    training = {"learning_rate": 2e-3, "weight_decay": 1e-3}
    write_vtab(tmp_path, dict.fromkeys(TASKS, 0.6), method="lora", **VIT)
    write_vtab(tmp_path, dict.fromkeys(TASKS, 0.7), variant="table16", config={"training": training}, **VIT)
    lines = figures(tmp_path)
    assert {(line["table"], line["variant"]) for line in lines if line["source"] == "ours"} == {
        ("vtab", "default"),
        ("vtab_table16", "table16"),
    }
    table3 = our([line for line in lines if line["table"] == "vtab"])["average"]
    assert float(table3["paper"]) == pytest.approx(67.832, abs=1e-3)
    assert float(table3["mean"]) == pytest.approx(60)
    found = our(figures(tmp_path, "--table", "vtab_table16"))
    assert float(found["average"]["mean"]) == pytest.approx(70)
    for task in ("average", "vtab/cifar100"):
        metric = {"average": "Avg."}.get(task, "Cifar100")
        assert float(found[task]["paper"]) == printed("vtab.csv", "16", "LoRA", metric=metric)
    text = report(tmp_path, "--table", "vtab_table16").stdout
    assert "VTAB-1K, as Table 16 of the FlexLoRA paper" in text
    assert all(word in text for word in ("learning rate 2e-3", "LoRA 74.5, the table 75.7", "inferred", "VPT-Deep"))


@pytest.mark.parametrize(("columns", "blocks"), [(100, 4), (80, 6), (300, 1)])
def test_19_tasks_are_readable_at_any_width(tmp_path, columns, blocks):
    """Groups below each other, no line too long, no figure lost, the number of seeds said once."""
    for place, task in enumerate(TASKS):
        for seed in range(2):
            write_vtab(tmp_path, {task: (20 + 2 * place + 0.4 * seed) / 100}, seed=seed, method="flexlora", **VIT)
    text = report(tmp_path, columns=columns).stdout
    lines = text.splitlines()
    assert max(map(len, lines)) <= columns
    corners = [above.split()[0] for above, rule in pairwise(lines) if set(rule) == {"─"}]
    assert len(corners) == blocks
    assert list(dict.fromkeys(corners)) == ["method", "natural", "specialized", "structured"][:blocks]
    assert "of 2 seeds" in " ".join(text.split())
    assert "(2)" not in text
    shown = [word for line in lines if line.startswith("flexlora") for word in line.split()]
    for place in range(19):
        assert f"{20 + 2 * place + 0.2:.1f}" in shown
    assert text.count("± 0.3") == 19 + 6


def test_another_number_of_seeds_stands_in_brackets(tmp_path):
    for seed in range(3):
        write_vtab(tmp_path, dict.fromkeys(TASKS[:3], 0.5), seed=seed, method="lora")
    write_vtab(tmp_path, dict.fromkeys(TASKS[:2], 0.5), method="flexlora")
    text = report(tmp_path).stdout
    assert "of 3 seeds; other numbers of seeds in brackets" in text
    assert (text.count("(1)ᶠ"), text.count("(3)")) == (2, 0)


def test_every_benchmark_with_runs_is_shown_unless_one_is_asked_for(tmp_path):
    write_run(tmp_path)
    write_commonsense(tmp_path)
    write_vtab(tmp_path, {"vtab/dtd": 0.5})
    titles = [line.split(",")[0] for line in report(tmp_path).stdout.splitlines() if "say nothing about" in line]
    assert titles == ["GLUE", "Commonsense170K", "VTAB-1K"]
    assert {line["table"] for line in figures(tmp_path)} == {"glue", "commonsense170k", "vtab"}
    for name in ("glue", "commonsense170k", "vtab"):
        assert {line["table"] for line in figures(tmp_path, "--table", name)} == {name}
