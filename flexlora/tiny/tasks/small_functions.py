"""`scale=tiny`: functions of one to three steps as HumanEval. `HumanEval` processes the rows and runs the programs."""

import sys

from flexlora.settings import HumanEvalTask
from flexlora.source_hash import files_of, hash_of_files
from flexlora.tasks.humaneval import COLUMNS, HumanEval, check_settings, humaneval
from flexlora.tasks.row_sources import Sources
from flexlora.tiny import functions, generated

# Rows of each split.
TRAIN, TEST = 2048, 100


def load(settings: HumanEvalTask) -> HumanEval:
    """Generate the training rows and the problems: like real data, they are the same for every seed.

    No problem has the same steps as a training row.

    Raises:
        UserError: `task.data_dir`, `task.train_file` or `task.test_file` is set, or `check_settings` refuses.
    """
    generated.begin(settings, "data_dir", "train_file", "test_file")
    check_settings(settings)
    train, test = generated.problems(functions.problems, "small functions", TRAIN, TEST)
    source = generated.provenance(hash_of_files(*files_of(sys.modules[__name__], functions)), [train, test])
    trains = generated.file_of("train", train, ("query", "answer"), source)
    return humaneval(settings, Sources(trains, generated.file_of("test", test, COLUMNS, source), source))
