"""Find out within seconds whether the Hugging Face hub can be reached and has a repository."""

import contextlib
import errno
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from functools import cache
from typing import Any
from urllib.parse import urlsplit

from flexlora.errors import UserError, one_line

log = logging.getLogger("flexlora")

SECONDS = 4.0
# The longest wait for the next byte of a request. The libraries wait a minute in some requests, forever in others.
REQUEST_SECONDS = 10.0
# The pauses before a request is repeated after an error of the hub (a status of 500 or more).
PAUSES = (1.0, 3.0)
NO_WRITING = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT)
LOGIN = "log in (hf auth login) or set HF_TOKEN"


@cache
def hub_is_offline() -> bool:
    """Return whether to read only the local cache: HF_HUB_OFFLINE is set, or the hub does not answer in a few seconds.

    The hub's libraries retry a dead connection for a minute or more. If the hub does not answer, this function also
    sets them to offline mode: by the environment variable, and by the constant of modules that have already read it.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return True
    reached = threading.Event()
    threading.Thread(target=_knock, args=(reached,), daemon=True).start()
    if reached.wait(SECONDS):
        _bound_requests()
        return False
    os.environ["HF_HUB_OFFLINE"] = "1"
    for module in _readers():
        module.HF_HUB_OFFLINE = True
    return True


def trouble_with(repository: str, kind: str = "model", revision: str | None = None) -> str | None:
    """Return why `repository` cannot be loaded from the hub, as the end of a sentence, or None if it can be loaded.

    The function requests one file. The libraries request many files, each several times. If the hub fails, they try for
    minutes, print every attempt, and raise some errors that do not name the cause.

    Args:
        repository: the name on the hub.
        kind: "model" or "dataset".
        revision: a commit, branch or tag. None means the newest.
    """
    if hub_is_offline():
        return "the hub cannot be reached (or HF_HUB_OFFLINE=1 is set)"
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    for pause in (*PAUSES, None):
        try:
            file = "config.json" if kind == "model" else "README.md"
            get_hf_file_metadata(hf_hub_url(repository, file, repo_type=kind, revision=revision))
        except EntryNotFoundError:
            return None  # the repository exists
        except GatedRepoError:
            return f"access to it is restricted: ask for access on its page on the hub, then {LOGIN}"
        except RepositoryNotFoundError:
            return f"the hub has no such {kind}, or it is private: check the name, or {LOGIN}"
        except RevisionNotFoundError:
            return f"the hub has no revision '{revision}' of it: check the revision"
        except HfHubHTTPError as error:
            code = error.response.status_code
            if pause is None or code < 500:
                return f"the hub answers with error {code}" + (f": {LOGIN}" if code in (401, 403) else "")
            time.sleep(pause)
        except Exception as error:  # any library that opens connections may raise
            return f"the request to the hub failed ({type(error).__name__}: {one_line(error)})"
        else:
            return None
    raise AssertionError


def load_splits(repository: str, name: str | None, revision: str | None, hint: str) -> Any:
    """Load the splits of a data set from the hub, or from its cache if the hub cannot be reached.

    Args:
        repository: the name on the hub.
        name: the name of the configuration, or None.
        revision: a commit, branch or tag. None means the newest.
        hint: what the user can do instead, for the messages.

    Raises:
        UserError: the data set is in neither, or the cache cannot be written.
    """
    trouble = trouble_with(repository, "dataset", revision)
    import datasets

    datasets.utils.logging.disable_progress_bar()
    datasets.utils.logging.set_verbosity_error()  # errors of its cache are reported below
    shown = repository if name is None else f"{repository} ({name})"
    try:
        with offline(trouble is not None):
            return datasets.load_dataset(repository, name, revision=revision)
    except Exception as error:  # the cache and the network libraries raise many kinds of errors
        if isinstance(error, OSError) and error.errno in NO_WRITING:  # datasets needs a lock file even to read
            raise UserError(
                f"datasets cannot write in its cache: {error.filename}: {error.strerror} "
                f"(HF_DATASETS_CACHE=DIR sets another folder); {hint}"
            ) from error
        if trouble is not None:
            raise UserError(f"{shown} is not in the local cache and {trouble}; {hint}") from error
        raise UserError(f"cannot load {shown} from the hub: {what_failed(error)}; {hint}") from error


def what_failed(error: BaseException) -> str:
    """Return one line about the connection error that caused `error`, or about `error` itself if there is none.

    When a download breaks off, the error of transformers says only that the repository has no such file.
    """
    cause: BaseException | None = error
    while cause is not None:
        if type(cause).__module__.partition(".")[0] in {"httpx", "httpx2", "httpcore", "requests"}:
            return f"{type(cause).__name__}: {one_line(cause)}"
        cause = cause.__cause__ or cause.__context__
    return one_line(error)


@contextlib.contextmanager
def offline(wanted: bool) -> Iterator[None]:
    """Set the hub's libraries to offline mode within the `with` block, if `wanted`."""
    before = [(module, module.HF_HUB_OFFLINE) for module in _readers()] if wanted else []
    for module, _ in before:
        module.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for module, value in before:
            module.HF_HUB_OFFLINE = value


def _readers() -> list[Any]:
    """Return the imported modules that have read HF_HUB_OFFLINE into a constant."""
    return [sys.modules[name] for name in ("huggingface_hub.constants", "datasets.config") if name in sys.modules]


def _bound_requests() -> None:
    """Limit every request's wait for the next byte to `REQUEST_SECONDS`, and write retries to our own log."""
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils._http import default_client_factory

    def bound(request: Any) -> None:
        limits = request.extensions.get("timeout", {})
        wanted = {name: limits.get(name) or REQUEST_SECONDS for name in ("connect", "read", "write", "pool")}
        request.extensions["timeout"] = {name: min(limit, REQUEST_SECONDS) for name, limit in wanted.items()}

    def client() -> Any:
        made = default_client_factory()
        made.event_hooks = {**made.event_hooks, "request": [*made.event_hooks["request"], bound]}
        return made

    set_client_factory(client)
    logging.getLogger("huggingface_hub").handlers = log.handlers


def _knock(reached: threading.Event) -> None:
    """Set `reached` if the hub, or the proxy to it, accepts a connection. It needs a thread: a name lookup can hang."""
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    proxy = os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy")
    address = urlsplit(proxy or endpoint)
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname or "", port), timeout=SECONDS).close()
    except OSError:
        return
    reached.set()


WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def is_cached(repository: str, revision: str | None) -> bool:
    """Return whether the config and the weights of a model are in the hub's local cache."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    def here(name: str) -> bool:
        return isinstance(try_to_load_from_cache(repository, name, revision=revision), str)

    try:
        return here("config.json") and any(here(name) for name in WEIGHTS)
    except HFValidationError:  # the name is not a valid name of a repository
        return False
