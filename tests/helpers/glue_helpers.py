"""The eight GLUE tasks in small: composed settings, and files as the original download lays them out."""

import csv
import json
from functools import cache
from pathlib import Path

from compose_helpers import settings_of_run

from flexlora.settings import GlueTask

TASKS = ("cola", "mnli", "mrpc", "rte", "qnli", "sst2", "stsb", "qqp")
RTE = {"sentence1": ['A "b.', "Ünï\nc"], "sentence2": ["C,", "D"], "label": [1, 0], "idx": [0, 1]}


@cache
def _composed(task: str) -> GlueTask:
    return settings_of_run(f"task=glue/{task}", "method=lora").task


def settings_of(task: str, **changes: object) -> GlueTask:
    """`task=glue/<task>` as composed, with some settings changed."""
    return GlueTask(**{**vars(_composed(task)), **changes})  # type: ignore[arg-type]


# Headers and columns of the original files. Texts hold what trips a reader: quotes that never close, commas, accents.
_MNLI_PARSES = "( x )\t( y )\t(ROOT x)\t(ROOT y)"
DOWNLOAD: dict[str, dict[str, bytes]] = {
    "CoLA": {
        "train.tsv": b"gj04\t1\t\tOur friends won't buy this.\ngj04\t0\t*\tThey \"drank the pub.\n",
        "dev.tsv": b"gj04\t1\t\tThe sailors rode the breeze.\n",
    },
    "SST-2": {
        "train.tsv": b'sentence\tlabel\nhide new secretions from the parental units \t0\na "gem , really \t1\n',
        "dev.tsv": b"sentence\tlabel\nit 's a charming journey . \t1\n",
    },
    "QQP": {
        "train.tsv": (
            b"id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
            b'133273\t213221\t213222\tHow is the life of a "math student?\tWhich level is enough?\t0\n'
            b"402555\t536040\t536041\tHow do I control my emotions?\tHow do you control yours?\t1\n"
            # A line break inside the second question tore this row in two, as in the original's line 97,931.
            b"246711\t361841\t361842\tWas Muhammad real?\t\n"
            b'"\tWas Muhammad a real historical figure? What is the evidence?\t0\n'
        ),
        "dev.tsv": b"id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n201359\t1\t2\tWhy?\tWhy not?\t0\n",
    },
    "MNLI": {
        "train.tsv": (
            "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse"
            "\tsentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label\n"
            f"0\t31193\t31193n\tgovernment\t{_MNLI_PARSES}\tCream skimming.\tProduct and geography.\tneutral\tneutral\n"
            f"1\t101457\t101457e\ttelephone\t{_MNLI_PARSES}\tyou know\tYou lose.\tentailment\tentailment\n"
            f"2\t1\t1c\tfiction\t{_MNLI_PARSES}\tHe came.\tHe did not.\tcontradiction\tcontradiction\n"
        ).encode(),
        "dev_matched.tsv": (
            "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse"
            "\tsentence2_parse\tsentence1\tsentence2\tlabel1\tlabel2\tlabel3\tlabel4\tlabel5\tgold_label\n"
            f"0\t63735\t63735n\tslate\t{_MNLI_PARSES}\tThe new rights.\tEveryone likes them.\tneutral\tentailment"
            "\tneutral\tneutral\tneutral\tneutral\n"
        ).encode(),
        "dev_mismatched.tsv": (
            "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse"
            "\tsentence2_parse\tsentence1\tsentence2\tlabel1\tlabel2\tlabel3\tlabel4\tlabel5\tgold_label\n"
            f"0\t75290\t75290c\tletters\t{_MNLI_PARSES}\tYour contribution.\tIt was useless.\tcontradiction"
            "\tcontradiction\tcontradiction\tcontradiction\tcontradiction\tcontradiction\n"
        ).encode(),
    },
    "QNLI": {
        "train.tsv": (
            "index\tquestion\tsentence\tlabel\n"
            '0\tWhen did the third Digimon series begin?\tUnlike the two before it, it is "darker.\tnot_entailment\n'
            "1\tWhich missile has a yield of 50 kt?\tThe 15 kt yield–one.\tentailment\n"
        ).encode(),
        "dev.tsv": b"index\tquestion\tsentence\tlabel\n0\tWhat came into force?\tAs of that day.\tentailment\n",
    },
    "RTE": {
        "train.tsv": (
            b"index\tsentence1\tsentence2\tlabel\n"
            b"0\tNo Weapons Found in Iraq Yet.\tWeapons Found in Iraq.\tnot_entailment\n"
            b'1\tA place of sorrow.\tPope Benedict "XVI is the new leader.\tentailment\n'
        ),
        "dev.tsv": b"index\tsentence1\tsentence2\tlabel\n0\tDana Reeve died.\tSomeone died.\tentailment\n",
    },
    "MRPC": {
        "train.tsv": (
            b"\xef\xbb\xbfQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n"
            b'1\t702876\t702977\tAmrozi accused his brother , whom he called " the witness " .\tReferring to him .\r\n'
            b"0\t2108705\t2108831\tYucaipa owned Dominick 's .\t\" Yucaipa bought Dominick 's .\r\n"
        ),
        "dev.tsv": (
            b'\xef\xbb\xbfQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t1355540\t1355592\tHe said .\t" He did .\n'
        ),
    },
    "STS-B": {
        "train.tsv": (
            b"index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
            b"0\tmain-captions\tMSRvid\t2012test\t0001\tnone\tnone\tA plane is taking off.\tAn air plane.\t5.000\n"
            b'1\tmain-news\theadlines\t2013\t0002\tnone\tnone\tIt "ended.\tIt began.\t0.750\n'
        ),
        "dev.tsv": (
            b"index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
            b"0\tmain-captions\tMSRvid\t2012test\t0000\tnone\tnone\tA man in a hat.\tA man dancing.\t2.500\n"
        ),
    },
}


def write_download(root: Path) -> Path:
    """All eight tasks' folders under `root`."""
    for folder, files in DOWNLOAD.items():
        (root / folder).mkdir(parents=True)
        for name, content in files.items():
            (root / folder / name).write_bytes(content)
    return root


def write(path: Path, columns: dict[str, list[object]]) -> None:
    """`columns` in the format that the file's name says."""
    import datasets

    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    if path.suffix == ".parquet":
        datasets.Dataset.from_dict(columns).to_parquet(path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(columns))
            writer.writeheader()
            writer.writerows(rows)
