"""The Hugging Face hub where there is one, and an answer within seconds where there is none."""

import os
import socket
import sys
import threading
from functools import cache
from urllib.parse import urlsplit

SECONDS = 4.0


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
        return False
    os.environ["HF_HUB_OFFLINE"] = "1"
    for name in ("huggingface_hub.constants", "datasets.config"):
        if name in sys.modules:
            sys.modules[name].HF_HUB_OFFLINE = True  # type: ignore[attr-defined]
    return True


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

    def here(name: str) -> bool:
        return isinstance(try_to_load_from_cache(repository, name, revision=revision), str)

    return here("config.json") and any(here(name) for name in WEIGHTS)
