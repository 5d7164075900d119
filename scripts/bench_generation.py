"""Measure how fast `task.evaluation_mode=fast` answers, and whether its answers are those of the protocol.

    python scripts/bench_generation.py MODEL DATA [--adapter DIR] [--sets boolq,piqa] [--rows 500] [--bf16]

The protocol's loop is the loop of LLM-Adapters' commonsense_evaluate.py, written again here with greedy search (one
beam). It takes the rows in the order of their file and generates every token. `fast` is the task's own code, with
batches of similar length. Both are timed in one run, on the same rows and with the same batch size. The answers to
every row are compared. In float32 all answers must agree, otherwise the exit code is 1. In bfloat16 sums depend on the
padding, and the script counts the answers that differ.

docs/reference/commonsense.md has figures for stories260k on two CPU cores.
"""

import argparse
import re
import sys
import time
from pathlib import Path
from typing import Any

import torch

from flexlora.models import causal_lm
from flexlora.settings import CommonsenseTask, Dtype, EvaluationMode, ModelSettings
from flexlora.tasks.commonsense import UNPARSED, Commonsense, commonsense
from flexlora.tasks.commonsense_prompts import evaluation_prompt, training_text
from flexlora.tasks.commonsense_rows import TEST_SETS, Row, format_of, read_rows
from flexlora.training.batching import epoch_batches, evaluation_batches

NEW_TOKENS = 32


def protocol_loop(model: Any, tokenizer: Any, rows: list[Row], batch_size: int) -> list[int]:
    """Return the answers of the protocol's loop: for each row the number of the chosen option, or -1 for no option."""
    answers = []
    for first in range(0, len(rows), batch_size):
        batch = rows[first : first + batch_size]
        inputs = tokenizer([evaluation_prompt(row) for row in batch], return_tensors="pt", padding=True)
        made = model.generate(
            input_ids=inputs["input_ids"].to(model.device),
            attention_mask=inputs["attention_mask"].to(model.device),
            num_beams=1,
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        for row, text in zip(batch, tokenizer.batch_decode(made, skip_special_tokens=True), strict=True):
            words = format_of(row)
            found = re.findall("|".join(words), text.split("### Response:")[1].strip())
            answers.append(words.index(found[0]) if found else UNPARSED)
    return answers


def fast_loop(model: Any, task: Commonsense, batch_size: int) -> list[int]:
    """Return the answers of the task's own code. A run's evaluation also computes the loss."""
    (split,) = task.evaluation
    answers = [UNPARSED] * len(split)
    for indices in evaluation_batches(split.lengths, batch_size):
        batch = task.collate([split.examples[i] for i in indices])
        batch = {name: value.to(model.device) for name, value in batch.items()}
        for i, answer in zip(indices, task.answered(model, batch).tolist(), strict=True):
            answers[i] = answer
    return answers


def task_of(rows: list[Row], name: str, tokenizer: Any) -> Commonsense:
    """Return a task that evaluates on these rows in the fast mode."""
    settings = CommonsenseTask(
        name="bench",
        main_metric="average",
        evaluation_mode=EvaluationMode.fast,
        max_new_tokens=NEW_TOKENS,
        max_length=256,
        train_on_inputs=True,
        max_train_rows=None,
        max_eval_rows=None,
        validation_rows=None,
        token_cache=None,
    )
    task = commonsense(settings, rows[:1], {name: rows}, {})
    task.preprocess(tokenizer)
    return task


def timed(answer: Any, *arguments: Any) -> tuple[list[int], float]:
    """Return the answers of a loop, and the number of rows that it answers per second."""
    began = time.perf_counter()
    answers = answer(*arguments)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return answers, len(answers) / (time.perf_counter() - began)


def loaded(path: str, dtype: Dtype, adapter: str | None) -> tuple[Any, Any]:
    """Return the model (with the adapter, if one is given) and its tokenizer."""
    settings = ModelSettings(
        name=None,
        kind="causal_lm",
        scale="local",
        path=path,
        revision=None,
        use_safetensors=True,
        dtype=dtype,
        quantization=None,
    )
    backbone = causal_lm.load(settings)
    model = backbone.model
    if adapter is not None:
        from peft import PeftModel

        import flexlora  # noqa: F401 - registers the adapters with PEFT

        model = PeftModel.from_pretrained(model, adapter)
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), backbone.processor


def padding(lengths: list[int], batch_size: int) -> str:
    """Return the share of padding in an epoch's tokens as text, for batches by length and in the order of the rows."""
    real = sum(lengths)
    by_length = epoch_batches(lengths, batch_size, seed=0, epoch=0)
    as_they_come = [
        list(range(first, min(first + batch_size, len(lengths)))) for first in range(0, len(lengths), batch_size)
    ]
    shares = []
    for batches in (by_length, as_they_come):
        padded = sum(8 * -(-max(lengths[i] for i in batch) // 8) * len(batch) for batch in batches)
        shares.append(1 - real / padded)
    return f"{shares[0]:.1%} of tokens are padding in batches by length, {shares[1]:.1%} as they come"


def main() -> int:
    """Print a line for each test set. Return 1 if answers in float32 differ, otherwise 0."""
    with torch.no_grad():
        return compare(arguments())


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("data", help="folder in LLM-Adapters' layout")
    parser.add_argument("--adapter")
    parser.add_argument("--sets", default=",".join(TEST_SETS))
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16 and count the answers that differ")
    parser.add_argument("--padding", help="also print the padding share of these training sets, as in boolq,winogrande")
    return parser.parse_args()


def compare(options: argparse.Namespace) -> int:
    """Run both loops on every test set, and print the share of padding if `--padding` is given.

    Returns:
        The exit code: 1 if answers in float32 differ, otherwise 0.
    """
    dtype = Dtype.bfloat16 if options.bf16 else Dtype.float32
    model, tokenizer = loaded(options.model, dtype, options.adapter)
    print(f"{torch.get_num_threads()} threads, {model.device}, {dtype.value}, adapter: {options.adapter}")
    print("set               rows  protocol rows/s  fast rows/s  times  differ  parsed   right")
    differing = 0
    for name in options.sets.split(","):
        file = Path(options.data) / "dataset" / name / "test.json"
        if not file.is_file():
            print(f"{name:16}  not there")
            continue
        rows = read_rows(file, name).rows[: options.rows]
        task = task_of(rows, name, tokenizer)
        fast, fast_rate = timed(fast_loop, model, task, options.batch_size)
        protocol, protocol_rate = timed(protocol_loop, model, tokenizer, rows, options.batch_size)
        differ = sum(a != b for a, b in zip(protocol, fast, strict=True))
        parsed = sum(answer != UNPARSED for answer in protocol) / len(rows)
        right = sum(
            format_of(row).index(row["answer"]) == given for row, given in zip(rows, protocol, strict=True)
        ) / len(rows)
        differing += differ
        print(
            f"{name:16} {len(rows):5} {protocol_rate:16.1f} {fast_rate:12.1f} {fast_rate / protocol_rate:6.1f} "
            f"{differ:7} {parsed:7.1%} {right:7.1%}",
            flush=True,
        )
    if options.padding:
        texts = []
        for name in options.padding.split(","):
            rows = read_rows(Path(options.data) / "dataset" / name / "train.json", name).rows
            texts += [training_text(row, row["output"]) for row in rows]
        lengths = [min(256, len(ids) + 1) for ids in tokenizer(texts)["input_ids"]]
        print(f"{len(lengths)} training texts, batches of {options.batch_size}: {padding(lengths, options.batch_size)}")
    return 1 if differing and dtype is Dtype.float32 else 0


if __name__ == "__main__":
    sys.exit(main())
