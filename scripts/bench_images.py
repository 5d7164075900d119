"""Measure the cache of decoded images: images per second with the cache and without it.

    python scripts/bench_images.py --model DIR --data DIR [--task caltech101] [--rounds 5] [--batch 32]

These ways read shuffled epochs, in batches as in a run:

    decoded each time  like usual loaders: threads read, decode and resize the files of each batch
    memory-mapped      like a run: images come from the file of decoded images

These ways start a run, with all images for training and evaluation:

    first start        decode all images and write them to the cache
    later start        hash the images' files, find them in the cache, verify the checksum
    without a cache    task.image_cache=null: decode all images for this process only

All ways run in turn in one process, so that changes in machine load affect all of them equally. Compare the ratios. The
images' files are in the file cache of the system all the time.
"""

import argparse
import logging
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose, initialize_config_dir

from flexlora.conf_path import conf_dir
from flexlora.errors import UserError
from flexlora.models import load_backbone
from flexlora.settings import VtabTask, register_schemas, resolve
from flexlora.tasks.image_task import ImageClassification
from flexlora.tasks.images import Form, decode
from flexlora.tasks.vtab import load

TASKS = sorted(path.stem for path in (conf_dir() / "task" / "vtab").glob("*.yaml"))
RATIOS = [
    ("memory-mapped", "decoded each time"),
    ("later start", "first start"),
    ("first start", "without a cache"),
]


def started(settings: VtabTask, cache: Path | None, processor: Any) -> ImageClassification:
    """Return the task after its images are decoded or found in the cache."""
    task = load(replace(settings, image_cache=None if cache is None else str(cache)))
    task.preprocess(processor)
    return task


def epoch(task: ImageClassification, batch: int, examples: Callable[[list[int]], list[dict[str, Any]]]) -> int:
    """Read every training image once, in batches and in a new order. Return the number of images."""
    order = np.random.default_rng().permutation(len(task.train_rows)).tolist()
    for first in range(0, len(order), batch):
        task.collate(examples(order[first : first + batch]))
    return len(order)


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a ViT, which defines the size of the images")
    parser.add_argument("--data", required=True, help="folder that holds the folders of the tasks")
    parser.add_argument("--task", default="caltech101", choices=TASKS, metavar="TASK")
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--batch", type=positive, default=32)
    options = parser.parse_args()
    try:
        bench(options)
    except UserError as error:
        print(f"bench_images.py: {error}", file=sys.stderr)
        return 2
    return 0


def bench(options: argparse.Namespace) -> None:
    """Time all ways in turn for the given number of rounds, and print their ratios."""
    logging.getLogger("flexlora").setLevel(logging.ERROR)  # hides a warning at every start about missing images
    register_schemas()
    chosen = [f"task=vtab/{options.task}", "method=linear", "model=local", f"model.path={options.model}"]
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        settings, _ = resolve(compose("config", overrides=[*chosen, f"task.data_dir={options.data}"]))
    assert isinstance(settings.task, VtabTask)
    vtab = settings.task
    processor = load_backbone(settings.model, vtab.num_classes).processor
    form = Form(*processor.size, vtab.interpolation.value)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        kept, fresh = Path(folder, "kept"), Path(folder, "fresh")
        task = started(vtab, kept, processor)
        everything = len(task.train_rows) + sum(map(len, task.evaluation_rows.values()))

        def decoded(batch: list[int]) -> list[dict[str, Any]]:
            images = pool.map(lambda i: decode(task.train_rows.read(i), form), batch)
            return [
                {"images": image, "labels": task.train_rows.labels[i]} for i, image in zip(batch, images, strict=True)
            ]

        def mapped(batch: list[int]) -> list[dict[str, Any]]:
            return [task.train.examples[i] for i in batch]

        def start(cache: Path | None) -> int:
            started(vtab, cache, processor)
            return everything

        ways: dict[str, Callable[[], int]] = {
            "decoded each time": lambda: epoch(task, options.batch, decoded),
            "memory-mapped": lambda: epoch(task, options.batch, mapped),
            "first start": lambda: start(fresh),
            "later start": lambda: start(kept),
            "without a cache": lambda: start(None),
        }
        speeds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(options.rounds):
            for way, call in ways.items():
                shutil.rmtree(fresh, ignore_errors=True)
                began = time.perf_counter()
                count = call()
                speeds[way].append(count / (time.perf_counter() - began))
    print(f"{options.task}, {form.height} x {form.width}, {os.cpu_count()} cores: images a second")
    for way, each in speeds.items():
        print(f"{way:18}" + "".join(f"{speed:10,.0f}" for speed in each))
    for fast, slow in RATIOS:
        ratio = statistics.median(a / b for a, b in zip(speeds[fast], speeds[slow], strict=True))
        print(f"{fast} / {slow}: {ratio:.2f}")


if __name__ == "__main__":
    sys.exit(main())
