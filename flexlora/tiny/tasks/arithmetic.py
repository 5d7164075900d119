"""`scale=tiny`: word problems of one to three sums as GSM8K. `Gsm8k` processes the rows."""

import sys

from flexlora.settings import Gsm8kTask
from flexlora.source_hash import files_of, hash_of_files
from flexlora.tasks.gsm8k import Gsm8k, gsm8k
from flexlora.tasks.row_sources import Sources
from flexlora.tiny import generated, word_problems

# Rows of each split.
TRAIN, TEST = 2048, 200
COLUMNS = ("question", "answer")


def load(settings: Gsm8kTask) -> Gsm8k:
    """Generate the training and test problems: like real data, they are the same for every seed.

    No test problem occurs among the training problems.

    Raises:
        UserError: `task.data_dir`, `task.train_file` or `task.test_file` is set.
    """
    generated.begin(settings, "data_dir", "train_file", "test_file")
    train, test = generated.problems(word_problems.problems, "word problems", TRAIN, TEST)
    source = generated.provenance(hash_of_files(*files_of(sys.modules[__name__], word_problems)), [train, test])
    tests = None if settings.validation_rows is not None else generated.file_of("test", test, COLUMNS, source)
    return gsm8k(settings, Sources(generated.file_of("train", train, COLUMNS, source), tests, source))
