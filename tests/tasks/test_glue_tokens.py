"""Tokens: padding equals the tokenizer's own, tokens are cached between runs, and damaged files are detected."""

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from glue_helpers import settings_of
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from flexlora.results.folder import config_hash, variant_name
from flexlora.tasks import load_task
from flexlora.tasks import tokens as module
from flexlora.tasks.tokens import Examples, TokenCache, pad, tokenize
from flexlora.testing.small_data import NOUNS, VERBS

TEXTS = (["the cat sees the dog .", "the dog", "the teacher often helps the sailor ."], ["the cat", ".", "the dog ."])


@pytest.fixture(scope="module")
def tokenizer(tiny_bert):
    return AutoTokenizer.from_pretrained(tiny_bert)


@pytest.fixture
def counted(monkeypatch):
    """Count how often texts are tokenised."""
    calls = []

    def count(processor, texts, max_length):
        calls.append(len(texts[0]))
        return tokenize(processor, texts, max_length)

    monkeypatch.setattr(module, "tokenize", count)
    return calls


def same(a, b):
    return (
        a.columns.keys() == b.columns.keys()
        and np.array_equal(a.offsets, b.offsets)
        and all(np.array_equal(a.columns[name], b.columns[name]) for name in a.columns)
    )


words = st.lists(st.sampled_from([*NOUNS, *VERBS, "the", "."]), min_size=0, max_size=30).map(" ".join)


@settings(max_examples=60, deadline=None)
@given(
    pairs=st.lists(st.tuples(words, words), min_size=1, max_size=9),
    two=st.booleans(),
    side=st.sampled_from(["left", "right"]),
    max_length=st.integers(5, 64),
)
def test_a_padded_batch_equals_the_tokenizers_own(tokenizer, pairs, two, side, max_length):
    tokenizer.padding_side = side
    texts = tuple([pair[i] for pair in pairs] for i in range(1 + two))
    examples = Examples(tokenize(tokenizer, texts, max_length), list(range(len(pairs))))
    batch = pad(examples[:], tokenizer)
    encoded = tokenizer(*texts, truncation=True, max_length=max_length)
    theirs = tokenizer.pad(encoded, padding="longest", pad_to_multiple_of=8, return_tensors="pt")
    assert batch.keys() == theirs.keys()
    for name, values in theirs.items():
        assert batch[name].dtype == values.dtype
        assert torch.equal(batch[name], values), name


def test_padding_does_not_exceed_the_models_max_length(tiny_bert):
    """A model with 13 positions would fail on a width of 16."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert, model_max_length=13)
    examples = Examples(tokenize(tokenizer, (["the cat " * 20],), 13), [0])
    assert pad(examples[:], tokenizer)["input_ids"].shape == (1, 13)


def test_truncation_cuts_the_longer_text_of_a_pair(tokenizer):
    tokens = tokenize(tokenizer, (["cat " * 30, "dog"], ["dog .", "cat " * 30]), 12)
    long_first, long_second = (example["input_ids"].tolist() for example in Examples(tokens, [0, 1])[:])
    cat, dog, dot = tokenizer.convert_tokens_to_ids(["cat", "dog", "."])
    sep, cls = tokenizer.sep_token_id, tokenizer.cls_token_id
    assert long_first == [cls, *[cat] * 7, sep, dog, dot, sep]
    assert long_second == [cls, dog, sep, *[cat] * 8, sep]


def test_examples_are_views_of_the_smallest_type_and_texts_are_tokenised_in_chunks(tokenizer, monkeypatch):
    whole = tokenize(tokenizer, TEXTS, 64)
    monkeypatch.setattr(module, "CHUNK", 2)
    assert same(tokenize(tokenizer, TEXTS, 64), whole)
    examples = Examples(whole, [0, 1, 0])
    assert whole.columns["input_ids"].dtype == np.uint8
    assert examples[1]["input_ids"].base is whole.columns["input_ids"]
    assert [len(example["input_ids"]) for example in examples] == whole.lengths
    assert examples[-1]["labels"] == 0
    with pytest.raises(IndexError):
        examples[3]


def test_the_second_run_tokenises_nothing(tokenizer, tmp_path, counted):
    first = TokenCache(tmp_path / "cache", tokenizer).tokens(TEXTS, 64)
    again = TokenCache(tmp_path / "cache", tokenizer).tokens(TEXTS, 64)
    assert counted == [3]
    assert same(first, again)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".safetensors"]


def test_everything_that_changes_the_tokens_changes_the_file_name(tiny_bert, tmp_path, counted):
    def tokens(texts=TEXTS, max_length=64, **options):
        tokenizer = AutoTokenizer.from_pretrained(tiny_bert, **options)
        return TokenCache(tmp_path, tokenizer).tokens(texts, max_length)

    tokens()
    assert len(counted) == 1
    tokens(max_length=6)
    tokens(TEXTS[:1])
    tokens(([TEXTS[0][0] + TEXTS[0][1], "", TEXTS[0][2]], TEXTS[1]))  # the same characters, split differently
    tokens(truncation_side="left")
    other = AutoTokenizer.from_pretrained(tiny_bert)
    other.add_tokens(["sees"])
    TokenCache(tmp_path, other).tokens(TEXTS, 64)
    assert len(counted) == 6
    # Earlier calls of the tokenizer do not change the file name.
    used = AutoTokenizer.from_pretrained(tiny_bert)
    used(["the cat"], truncation=True, max_length=5, padding="max_length")
    assert same(TokenCache(tmp_path, used).tokens(TEXTS, 64), tokens())
    assert len(counted) == 6


@pytest.mark.parametrize("damage", ["cut", "one bit", "empty", "no safetensors", "a folder's worth of another"])
def test_a_damaged_token_file_is_detected_and_made_again(damage, tokenizer, tmp_path, counted, caplog):
    caplog.set_level("WARNING", "flexlora")
    cache = TokenCache(tmp_path, tokenizer)
    first = cache.tokens(TEXTS, 64)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[:-7])
    elif damage == "one bit":
        path.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "no safetensors":
        path.write_bytes(b"\x80" * 100)
    else:
        cache.tokens(tuple(text[:2] for text in TEXTS), 64)
        (other,) = set(tmp_path.iterdir()) - {path}
        path.write_bytes(other.read_bytes())
    counted.clear()
    assert same(cache.tokens(TEXTS, 64), first)
    assert counted == [3]
    assert "is damaged: making it again" in caplog.text
    assert same(cache.tokens(TEXTS, 64), first)
    assert counted == [3]


def test_an_unwritable_token_cache_only_costs_time(tokenizer, tmp_path, caplog, counted):
    caplog.set_level("WARNING", "flexlora")
    (tmp_path / "file").write_text("in the way")
    cache = TokenCache(tmp_path / "file" / "cache", tokenizer)
    for _ in range(2):
        assert same(cache.tokens(TEXTS, 64), tokenize(tokenizer, TEXTS, 64))
    assert counted == [3, 3]
    assert len(caplog.records) == 1
    assert "tokens are not cached: cannot write in" in caplog.text


def test_a_disabled_token_cache_writes_nothing(cola, tokenizer, tmp_path, monkeypatch, counted):
    monkeypatch.setenv("FLEXLORA_CACHE", str(tmp_path / "cache"))
    for _ in range(2):
        load_task(settings_of("cola", data_dir=str(cola), token_cache=None)).preprocess(tokenizer)
    assert counted == [64, 40, 64, 40]
    assert not (tmp_path / "cache").exists()
    for folder in ("default", str(tmp_path / "own")):
        for _ in range(2):
            load_task(settings_of("cola", data_dir=str(cola), token_cache=folder)).preprocess(tokenizer)
    assert counted == [64, 40] * 4
    assert len(list((tmp_path / "cache" / "tokens").iterdir())) == len(list((tmp_path / "own").iterdir())) == 2


@pytest.mark.slow
def test_two_processes_may_fill_the_token_cache_at_once(tiny_bert, tmp_path):
    script = textwrap.dedent(
        f"""
        import time
        from pathlib import Path
        from transformers import AutoTokenizer
        from flexlora.tasks import tokens
        tokenizer = AutoTokenizer.from_pretrained({str(tiny_bert)!r})
        make = tokens.tokenize
        def slowly(*arguments):  # until the other is at it too
            Path({str(tmp_path)!r}, f"began-{{__import__('os').getpid()}}").touch()
            until = time.monotonic() + 60
            while len(list(Path({str(tmp_path)!r}).glob("began-*"))) < 2 and time.monotonic() < until:
                time.sleep(0.01)
            return make(*arguments)
        tokens.tokenize = slowly
        texts = (["the cat sees the dog ."] * 500,)
        made = tokens.TokenCache(Path({str(tmp_path)!r}) / "cache", tokenizer).tokens(texts, 64)
        tokens.tokenize = None
        read = tokens.TokenCache(Path({str(tmp_path)!r}) / "cache", tokenizer).tokens(texts, 64)
        assert (made.columns["input_ids"] == read.columns["input_ids"]).all()
        """
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([sys.executable, "-c", script], env=environment, stderr=subprocess.PIPE) for _ in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors.decode()
    assert len(list(tmp_path.glob("began-*"))) == 2
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".safetensors"]


def test_a_floats_label_stays_a_float(tmp_path, tokenizer):
    task = load_task(settings_of("stsb", data_dir=str(_stsb(tmp_path))))
    task.preprocess(tokenizer)
    batch = task.collate(task.train.examples[:])
    assert batch["labels"].dtype == torch.float32
    assert batch["labels"].tolist() == [5.0, 0.75]


def _stsb(tmp_path):
    from glue_helpers import write_download

    return write_download(tmp_path / "glue_data")


def test_the_token_cache_folder_is_not_part_of_a_runs_identity():
    config = {"task": {"name": "glue/cola", "token_cache": "default"}, "seed": 0, "output_root": "outputs"}
    moved = {"task": {"name": "glue/cola", "token_cache": None}, "seed": 0, "output_root": "/elsewhere"}
    other = {"task": {"name": "glue/rte", "token_cache": None}, "seed": 0, "output_root": "outputs"}
    assert config_hash(config) == config_hash(moved) != config_hash(other)
    assert variant_name(["task.token_cache=null"]) == "default"
