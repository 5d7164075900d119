"""How the package is built: imports run downward only, files are short, the report needs no torch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "flexlora"
LONGEST = 400

# From the top down. A room may import the rooms of the lines below its own. Rooms of one line do not import each other.
ROOMS = (
    ("testing", "reference"),
    ("cli",),
    ("report", "doctor"),
    ("training",),
    ("tiny",),
    ("methods", "tasks"),
    ("models",),
    ("baselines",),
    ("sharing",),
    ("tuner",),
    ("saved_adapter",),
    ("results",),
    ("settings",),
    ("archives",),
    ("hub", "paths", "plugins", "source_hash", "text_files"),
    ("architectures", "cache", "conf_path", "errors", "import_hook", "reading"),
)
DEPTH = {room: depth for depth, rooms in enumerate(ROOMS) for room in rooms}

# (file, room that it imports although it lies above): why.
UPWARD: dict[tuple[str, str], str] = {}


def imported(file: Path) -> Iterator[tuple[int, str]]:
    """Every module of ours that a file imports, anywhere in it: line, and name from `flexlora.` on."""
    inside = file.relative_to(ROOT).with_suffix("").parts
    folder = inside[:-1]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = folder[: len(folder) - node.level + 1] if node.level else ()
            module = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            names = [module if module != "flexlora" else f"flexlora.{alias.name}" for alias in node.names]
        else:
            continue
        yield from ((node.lineno, name.removeprefix("flexlora.")) for name in names if name.startswith("flexlora."))


FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def test_every_room_has_its_place():
    assert {room_of(file) for file in FILES} - {"__init__"} == DEPTH.keys()


def test_imports_run_downward_only():
    upward = {}
    for file in FILES:
        here = room_of(file)
        if here == "__init__":  # the tuner's interface, and what `import flexlora` registers
            continue
        for line, name in imported(file):
            there = name.split(".")[0]
            if there in DEPTH and there != here and DEPTH[there] <= DEPTH[here]:
                place = (file.relative_to(PACKAGE).as_posix(), there)
                upward.setdefault(place, f"flexlora/{place[0]}:{line} imports {name}")
    assert sorted(text for place, text in upward.items() if place not in UPWARD) == []
    assert UPWARD.keys() <= upward.keys(), "an exception that is no longer needed"


@pytest.mark.parametrize("folder", ["flexlora", "scripts"])
def test_no_file_is_long(folder):
    lines = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in (ROOT / folder).rglob("*.py")}
    assert {file.name: count for file, count in lines.items() if count > LONGEST} == {}


def test_the_report_needs_no_torch():
    """Importing all of the report imports neither torch nor what would import it."""
    modules = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in (PACKAGE / "report").rglob("*.py")]
    names = ", ".join(name.removesuffix(".__init__") for name in sorted(modules))
    code = f"import sys, {names}; print(*{{'torch', 'peft', 'transformers'}} & sys.modules.keys())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert found.stdout.split() == []


def test_scripts_import_no_tests_and_tests_no_scripts():
    helpers = {file.stem for file in (ROOT / "tests").rglob("*.py")}
    for file in (ROOT / "scripts").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            assert not {name.split(".")[0] for name in names} & (helpers | {"tests"}), file.name
    for file in (ROOT / "tests").rglob("*.py"):
        if file != Path(__file__):
            assert "spec_from_file_location" not in file.read_text(encoding="utf-8"), file.name
