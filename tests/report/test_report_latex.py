"""The LaTeX of every kind of table through pdflatex itself; and any letter that a failure's reason may hold."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from report_helpers import SCORES, report, write_cost, write_run

from flexlora.report.formats.latex_text import as_tex, breakable, figure_as_tex
from flexlora.report.tables import TABLES
from flexlora.results.predictions import Predictions

PDFLATEX = shutil.which("pdflatex")
REASON = (
    "TypeError: <class 'int'> | a*b*c__init__ & 50% of $x_1^2 {#} ~ \\ é λ 中 😀 \x1b[1m\x00 “so” → end\n\n[1] --save"
)
LLAMA = {"scale": "paper", "model": "llama3_8b"}
PAPER = {"scale": "paper", "model": "deberta_v3_base"}
needs_pdflatex = pytest.mark.skipif(PDFLATEX is None, reason="no pdflatex on this machine to compile with")


def write_glue(root: Path) -> None:
    """Methods of one and of several seeds, variants, predictions to draw from, and a run that failed."""
    for task in SCORES:
        for place, method in enumerate(("lora", "adalora", "flexlora")):
            for seed in range(0 if (task, method) == ("rte", "lora") else 3):
                value = 0.5 + 0.1 * place + 0.001 * seed * (place + 1)
                write_run(root, value, task=task, method=method, seed=seed, **PAPER)
    for importance in ("random", "nuclear", "matrixwise_energy_entropy"):
        variant = f"method.importance={importance}+training.epochs=3"
        write_run(root, 0.4, method="flexlora", variant=variant, **PAPER)
    labels = np.tile([0, 1, 1], 40)
    for seed, method in enumerate(("lora", "full")):
        answers = np.where(np.arange(120) % (4 - 2 * seed) == 0, 1 - labels, labels)
        share = float((answers == labels).mean())
        folder = write_run(root, share, method=method, task="rte", seed=9, **PAPER)
        Predictions(folder).keep(5, {"validation": list(answers)}, {"validation": list(labels)}, best=True)
    write_run(root, None, status="failed", error=REASON, method="linear", task="rte", **PAPER)


def write_commonsense(root: Path) -> None:
    scores = tuple(column.metric for column in TABLES["commonsense170k"].columns)
    for seed in range(3):
        write_run(root, 0.7, task="commonsense170k", scores=scores, method="flexlora", seed=seed, **LLAMA)


def write_vtab(root: Path) -> None:
    for column in TABLES["vtab"].columns:
        write_run(root, 0.7, task=column.task, method="flexlora", scale="paper", model="vit_b16")


def write_costs(root: Path) -> None:
    for method, seconds in (("lora", 100.0), ("flexlora", 150.0)):
        for seed, task in enumerate(("cola", "cola", "rte")):
            write_cost(root, seconds + seed, method, seed=seed, task=task, **PAPER)


KINDS = {
    "glue": (write_glue, ("--against", "lora", "--intervals")),
    "commonsense170k": (write_commonsense, ()),
    "vtab": (write_vtab, ()),
    "cost_table12": (write_costs, ()),
}


def compiled(folder: Path, body: str) -> str:
    """What pdflatex says of a document with this body; it must end well."""
    document = r"\documentclass{article}\usepackage{booktabs}\begin{document}" + body + r"\end{document}"
    (folder / "document.tex").write_text(document, encoding="utf-8")
    words = [PDFLATEX, "-interaction=nonstopmode", "document.tex"]
    result = subprocess.run(words, cwd=folder, capture_output=True, timeout=120, check=False)
    said = result.stdout.decode("utf-8", "replace")
    assert result.returncode == 0, "\n".join(line for line in said.splitlines() if line.startswith("!"))
    return said


@needs_pdflatex
@pytest.mark.parametrize("table", KINDS)
def test_every_kind_of_table_compiles_and_fits_its_page(tmp_path, table):
    write, options = KINDS[table]
    write(tmp_path / "runs")
    result = report(tmp_path / "runs", "--table", table, *options, "--output", tmp_path / "table.tex")
    assert result.returncode == 0, result.stderr
    text = (tmp_path / "table.tex").read_text(encoding="utf-8")
    said = compiled(tmp_path, text)
    assert not re.search(r"Overfull|too large|^!", said, re.M), said
    if table == "glue":
        for part in ("95 \\% interval", "p \\textless{}0.001", "failed: glue/", " to $-$"):
            assert part in text, part


@needs_pdflatex
def test_many_rows_fit_their_pages(tmp_path):
    for number in range(60):
        write_run(tmp_path / "runs", 0.5 + number / 1000, variant=f"method.r={number}")
    report(tmp_path / "runs", "--output", tmp_path / "table.tex")
    text = (tmp_path / "table.tex").read_text()
    assert "too large" not in compiled(tmp_path, text)
    assert sorted(map(int, re.findall(r"method\.r=(\d+)", text))) == [*range(60)]
    assert text.count("\\begin{table}") == text.count("continued.") + 1 > 2


@needs_pdflatex
def test_any_letter_compiles(tmp_path):
    """Every letter of the first blocks and some of each later one, in a text, a caption and at a row's start."""
    letters = [*map(chr, range(0x250)), *map(chr, range(0x250, 0x11000, 97)), "\ud800", "\U0001f600"]
    text = as_tex(" ".join(letters))
    rows = "".join(rf"{as_tex(letter)} & x \\" + "\n" for letter in letters[:0x180])
    for i in range(0, len(rows.splitlines()), 40):
        part = "\n".join(rows.splitlines()[i : i + 40])
        text += f"\n\n\\begin{{tabular}}{{lr}}\\toprule\n{part}\n\\bottomrule\\end{{tabular}}"
    compiled(tmp_path, f"\\begin{{table}}\\caption{{{as_tex(REASON)}}}\\end{{table}}\n{text}")


def test_signs_are_spelled_out():
    assert as_tex("< > | × ² ⁰ → − ± ≥") == (
        r"\textless{} \textgreater{} \textbar{} $\times$ \textsuperscript{2} \textsuperscript{0} $\to$ $-$ $\pm$ $\geq$"
    )
    assert as_tex("--save a-b – é 中\x1b\n[") == "-{}-save a-b -- é {[}U+4E2D{]}{[}U+001B{]} {[}"


def test_every_minus_of_a_figure_is_one():
    assert figure_as_tex("-17.0 to -4.2") == "$-$17.0 to $-$4.2"
    assert figure_as_tex("+1.0 to -2.0") == "+1.0 to $-$2.0"
    assert figure_as_tex("–") == "--"
    assert as_tex("a-1") == "a-1"  # a name


def test_a_path_may_end_a_line_anywhere_but_a_number_may_not():
    assert breakable(r"a/b\_c.d 0.5") == r"a/\allowbreak{}b\_\allowbreak{}c.\allowbreak{}d 0.5"
