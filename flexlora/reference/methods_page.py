"""The page of every method: paper, number of parameters, settings and recipes, from the YAML files."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from flexlora.cli.config_loader import install
from flexlora.conf_path import conf_dir
from flexlora.doctor.method_rows import Described, method_rows
from flexlora.reference.settings_page import cell, table, text
from flexlora.settings import register_schemas, resolve, resolve_method
from flexlora.settings.comments import commented_settings, head_comment
from flexlora.settings.recipes import method_table

INTRO = """# All methods

For anyone who needs the paper, the number of parameters, the settings or the published numbers of one method. This page
is generated from `conf/method/`. [Methods](methods.md) explains the differences from the publications.

Parameters are those that train outside the head, at the start of the training. A `–` means that the method does not
adapt this backbone, or that the data decide the number. *from*: `PEFT` is a tuner of PEFT, `ours` a tuner of this
project, `weights` a choice of the model's own weights.
"""
MODELS = {"DeBERTaV3-base": "glue/cola", "ViT-B/16": "vtab/cifar100"}


def methods_page() -> str:
    """Return the page as Markdown."""
    files = {file.stem: file for file in sorted((conf_dir() / "method").glob("*.yaml"))}
    described = {model: {row.name: row for row in _rows(task, files)} for model, task in MODELS.items()}
    first = described["DeBERTaV3-base"]
    parts = [INTRO, _overview(first, described.values())]
    for name, file in files.items():
        parts += [f"## `{name}`", text(head_comment(file)), table(commented_settings(file), "method.")]
        recipes = _recipes(name)
        if recipes:
            parts += [f"Recipes of `{name}`:", recipes]
    return "\n\n".join(parts) + "\n"


def _rows(task: str, files: dict[str, Path]) -> list[Described]:
    register_schemas()
    install()
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        config = compose("config", overrides=[f"task={task}"])
        settings, plain = resolve(config)
        methods = {
            name: resolve_method(compose("config", overrides=[f"task={task}", f"method={name}"])) for name in files
        }
    return method_rows(settings, plain, methods, files)


def _overview(first: dict[str, Described], models: Iterable[dict[str, Described]]) -> str:
    models = list(models)
    kinds = [*next(iter(first.values())).backbones]
    header = ["`method=`", "from", *kinds, "merges", *MODELS, "paper and idea"]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for name, row in first.items():
        counts = [rows[name].parameters for rows in models]
        cells = [
            f"[`{name}`](#{name})",
            row.source,
            *("✓" if adapts else "–" for adapts in row.backbones.values()),
            {True: "✓", False: "no", None: "–"}[row.merges],
            *("–" if count is None else f"{count:,}" for count in counts),
            text(row.title),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _recipes(name: str) -> str:
    """Return a table of the method's recipe rows, inherited rows too, or an empty text if it has none."""
    rows = method_table(name, [conf_dir()])
    if not rows:
        return ""
    lines = [f"| `{row}` | {_numbers(settings)} |" for row, settings in rows.items()]
    return "\n".join(["| task, benchmark or scale | numbers |", "|---|---|", *lines])


def _numbers(settings: dict[str, Any]) -> str:
    plain = OmegaConf.to_container(OmegaConf.create(settings), resolve=False)
    assert isinstance(plain, dict)
    return ", ".join(f"`{key!s}={cell(str(value))}`" for key, value in plain.items())
