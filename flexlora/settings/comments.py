"""The settings of a YAML file with the meaning that its comments give them."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from flexlora.reading import read_yaml_text
from flexlora.settings.recipes import lineage

NO_SETTINGS = ("defaults", "hydra", "recipes", "recipes_like", "benchmark")


class Commented(NamedTuple):
    """A setting of a YAML file."""

    key: str
    """With dots, as on the command line: `training.epochs`."""
    value: str
    """As the file writes it, on one line."""
    meaning: str
    """The comment behind the value, or the comment above the key. It is empty if there is none."""


def head_comment(file: Path) -> str:
    """Return the comment at the top of a YAML file on one line, without `# @package …`."""
    lines = read_yaml_text(file).splitlines()
    first = next((i for i, line in enumerate(lines) if not line.startswith("# @package")), len(lines))
    return _joined(_block(lines[first:]))


def commented_settings(file: Path) -> list[Commented]:
    """Return every setting of a YAML file in the order of the file, without recipes and Hydra's own keys."""
    text = read_yaml_text(file)
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if not isinstance(root, yaml.MappingNode):
        return []
    return list(_settings(root, text.splitlines(), ""))


def meanings(choices: Mapping[str, str | None], folders: Sequence[Path]) -> dict[str, str]:
    """Return the meaning of every setting of a run that has a comment.

    The comment of a benchmark counts before that of its tasks, whose comments are about the value.

    Args:
        choices: the chosen file of every group, such as `{"task": "glue/cola"}`.
        folders: the folders of YAML files; a later one replaces files of an earlier one.
    """
    files = [("", folder / "config.yaml") for folder in folders if (folder / "config.yaml").is_file()]
    for group, prefix in {"benchmark": "", "task": "task.", "method": "method.", "model": "model."}.items():
        name = choices.get(group)
        if name is not None:
            files += [(prefix, file) for file, _ in lineage(name, tuple(folders), group)]
    found: dict[str, str] = {}
    for prefix, file in files:
        for item in commented_settings(file):
            key = f"{prefix}{item.key}"
            # task.epochs is the default of training.epochs.
            meaning = found.get(key.replace("task.", "training.", 1)) or item.meaning
            if meaning:
                found.setdefault(key, meaning)
    return found


def _settings(mapping: yaml.MappingNode, lines: Sequence[str], prefix: str) -> Iterator[Commented]:
    for name, node in mapping.value:
        key = f"{prefix}{name.value}"
        if key in NO_SETTINGS or key.startswith("override "):
            continue
        if isinstance(node, yaml.MappingNode) and not node.flow_style:
            yield from _settings(node, lines, f"{key}.")
            continue
        value = _written(lines, node)
        behind = lines[node.end_mark.line][node.end_mark.column :].strip() if value else ""
        line = name.start_mark.line
        above = [] if line == 0 else _block(lines[line - 1 :: -1])[::-1]
        heads_file = len(above) == line
        yield Commented(key, value, _joined([behind] if behind.startswith("#") else [] if heads_file else above))


def _written(lines: Sequence[str], node: yaml.Node) -> str:
    start, end = node.start_mark, node.end_mark
    if start.line == end.line:
        return lines[start.line][start.column : end.column]
    parts = [lines[start.line][start.column :], *lines[start.line + 1 : end.line], lines[end.line][: end.column]]
    return " ".join(part.partition("  #")[0].strip() for part in parts).strip()


def _block(lines: Sequence[str]) -> list[str]:
    """Return the comment lines at the beginning of `lines`."""
    count = next((i for i, line in enumerate(lines) if not line.lstrip().startswith("#")), len(lines))
    return list(lines[:count])


def _joined(comment: Sequence[str]) -> str:
    return " ".join(line.strip().lstrip("#").strip() for line in comment)
