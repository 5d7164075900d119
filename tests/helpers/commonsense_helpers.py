"""What the tests of Commonsense170K share: rows, their files, and a small language model that knows their words."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

from flexlora.settings import CommonsenseTask, Dtype, EvaluationMode, ModelSettings
from flexlora.tasks.commonsense_prompts import answer_sentence, evaluation_prompt, training_text
from flexlora.tasks.commonsense_rows import FORMATS, Row

THINGS = ["cat", "dog", "stone", "river", "spoon", "cloud", "lamp", "apple"]
SPECIAL = ["<unk>", "<s>", "</s>"]


def question(words: Sequence[str], draw: random.Random) -> Row:
    """A row of the format `words`; which of them answers it says its last thing."""
    things = draw.sample(THINGS, len(words))
    right = draw.randrange(len(words))
    listed = " ".join(f"{word.capitalize()} : {thing}" for word, thing in zip(words, things, strict=True))
    instruction = f"which is {things[right]} ? {listed}\n\nAnswer format: {'/'.join(words)}"
    answer = words[right]
    return {"instruction": instruction, "input": "", "output": answer_sentence(answer), "answer": answer}


def rows_of_format(words: Sequence[str], count: int, seed: int = 0) -> list[Row]:
    """So many rows of one format."""
    draw = random.Random(seed)
    return [question(words, draw) for _ in range(count)]


def write_rows(folder: Path, train: int = 48, test: int = 12) -> Path:
    """LLM-Adapters' layout: one training file of boolq's and winogrande's rows, a test set and a train set of each."""
    sets = {"boolq": FORMATS[0], "winogrande": FORMATS[4]}
    every: list[Row] = []
    for name, words in sets.items():
        (folder / "dataset" / name).mkdir(parents=True)
        rows = rows_of_format(words, train, seed=1)
        every += rows
        (folder / "dataset" / name / "train.json").write_text(json.dumps(rows), encoding="utf-8")
        tests = rows_of_format(words, test, seed=2)
        (folder / "dataset" / name / "test.json").write_text(json.dumps(tests), encoding="utf-8")
    (folder / "commonsense_170k.json").write_text(json.dumps(every), encoding="utf-8")
    return folder


def words_of_all() -> list[str]:
    """Every word of every text that these rows make."""
    texts = []
    for words in FORMATS:
        for row in rows_of_format(words, 200):
            texts += [training_text(row, row["output"]), evaluation_prompt(row), " ".join(words)]
    return sorted({word for text in texts for word in text.split()})


def write_llama(folder: Path, *, eos: bool = True, pad: bool = True) -> Path:
    """A LLaMA of two layers and hidden size 32 with random weights, one token a word."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    ids = {word: number for number, word in enumerate([*SPECIAL, *words_of_all()])}
    backend = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", ids["<s>"])])
    names = {"bos_token": "<s>", "unk_token": "<unk>"} | ({"eos_token": "</s>"} if eos else {})
    PreTrainedTokenizerFast(
        tokenizer_object=backend, **names, **({"pad_token": "<unk>"} if pad else {})
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(ids),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2 if eos else None,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def model_settings(path: Path, **changes: object) -> ModelSettings:
    """`model.*` of a language model in a folder."""
    values: dict = {
        "name": None,
        "kind": "causal_lm",
        "scale": "local",
        "path": str(path),
        "revision": None,
        "use_safetensors": True,
        "dtype": Dtype.float32,
        "quantization": None,
    }
    return ModelSettings(**{**values, **changes})


def task_settings(**changes: object) -> CommonsenseTask:
    """`task.*` of the benchmark, without a folder."""
    values: dict = {
        "name": "commonsense170k",
        "family": "commonsense",
        "num_labels": None,
        "main_metric": "average",
        "max_length": 256,
        "epochs": 1,
        "batch_size": 8,
        "data_dir": None,
        "hub_path": None,
        "hub_revision": None,
        "train_file": "commonsense_170k.json",
        "train_sets": None,
        "test_sets": ["boolq"],
        "train_on_inputs": True,
        "evaluation_mode": EvaluationMode.protocol,
        "num_beams": 4,
        "max_new_tokens": 32,
        "max_train_rows": None,
        "max_eval_rows": None,
        "validation_rows": None,
        "token_cache": None,
    }
    return CommonsenseTask(**{**values, **changes})
