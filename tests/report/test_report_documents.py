"""Tables for a page: Markdown, LaTeX, HTML and CSV of one report hold the same figures; best and second stand out."""

import csv
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_helpers import SCORES, printed, report, write_run

from flexlora.report.build import build
from flexlora.report.cells import Cell, mark_places
from flexlora.report.formats.text import as_text
from flexlora.report.layout import SUPERSCRIPT
from flexlora.report.marks import MARKS
from flexlora.report.numbers import printed_count
from flexlora.report.tables import TABLES
from flexlora.results.collect import collect

PAPER = {"scale": "paper", "model": "deberta_v3_base"}
VIT = {"scale": "paper", "model": "vit_b16"}
ENDINGS = (".csv", ".html", ".md", ".tex")


class Rows(HTMLParser):
    """The table rows of a page, each a list of cells with their markup; every tag must be closed in its turn."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.seen.add(tag)
        if tag != "meta":
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag in ("b", "u"):
            self.rows[-1][-1] += f"<{tag}>"

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag in ("b", "u"):
            self.rows[-1][-1] += f"</{tag}>"

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th", "b", "u"):
            self.rows[-1][-1] += data


def of_markdown(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    rows = [[re.sub(r"\*\*(.*)\*\*", r"<b>\1</b>", cell) for cell in row] for row in rows]
    return [[re.sub(r"\\(.)", r"\1", cell) for cell in row] for row in rows]


def of_latex(text: str) -> list[list[list[str]]]:
    """The rows of each tabular, below its two lines of headings, in the markup of HTML."""
    tabulars = re.findall(r"\\begin\{tabular\}\{(l r*|lr*)\}(.*?)\\end\{tabular\}", text, re.DOTALL)
    found = []
    for spec, body in tabulars:
        rows = [line.removesuffix(r" \\").split(" & ") for line in body.splitlines() if line.endswith(r" \\")]
        assert {len(row) for row in rows} == {len(spec)}
        found.append([[plain(cell.strip()) for cell in row] for row in rows[2:]])
    return found


def plain(cell: str) -> str:
    cell = re.sub(r"\\textsuperscript\{(.)\}", lambda m: m[1].translate(str.maketrans("svgdmxfc", "ˢᵛᵍᵈᵐˣᶠᶜ")), cell)
    cell = re.sub(r"\\textbf\{(.*)\}", r"<b>\1</b>", cell)
    cell = re.sub(r"\\underline\{(.*)\}", r"<u>\1</u>", cell)
    for code, sign in (
        (r"\quad ", ""),
        (r"$\pm$", "±"),
        ("$-$", "-"),
        (r"\_", "_"),
        ("--", "–"),
        (r"\&", "&"),
        (r"\%", "%"),
    ):
        cell = cell.replace(code, sign)
    return cell


def whole(tabulars: list[list[list[str]]]) -> list[list[str]]:
    """The rows of tabulars of some columns each put together; a tabular leaves out rows that are empty in it.

    Of rows of one name, such as differences, each is told by the row it stands below.
    """
    names = max(tabulars, key=len)
    rows = {key: [key[1]] for key in keys_of(names)}
    for tabular in tabulars:
        there = dict(zip(keys_of(tabular), tabular, strict=True))
        for key, row in rows.items():
            row += there[key][1:] if key in there else [""] * (len(tabular[0]) - 1)
    return [*rows.values()]


def keys_of(tabular: list[list[str]]) -> list[tuple[str, str]]:
    keys = []
    for name, *_ in tabular:
        owner = keys[-1][0] if name.startswith("less ") else name
        keys.append((owner, name))
    return keys


def saved(root: Path, folder: Path, *arguments: str) -> dict[str, str]:
    result = report(root, "--save", folder, *arguments)
    assert result.returncode == 0, result.stderr
    return {file.name: file.read_text(encoding="utf-8") for file in folder.iterdir()}


def test_every_format_holds_the_same_figures(tmp_path):
    for seed in range(2):
        for task in SCORES:
            for place, method in enumerate(("lora", "adalora", "my_own", "flexlora")):
                fields = {"status": "failed"} if (seed, task, method) == (1, "rte", "lora") else {}
                write_run(
                    tmp_path, 0.5 + 0.1 * place + 0.01 * seed, task=task, method=method, seed=seed, **PAPER, **fields
                )
    files = saved(tmp_path, tmp_path / "tables")
    assert sorted(files) == [f"glue{ending}" for ending in ENDINGS]
    page = Rows(files["glue.html"]).rows
    assert page == of_markdown(files["glue.md"])
    assert page[1:] == whole(of_latex(files["glue.tex"]))
    ours = {row[0]: row for row in page}
    assert ours["flexlora"][3] == "<b>80.5 ± 0.7 (2)</b>"
    assert ours["my_own"][3] == "<u>70.5 ± 0.7 (2)</u>"
    assert ours["adalora"][3] == "60.5 ± 0.7 (2)"
    assert ours["paper: AdaLoRA"][3] == str(printed("glue.csv", "4", "AdaLoRA", task="glue/cola"))
    heads = page[0]
    assert ours["lora"][heads.index("RTE Acc.")] == "50.0 (1)ˣᶠ"
    lines = list(csv.DictReader(io.StringIO(files["glue.csv"])))
    figures = [line for line in lines if line["source"] == "ours"]
    assert len(figures) == 4 * (len(heads) - 1)
    assert any(
        (line["method"], line["metric"], float(line["mean"])) == ("my_own", "pearson", pytest.approx(70.5))
        for line in figures
    )


def test_groups_are_tabulars_of_their_own_in_latex_and_one_table_in_html(tmp_path):
    tasks = [column.task for column in TABLES["vtab"].columns]
    for task in tasks:
        write_run(tmp_path, 0.7, task=task, method="flexlora", **VIT)
    files = saved(tmp_path, tmp_path / "tables")
    rows = Rows(files["vtab.html"]).rows
    assert {len(row) for row in rows} == {1 + 2 + 19 + 6}
    tabulars = of_latex(files["vtab.tex"])
    groups = ("method", "natural", "specialized", "structured")
    heads = re.findall(rf"({'|'.join(groups)}) & ", files["vtab.tex"])
    assert list(dict.fromkeys(heads)) == [*groups]
    flexlora = {row[0]: row for row in rows}["flexlora"]
    parts = [{row[0]: row for row in tabular}["flexlora"][1:] for tabular in tabulars]
    shown = [cell for part in parts for cell in part]
    assert [*shown[:2], *shown[8:], *shown[2:8]] == flexlora[1:]
    assert "72.3ᶜ" in {row[0]: row for row in rows}["paper: LoRA (inferred)"]


def test_a_file_for_each_table_that_has_runs(tmp_path):
    write_run(tmp_path)
    write_run(tmp_path, model="other")
    write_run(tmp_path, task="vtab/dtd", **VIT)
    result = report(tmp_path, "--save", tmp_path / "some" / "tables")
    names = [file.name for file in sorted((tmp_path / "some" / "tables").iterdir())]
    assert names == [f"{table}{ending}" for table in ("glue", "vtab") for ending in ENDINGS]
    assert result.stdout.splitlines() == [
        f"{tmp_path}/some/tables/glue.{{md,csv,tex,html}}: 2 tables",
        f"{tmp_path}/some/tables/vtab.{{md,csv,tex,html}}: 1 table",
    ]
    only = saved(tmp_path, tmp_path / "only", "--table", "vtab")
    assert sorted(only) == [f"vtab{ending}" for ending in ENDINGS]


def test_a_page_needs_nothing_else_and_takes_any_text(tmp_path):
    error = "<script>alert(1)</script> & 50% of $x_1^2 {#} ~ \\ | end"
    write_run(tmp_path, status="failed", error=error, method="a_b")
    files = saved(tmp_path, tmp_path / "tables")
    page = files["glue.html"]
    assert "script" not in Rows(page).seen
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; 50%" in page
    assert not re.search(r"https?:|src=|@import|url\(", page)
    latex = files["glue.tex"]
    assert r"\& 50\% of \$x\_1\textasciicircum{}2 \{\#\} \textasciitilde{} \textbackslash{} \textbar{} end" in latex
    assert "a_b" not in latex
    begun, ended = (sorted(re.findall(rf"\\{word}\{{(\w+)\}}", latex)) for word in ("begin", "end"))
    assert begun == ended == ["itemize", "table", "tabular"]


def test_markdown_takes_text_literally(tmp_path):
    error = "TypeError: <class 'int'> | a*b*c in __init__ of max_rows [x](y) &lt; `z` \\ ~"
    write_run(tmp_path, status="failed", error=error, variant="a*b*|c")
    text = saved(tmp_path, tmp_path / "tables")["glue.md"]
    (note,) = (line for line in text.splitlines() if line.startswith("- failed"))
    expected = r"TypeError: \<class 'int'\> \| a\*b\*c in \_\_init\_\_ of max_rows \[x\](y) \&lt; \`z\` \\ \~"
    assert expected in note
    assert r"All rows: a\*b\*\|c." in text


def test_half_a_character_is_spelled_out(tmp_path):
    """As in a record that names a file whose name is not UTF-8."""
    folder = write_run(tmp_path, status="failed", error="no file HALF.tsv", main_metric="accuracy", task="rte")
    record = folder / "result.json"
    record.write_text(record.read_text().replace("HALF", "\\udcff"))
    files = saved(tmp_path, tmp_path / "tables")
    assert r"no file \udcff.tsv" in files["glue.md"]
    assert r"no file \udcff.tsv" in files["glue.html"]
    assert "no file {[}U+DCFF{]}." in files["glue.tex"]
    page = tmp_path / "page.html"
    assert report("html", tmp_path, "--output", page).returncode == 0
    assert r"no file \udcff.tsv" in page.read_text()


def test_the_papers_printed_parameters_are_in_the_csv(tmp_path):
    """As every other format shows them: those of adapters and those of all that is trained."""
    write_run(tmp_path, method="lora", **PAPER)
    files = saved(tmp_path, tmp_path / "tables")
    lines = csv.DictReader(io.StringIO(files["glue.csv"]))
    found = {(row["method"], row["metric"]): row["mean"] for row in lines if row["source"] == "paper"}
    assert float(found["lora", "adapter_parameters"]) == 1_300_000
    assert float(found["flexlora", "trainable_parameters"]) == 1_900_000
    assert ("lora", "trainable_parameters") not in found
    assert {row[0]: row for row in Rows(files["glue.html"]).rows}["paper: LoRA (inferred)"][1:3] == ["1.3M", ""]


@pytest.mark.parametrize(
    ("text", "number"),
    [("1.33M", 1_330_000), ("332k", 332_000), ("8B", 8e9), ("57", 57), ("0M", 0), ("-", None), ("", None)],
)
def test_a_printed_count_is_a_number(text, number):
    assert printed_count(text) == number


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--save", "x", "--format", "csv"], "leave --output and --format out"),
        (["--save", "x", "--output", "y.md"], "leave --output and --format out"),
        (["--save", "/dev/null/tables"], "cannot write into /dev/null/tables: Not a directory"),
    ],
)
def test_what_cannot_be_saved_is_one_line(tmp_path, arguments, what):
    write_run(tmp_path)
    result = report(tmp_path, *arguments, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.strip().splitlines()
    assert what in line
    assert not (tmp_path / "x").exists()


def test_best_and_second_stand_out_on_a_terminal_with_colours(tmp_path):
    for method, value in (("lora", 0.5), ("adalora", 0.6), ("flexlora", 0.7)):
        write_run(tmp_path, value, method=method)
    sheets = build(TABLES["glue"], collect(tmp_path).runs)
    text = as_text(sheets, 100, colour=True)
    assert "\x1b[1m70.0 (1)\x1b[0m" in text
    assert "\x1b[4m60.0 (1)\x1b[0m" in text
    assert re.sub(r"\x1b\[\d+m", "", text).split() == as_text(sheets, 100).split()


@given(st.lists(st.none() | st.integers(0, 40), max_size=6))
def test_places_are_those_of_the_figures_as_printed(numbers):
    """Against counting: the best of two or more that differ, the second of three or more; alike as they print."""
    cells = [Cell(word="–") if number is None else Cell(mean=number / 20, n=1) for number in numbers]
    shown = [None if cell.mean is None else f"{round(cell.mean, 1):.1f}" for cell in cells]
    there = [float(text) for text in shown if text is not None]
    for cell, text in zip(mark_places(cells, frozenset()), shown, strict=True):
        better = len({value for value in there if text is not None and value > float(text)})
        expected = better + 1 if text is not None and better < 2 and len(set(there)) > 1 else 0
        assert cell.place == (0 if expected == 2 and len(there) < 3 else expected)


@pytest.mark.parametrize("mark", ["s", "g", "d", "m"])
def test_other_data_or_settings_have_no_place_unless_all_rows_share_them(mark):
    cells = [Cell(0.9, n=1, marks=frozenset({mark})), Cell(0.5, n=1), Cell(0.6, n=1, marks=frozenset("f"))]
    assert [cell.place for cell in mark_places(cells, frozenset())] == [0, 0, 1]
    assert [cell.place for cell in mark_places(cells, frozenset({mark}))] == [1, 0, 2]


def test_the_docs_list_every_mark():
    page = Path(__file__).resolve().parents[2] / "docs" / "reference" / "flexlora-report.md"
    text = page.read_text(encoding="utf-8")
    assert f"letters `{' '.join(MARKS)}`" in text
    assert "".join(re.findall(r"^\| (.) \|", text, re.M)) == "".join(MARKS).translate(SUPERSCRIPT)
