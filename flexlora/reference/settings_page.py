"""The page of every setting, from the comments of the YAML files."""

from collections.abc import Iterable
from pathlib import Path

from flexlora.conf_path import conf_dir
from flexlora.settings.comments import Commented, commented_settings, head_comment

INTRO = """# Every setting

For anyone who looks for a setting or its default. This page is generated from the files in `conf/`. A setting is
`key=value` on the command line. `${recipe:KEY,DEFAULT}` means that a recipe of the method gives the value, and that
`DEFAULT` counts if it gives none ([Recipes](recipes.md)). The settings of a method are on the page of
[all methods](all-methods.md).
"""


def settings_page() -> str:
    """Return the page as Markdown."""
    root = conf_dir()
    parts = [INTRO, "## Run and training", table(commented_settings(root / "config.yaml"))]
    for group, what in {"benchmark": "Benchmark", "task": "Task", "model": "Model", "scale": "Scale"}.items():
        for file in sorted((root / group).glob("*.yaml")):
            settings = commented_settings(file)
            if not settings or file.stem == "none":
                continue
            prefix = f"{group}." if group in ("task", "model") else ""
            parts += [f"## {what} `{file.stem}`", text(head_comment(file)), table(settings, prefix)]
    parts += ["## Experiments", "Each one is a sweep: `flexlora-run experiment=NAME`.", _experiments(root)]
    return "\n\n".join(parts) + "\n"


def table(settings: Iterable[Commented], prefix: str = "") -> str:
    """Return a Markdown table of settings."""
    rows = [f"| `{prefix}{item.key}` | `{cell(item.value)}` | {text(item.meaning)} |" for item in settings]
    return "\n".join(["| setting | value in the file | meaning |", "|---|---|---|", *rows])


def text(comment: str) -> str:
    """Return a comment so that Markdown shows every character of it."""
    for special in "\\`*_<>[]{}|$~":
        comment = comment.replace(special, f"\\{special}")
    return comment


def cell(code: str) -> str:
    """Return code for a cell of a Markdown table, in which `|` would begin a new cell."""
    return code.replace("|", "\\|")


def _experiments(root: Path) -> str:
    rows = [
        f"| `{file.relative_to(root / 'experiment').with_suffix('').as_posix()}` | {text(head_comment(file))} |"
        for file in sorted((root / "experiment").rglob("*.yaml"))
    ]
    return "\n".join(["| `experiment=` | what it runs |", "|---|---|", *rows])
