"""Write data in the layout of CoLA, and a small BERT. Both are made here and need no network."""

import random
from pathlib import Path

# A random encoder learns this grammar in a few steps: a sentence without a verb is not acceptable.
NOUNS = ["cat", "dog", "child", "teacher", "sailor", "farmer", "singer", "doctor"]
VERBS = ["see", "like", "help", "know", "follow", "thank", "call", "hear"]
ADVERBS = ["often", "never", "always", "again"]


def sentences(count: int, seed: int) -> list[tuple[str, int]]:
    """Return sentences of five to nine words, and whether each is acceptable. Half of them are acceptable."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        acceptable = number % 2
        subject, thing = draw.sample(NOUNS, 2)
        verb = f"{draw.choice(VERBS)}s" if acceptable else draw.choice(NOUNS)
        tail = draw.sample(ADVERBS, draw.randint(0, 3))
        rows.append((" ".join(["the", subject, verb, "the", thing, *tail, "."]), acceptable))
    draw.shuffle(rows)
    return rows


def write_cola(folder: Path, train: int = 64, dev: int = 40) -> Path:
    """Write the data in CoLA's classic layout: no header, and the columns source, label, star and sentence.

    Quotes have no special meaning.
    """
    (folder / "CoLA").mkdir(parents=True)
    for name, count, seed in (("train.tsv", train, 1), ("dev.tsv", dev, 2)):
        rows = sentences(count, seed)
        lines = [f"made\t{label}\t{'' if label else '*'}\t{text}\n" for text, label in rows]
        (folder / "CoLA" / name).write_text("".join(lines), encoding="utf-8")
    return folder


def write_bert(folder: Path) -> Path:
    """Write a BERT with two layers, hidden size 32, random weights, and a WordPiece vocabulary for `sentences`."""
    import torch
    from transformers import BertConfig, BertModel
    from transformers.models.bert.tokenization_bert import BertTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = [*special, ".", "the", *NOUNS, *VERBS, *ADVERBS, "##s"]
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=64).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    BertModel(config).save_pretrained(folder)
    return folder
