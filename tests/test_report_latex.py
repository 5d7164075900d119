"""The LaTeX of every kind of table through pdflatex itself; and any letter that a failure's reason may hold."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_helpers import SCORES, report, write_run

from flexlora.report.latex import as_tex, breakable, figure_as_tex
from flexlora.report.tables import TABLES
from flexlora.results.predictions import Predictions

PDFLATEX = shutil.which("pdflatex")
REASON = "TypeError: <class 'int'> | a*b*c__init__ & 50% of $x_1^2 {#} ~ \\ é λ 中 😀 \x1b[1m\x00 “so” → end\n\n[1] --save"
PAPER = {"scale": "paper", "model": "deberta_v3_base"}
needs_pdflatex = pytest.mark.skipif(PDFLATEX is None, reason="no pdflatex on this machine to compile with")


def write_glue(root: Path) -> None:
    """Methods of one and of several seeds, with predictions to draw from, variants, and a run that failed."""
    for task in SCORES:
        for place, method in enumerate(("lora", "adalora", "flexlora")):
            for seed in range(1 if method == "lora" else 3):
                write_run(root, 0.5 + 0.1 * place + 0.001 * seed, task=task, method=method, seed=seed, **PAPER)
    write_run(root, method="flexlora", variant="method.importance=matrixwise_energy_entropy+training.epochs=3", **PAPER)
    labels = np.tile([0, 1, 1], 40)
    answers = np.where(np.arange(120) % 4 == 0, 1 - labels, labels)
    for seed, method in enumerate(("bitfit", "flexlora")):
        share = 0.75 - 0.25 * seed
        given = np.where(np.arange(120) % 2 == 0, answers, 1 - labels) if seed else answers
        share = float((given == labels).mean())
        folder = write_run(root, share, method=method, task="rte", seed=9, variant="with_predictions", **PAPER)
        Predictions(folder).keep(5, {"validation": list(given)}, {"validation": list(labels)}, best=True)
    write_run(root, None, status="failed", error=REASON, method="linear", task="rte", **PAPER)


def write_wide(root: Path, table: str, model: str) -> None:
    for column in TABLES[table].columns:
        for seed in range(3):
            scores = ("accuracy", column.metric)
            place = root / f"{column.task}-{column.metric}".replace("/", "-")
            write_run(place, 0.7 + seed / 100, task=column.task, scores=scores, method="flexlora", seed=seed,
                      scale="paper", model=model)  # fmt: skip
