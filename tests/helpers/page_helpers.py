"""What a how-to page has its reader do: the files it shows and the commands it gives."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
HOW_TO = ROOT / "docs" / "how-to"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def write_files(page: str, folder: Path) -> list[Path]:
    """Write every file of the page below `folder`: each block that begins with `# file: <path>`."""
    written = []
    for _, text in BLOCK.findall((HOW_TO / page).read_text(encoding="utf-8")):
        named = re.match(r"# file: (\S+)\n", text)
        if named is not None:
            file = folder / named[1]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text.partition("\n")[2], encoding="utf-8")
            written.append(file)
    return written


def commands(page: str, program: str) -> list[list[str]]:
    """The arguments of every call of `program` in the page's commands."""
    blocks = BLOCK.findall((HOW_TO / page).read_text(encoding="utf-8"))
    lines = [shlex.split(line) for language, text in blocks if language == "bash" for line in text.splitlines()]
    return [words[1:] for words in lines if words and words[0] == program]


def readme_script() -> str:
    """The Python lines of the README."""
    (script,) = (
        text
        for language, text in BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))
        if language == "python"
    )
    return script
