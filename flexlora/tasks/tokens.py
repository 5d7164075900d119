"""Texts as token ids: they are tokenised once, cached in a file by content, and padded in each batch."""

import hashlib
import itertools
import json
import logging
import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import torch

from flexlora.cache import cache_dir, trusted
from flexlora.reading import regular
from flexlora.results.files import replacing

log = logging.getLogger("flexlora")

# Multiples of eight let a GPU's matrix units work on whole tiles.
PAD_TO_MULTIPLE_OF = 8
# The version of the file format, part of every file's name. Increase it whenever the content changes.
FORMAT = 2
# The number of texts tokenised at a time. A tokenizer returns lists of integers, ten times the size of the arrays.
CHUNK = 10_000
OFFSETS = "offsets"
# The value of `task.token_cache` that selects the default folder.
DEFAULT_CACHE = "default"

Array = npt.NDArray[Any]


@dataclass
class Tokens:
    """The tokens of many examples, with one flat array for each column.

    Example i is `columns[name][offsets[i] : offsets[i + 1]]`. There is no attention mask because it is all ones.
    """

    columns: dict[str, Array]
    offsets: Array
    """The start of each example, and the end of the last one: (examples + 1,), int64."""

    @property
    def lengths(self) -> list[int]:
        """The number of tokens of each example."""
        lengths: list[int] = np.diff(self.offsets).tolist()
        return lengths

    def row(self, index: int) -> Array:
        """Return the token ids of one example."""
        return self.columns["input_ids"][self.offsets[index] : self.offsets[index + 1]]

    def pick(self, numbers: Sequence[int]) -> "Tokens":
        """Return the examples with these numbers."""
        if len(numbers) == len(self.offsets) - 1:
            return self
        parts = [slice(self.offsets[i], self.offsets[i + 1]) for i in numbers]
        columns = {name: np.concatenate([column[part] for part in parts]) for name, column in self.columns.items()}
        lengths = np.diff(self.offsets)[list(numbers)]
        return Tokens(columns, np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))


class Examples(Sequence[dict[str, Any]]):
    """Tokens with their labels. An example is a dictionary with views into the arrays and its label."""

    def __init__(self, tokens: Tokens, labels: Sequence[Any]) -> None:
        self.tokens = tokens
        self.labels = labels
        self._ends = tokens.offsets.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        part = slice(self._ends[index], self._ends[index + 1])
        return {name: column[part] for name, column in self.tokens.columns.items()} | {"labels": self.labels[index]}


def tokenize(processor: Any, texts: tuple[list[str], ...], max_length: int) -> Tokens:
    """Tokenise examples of one or two texts to at most `max_length` tokens. A pair loses tokens of its longer text."""
    chunks: dict[str, list[Array]] = {}
    lengths: list[int] = []
    for first in range(0, len(texts[0]), CHUNK):
        part = [text[first : first + CHUNK] for text in texts]
        encoded = processor(*part, truncation=True, max_length=max_length, return_attention_mask=False)
        for name, rows in encoded.items():
            chunks.setdefault(name, []).append(np.fromiter(itertools.chain.from_iterable(rows), dtype=np.int64))
        lengths += [len(row) for row in encoded["input_ids"]]
    columns = {name: smallest(np.concatenate(parts)) for name, parts in chunks.items()}
    return Tokens(columns, np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))


def smallest(values: Array) -> Array:
    """Convert the numbers to the smallest unsigned type that holds them."""
    return values.astype(np.min_scalar_type(int(values.max(initial=0))))


def pad(examples: Sequence[dict[str, Any]], processor: Any) -> dict[str, torch.Tensor]:
    """Pad a batch of `Examples` as the tokenizer's own `pad` does, but faster.

    Each tensor is (examples, width) int64, and there is an attention mask. The width is the longest example's, rounded
    up to a multiple of 8 but not above the tokenizer's `model_max_length`.
    """
    lengths = np.fromiter((len(example["input_ids"]) for example in examples), dtype=np.int64, count=len(examples))
    longest = int(lengths.max())
    rounded = PAD_TO_MULTIPLE_OF * math.ceil(longest / PAD_TO_MULTIPLE_OF)
    width = max(longest, min(rounded, processor.model_max_length))
    left = processor.padding_side == "left"
    batch = {}
    for name in examples[0]:
        if name == "labels":
            continue
        padding = {"input_ids": processor.pad_token_id, "token_type_ids": processor.pad_token_type_id}.get(name, 0)
        column = np.full((len(examples), width), padding, dtype=np.int64)
        for row, example, length in zip(column, examples, lengths.tolist(), strict=True):
            row[width - length if left else 0 : width if left else length] = example[name]
        batch[name] = torch.from_numpy(column)
    places = np.arange(width)
    mask = places >= (width - lengths)[:, None] if left else places < lengths[:, None]
    batch["attention_mask"] = torch.from_numpy(mask.astype(np.int64))
    return batch


def cache_folder(setting: str | None) -> Path | None:
    """Return the folder that `task.token_cache` names; None means that tokens are not cached."""
    if setting is None:
        return None
    return cache_dir("tokens") if setting == DEFAULT_CACHE else trusted(Path(setting).expanduser())


class TokenCache:
    """A cache of tokens by content: the same texts with the same tokenizer and length are tokenised once.

    Each entry is one safetensors file. It is written to a temporary name and renamed, so other processes see a complete
    file or none. A checksum detects damaged files, which are made again. Without a writable folder nothing is cached.
    """

    def __init__(self, folder: Path | None, processor: Any) -> None:
        self._folder = folder
        self._fingerprint = None if folder is None else _fingerprint(processor)
        self._processor = processor

    def tokens(self, texts: tuple[list[str], ...], max_length: int) -> Tokens:
        """Return the tokens of `texts` (one or two for each example), from the cache if they are there."""
        if self._folder is None or self._fingerprint is None:
            return tokenize(self._processor, texts, max_length)
        path = self._folder / f"{_key(self._fingerprint, texts, max_length)}.safetensors"
        tokens = _read(path)
        if tokens is None:
            if len(texts[0]) > CHUNK:  # this takes seconds up to a minute
                log.info("tokenising %d examples; the next run reads them from %s", len(texts[0]), self._folder)
            tokens = tokenize(self._processor, texts, max_length)
            try:
                _write(path, tokens)
            except OSError as error:
                reason = error.strerror or error
                log.warning(
                    "tokens are not cached: cannot write in %s: %s (task.token_cache=DIR sets another folder)",
                    self._folder,
                    reason,
                )
                self._folder = None
        return tokens


def _fingerprint(processor: Any) -> str | None:
    """Hash everything that determines a tokenizer's output; None for a tokenizer without a backend."""
    import tokenizers
    import transformers

    backend = getattr(processor, "backend_tokenizer", None)
    if backend is None:
        return None
    rules = json.loads(backend.to_str())
    # An earlier call may have left these settings. Each call sets its own.
    rules.pop("truncation", None)
    rules.pop("padding", None)
    facts = {
        "format": FORMAT,
        "tokenizers": tokenizers.__version__,
        "transformers": transformers.__version__,
        "class": type(processor).__name__,
        "inputs": processor.model_input_names,
        "truncation_side": processor.truncation_side,
        "rules": rules,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _key(fingerprint: str, texts: Iterable[Sequence[str]], max_length: int) -> str:
    digest = hashlib.sha256(f"{fingerprint} {max_length}".encode())
    for column in texts:
        # The lengths separate the texts unambiguously, whatever they contain.
        encoded = [text.encode("utf-8", "surrogatepass") for text in column]
        digest.update(np.array([len(encoded), *map(len, encoded)], dtype="<i8").tobytes())
        digest.update(b"".join(encoded))
    return digest.hexdigest()[:40]


def _read(path: Path) -> Tokens | None:
    """Read the tokens of a file; None if the file is missing, damaged, or belongs to another entry."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(regular(path), framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            checksum = (file.metadata() or {}).get("crc32")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, SafetensorError, ValueError) as error:
        log.warning("%s is damaged: making it again: %s", path, error)
        return None
    if checksum != _checksum(path, arrays):
        log.warning("%s is damaged: making it again", path)
        return None
    return Tokens({name: array for name, array in arrays.items() if name != OFFSETS}, arrays[OFFSETS])


def _write(path: Path, tokens: Tokens) -> None:
    from safetensors.numpy import save

    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {**tokens.columns, OFFSETS: tokens.offsets}
    with replacing(path) as part:  # a killed process would leave the temporary file of safetensors' own `save_file`
        part.write_bytes(save(arrays, metadata={"crc32": _checksum(path, arrays)}))


def _checksum(path: Path, arrays: dict[str, Array]) -> str:
    """Compute the checksum of the arrays and of the file's name, which identifies the texts."""
    crc = zlib.crc32(path.name.encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        crc = zlib.crc32(array.data, zlib.crc32(f"{name} {array.dtype}".encode(), crc))
    return f"{crc:08x}"
