"""Find the files of a GLUE task in `task.data_dir`, without reading them."""

from dataclasses import dataclass
from pathlib import Path

from flexlora.errors import UserError
from flexlora.settings import GlueTask
from flexlora.tasks.glue_columns import find_split


@dataclass(frozen=True)
class GlueFiles:
    """The folder of a task and the files of its training split, in order."""

    folder: Path
    train: list[Path]
    classic: bool
    """Whether the files are TSV files of the classic download. If not, they have the hub's columns."""

    def evaluation(self, settings: GlueTask, name: str) -> list[Path]:
        """Return the files of an evaluation split.

        Raises:
            UserError: the folder has no file of this split.
        """
        if self.classic:
            return [self.folder / settings.tsv.evaluation[name]]
        split = settings.hub.evaluation[name]
        found = find_split(self.folder, split)
        if not found:
            raise UserError(f"task.data_dir: {self.folder} has no file for split '{split}', such as {split}.parquet")
        return found


def find_train(settings: GlueTask, root: Path) -> GlueFiles:
    """Find the training files, in the first folder that has any. Their kind decides how all splits are read.

    Raises:
        UserError: no folder has a training file, or a folder has two kinds of them.
        OSError: a folder cannot be read.
    """
    tsv, hub = settings.tsv, settings.hub
    for folder in dict.fromkeys([root / tsv.folder, root / (hub.name or tsv.folder), root]):
        if not folder.is_dir():
            continue
        classic, files = (folder / tsv.train).is_file(), find_split(folder, hub.train)
        if classic and files:
            raise UserError(f"task.data_dir: {folder} has both {tsv.train} and {files[0].name}: keep only one of them")
        if classic:
            return GlueFiles(folder, [folder / tsv.train], classic=True)
        if files:
            return GlueFiles(folder, files, classic=False)
    raise UserError(
        f"task.data_dir: neither {root / tsv.folder} nor {root} has a {tsv.train} (the classic GLUE download) "
        f"or a {hub.train}.parquet, .json, .jsonl or .csv (the hub's columns)"
    )
