"""Text files in other encodings: every reader takes UTF-8 with a byte order mark, and names any other encoding."""

import codecs
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commonsense_helpers import rows_of_format
from glue_helpers import RTE, settings_of, write, write_download
from vtab_helpers import CLASSES, write_task

from flexlora.errors import UserError
from flexlora.models.image_classifier import _read
from flexlora.saved_adapter import read_config
from flexlora.tasks import load_task
from flexlora.tasks.commonsense_rows import FORMATS, read_rows
from flexlora.tasks.image_lists import read_list
from flexlora.text_files import decode

Reader = Callable[[], Any]


def columns(suffix: str, folder: Path) -> tuple[Path, Reader]:
    for split in ("train", "validation"):
        write(folder / f"{split}{suffix}", RTE)
    return folder / f"train{suffix}", lambda: load_task(settings_of("rte", data_dir=str(folder))).train_rows.texts


def tsv(folder: Path) -> tuple[Path, Reader]:
    write_download(folder)
    return folder / "RTE" / "train.tsv", lambda: load_task(settings_of("rte", data_dir=str(folder))).train_rows.texts


def rows(folder: Path) -> tuple[Path, Reader]:
    file = folder / "test.json"
    file.write_text(json.dumps(rows_of_format(FORMATS[0], 3)), encoding="utf-8")
    return file, lambda: read_rows(file, "boolq").rows


def images(folder: Path) -> tuple[Path, Reader]:
    file = write_task(folder / "kitti") / "train800.txt"
    return file, lambda: (read_list(file, CLASSES).names, read_list(file, CLASSES).labels)


def adapter(folder: Path) -> tuple[Path, Reader]:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({"peft_type": "LORA", "target_modules": ["query"]}), encoding="utf-8")
    return file, lambda: read_config(folder)


def timm_model(folder: Path) -> tuple[Path, Reader]:
    file = folder / "config.json"
    file.write_text(json.dumps({"architecture": "deit_tiny_patch16_224"}), encoding="utf-8")
    return file, lambda: _read(file, str(folder)).architecture


READERS: dict[str, Callable[[Path], tuple[Path, Reader]]] = {
    "tsv": tsv,
    "csv": lambda folder: columns(".csv", folder),
    "json": lambda folder: columns(".json", folder),
    "jsonl": lambda folder: columns(".jsonl", folder),
    "commonsense": rows,
    "list of images": images,
    "adapter": adapter,
    "timm": timm_model,
}


@pytest.mark.parametrize("name", READERS)
def test_every_reader_takes_a_byte_order_mark_and_names_other_encodings(name, tmp_path):
    file, read = READERS[name](tmp_path)
    content, expected = file.read_bytes(), read()
    file.write_bytes(codecs.BOM_UTF8 + content)
    assert read() == expected
    text = content.decode("utf-8")
    others = {
        "utf-16": "UTF-16",  # with a mark
        "utf-16-le": "UTF-16",
        "utf-16-be": "UTF-16",
        "utf-32": "UTF-32",
    }
    for encoding, called in others.items():
        file.write_bytes(text.encode(encoding))
        with pytest.raises((UserError, ValueError)) as caught:
            read()
        assert f"{file} is {called}, not UTF-8: save it as UTF-8" in str(caught.value), encoding
    file.write_bytes(content + "\n\xe9".encode("latin-1"))
    with pytest.raises((UserError, ValueError)) as caught:
        read()
    line = content.count(b"\n") + 2
    assert f"{file}, line {line}: not UTF-8: save the file as UTF-8" in str(caught.value)
    assert "codec" not in str(caught.value)


def test_zero_bytes_in_a_text_are_not_taken_for_utf_16():
    for content in (b"", b"a", b"a\0b c d e f", b"\0" * 40, "é\0é".encode()):
        assert decode(content, "file") == content.decode("utf-8")


def test_half_a_letter_in_a_question_is_named(tmp_path):
    file, _ = rows(tmp_path)
    file.write_text(file.read_text(encoding="utf-8").replace("which is", "which \\ud83d is", 1), encoding="utf-8")
    with pytest.raises(UserError, match=r"test\.json, row 1: 'instruction' contains half of a surrogate pair"):
        read_rows(file, "boolq")


@pytest.mark.parametrize(("written", "label"), [("0.0", 0), ("1.0", 1), ("1.", 1), ("01", 1), ("1.000", 1)])
def test_a_whole_number_with_a_point_is_a_class_in_a_csv(written, label, tmp_path):
    write(tmp_path / "validation.csv", RTE)
    write(tmp_path / "train.csv", RTE | {"label": [written, "0"]})
    assert load_task(settings_of("rte", data_dir=str(tmp_path))).train_rows.labels == [label, 0]


@pytest.mark.parametrize("written", ["0.5", "2.0", "1e0", "-0.0", "1.0.0", ".0", "1,0", "nan", "inf", "٠"])
def test_other_numbers_are_no_class(written, tmp_path):
    write(tmp_path / "train.csv", RTE | {"label": [written, "0"]})
    with pytest.raises(UserError, match=r"train\.csv, row 1: label '.*' is not between 0 and 1$"):
        load_task(settings_of("rte", data_dir=str(tmp_path)))


UNLABELLED = ": -1 marks a row without a label, as in GLUE's test sets: give a file with labels"


@pytest.mark.parametrize("task", ["rte", "stsb"])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("written", [-1, -1.0])
def test_minus_one_is_explained_in_every_format(written, suffix, task, tmp_path):
    write(tmp_path / f"train{suffix}", RTE | {"label": [written, written]})
    with pytest.raises(UserError) as caught:
        load_task(settings_of(task, data_dir=str(tmp_path)))
    assert str(caught.value).endswith(UNLABELLED)


@pytest.mark.parametrize("task", ["CoLA", "STS-B"])
def test_minus_one_is_explained_in_the_classic_files(task, tmp_path):
    write_download(tmp_path)
    file = tmp_path / task / "train.tsv"
    file.write_bytes(file.read_bytes().replace(b"gj04\t1", b"gj04\t-1").replace(b"5.000", b"-1"))
    with pytest.raises(UserError) as caught:
        load_task(settings_of({"CoLA": "cola", "STS-B": "stsb"}[task], data_dir=str(tmp_path)))
    assert str(caught.value).endswith(UNLABELLED)
