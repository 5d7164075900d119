"""The Hugging Face hub where there is one, and an answer within seconds where there is none, or it has trouble."""

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

from flexlora.errors import one_line

log = logging.getLogger("flexlora")

SECONDS = 4.0
# Until the hub must have said something more: the libraries give some of their requests a minute, others no end.
REQUEST_SECONDS = 10.0
# Before it is asked again after an error of its own.
PAUSES = (1.0, 3.0)
NO_WRITING = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT)
LOGIN = "log in (hf auth login) or set HF_TOKEN"


@cache
def hub_is_offline() -> bool:
    """Whether to read the local cache only: HF_HUB_OFFLINE says so, or the hub does not answer in a few seconds.

    The libraries behind it retry a dead connection for a minute or more, so where it does not answer they are told
    to stay offline too: by the environment, and those imported already by the constant they read it into.
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
    """Why the hub does not give us `repository` ("model" or "dataset"), as the end of a sentence; None where it does.

    By asking for one file. The libraries ask for many, each several times: they would try for minutes, and print every
    try, where the hub has trouble, and some of their errors do not say what it was.
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
            return None  # of a repository that is there
        except GatedRepoError:
            return f"the hub gives it to those whom its owner lets in: ask for access on its page there, then {LOGIN}"
        except RepositoryNotFoundError:
            return f"the hub has no such {kind}, or not for everybody: check the name, or {LOGIN}"
        except RevisionNotFoundError:
            return f"the hub has no revision '{revision}' of it"
        except HfHubHTTPError as error:
            code = error.response.status_code
            if pause is None or code < 500:
                return f"the hub answers with error {code}" + (f": {LOGIN}" if code in (401, 403) else "")
            time.sleep(pause)
        except Exception as error:  # of whichever library opens connections
            return f"the hub does not answer as it should ({type(error).__name__}: {one_line(error)})"
        else:
            return None
    raise AssertionError


def what_failed(error: BaseException) -> str:
    """The line of the connection's own error where that is what `error` came from, else of `error` itself.

    Of a download that breaks off transformers says that the repository has no such file.
    """
    cause: BaseException | None = error
    while cause is not None:
        if type(cause).__module__.partition(".")[0] in {"httpx", "httpx2", "httpcore", "requests"}:
            return f"{type(cause).__name__}: {one_line(cause)}"
        cause = cause.__cause__ or cause.__context__
    return one_line(error)


@contextlib.contextmanager
def offline(wanted: bool) -> Iterator[None]:
    """Have the libraries read their caches only, where that is `wanted`."""
    before = [(module, module.HF_HUB_OFFLINE) for module in _readers()] if wanted else []
    for module, _ in before:
        module.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for module, value in before:
            module.HF_HUB_OFFLINE = value


def _readers() -> list[Any]:
    """The modules that have read HF_HUB_OFFLINE into a constant."""
    return [sys.modules[name] for name in ("huggingface_hub.constants", "datasets.config") if name in sys.modules]


def _bound_requests() -> None:
    """Let no request to the hub wait longer than `REQUEST_SECONDS` for the next byte, and log what is tried again."""
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
    """Open a connection to the hub, or to the proxy on the way there. In a thread: looking up a name can hang."""
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
    """Whether config and weights of a model are in the hub's local cache."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    def here(name: str) -> bool:
        return isinstance(try_to_load_from_cache(repository, name, revision=revision), str)

    try:
        return here("config.json") and any(here(name) for name in WEIGHTS)
    except HFValidationError:  # no repository can have such a name
        return False
