"""A hub of our own: it serves folders as repositories and has the troubles that a test gives it."""

import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "c0ffee" * 6 + "c0de"
ERRORS = {
    "gated": (403, "GatedRepo", "Access to it is restricted and you are not in the authorized list."),
    "unknown": (401, "RepoNotFound", "Invalid username or password."),
    "missing": (404, "RepoNotFound", "Repository not found"),
    "refused": (403, "", "Forbidden"),
    "broken": (500, "", "Internal Error"),
}


@dataclass
class Repository:
    """A folder, and what the hub makes of requests for it.

    `trouble` is one of `ERRORS`; or `silent`: connections are taken and nothing is said; or `cut`: of files over
    1,000 bytes half is sent. `token` is one that has to come along.
    """

    folder: Path
    trouble: str = ""
    token: str | None = None
    asked: int = 0
    """How many requests came for it."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "Server"

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        self.recursive = "recursive=true" in query.lower()
        name, _, rest = path.removeprefix("/api").lstrip("/").partition("/resolve/")
        _, _, name = name.rpartition("org/")
        repository = self.server.repositories.get(name.partition("/")[0])
        time.sleep(self.server.delay)
        if repository is None:
            self._say(404, b"{}")
        else:
            repository.asked += 1
            self._answer(repository, name, rest)

    do_HEAD = do_GET

    def _answer(self, repository: Repository, name: str, rest: str) -> None:
        if repository.trouble == "silent":
            self.server.stopped.wait(60)
        elif repository.trouble in ERRORS:
            code, header, message = ERRORS[repository.trouble]
            self._say(code, b"{}", {"X-Error-Code": header, "X-Error-Message": message})
        elif repository.token is not None and self.headers["Authorization"] != f"Bearer {repository.token}":
            code, header, message = ERRORS["gated"]
            self._say(401, b"{}", {"X-Error-Code": header, "X-Error-Message": message})
        elif rest:
            self._send(repository, rest.partition("/")[2])
        else:
            self._list(repository, name.partition("/")[2])

    def _send(self, repository: Repository, file: str) -> None:
        path = repository.folder / file
        if not path.is_file():
            self._say(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            return
        content = path.read_bytes()
        tag = hashlib.sha1(content, usedforsecurity=False).hexdigest()
        cut = repository.trouble == "cut" and len(content) > 1000
        self._say(200, content, {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT}, cut=cut)

    def _list(self, repository: Repository, rest: str) -> None:
        files = {path.relative_to(repository.folder).as_posix(): path for path in repository.folder.rglob("*.*")}
        answer: object = {"id": "org/it", "sha": COMMIT, "siblings": [{"rfilename": file} for file in files]}
        if rest.startswith("tree/"):
            under = Path("/".join(rest.split("/")[2:]))
            answer = [
                {"type": "file", "path": file, "size": path.stat().st_size, "oid": "0" * 40}
                for file, path in files.items()
                if (under in Path(file).parents if self.recursive else under == Path(file).parent)
            ]
            if not answer:
                self._say(404, b"{}", {"X-Error-Code": "EntryNotFound"})
                return
        self._say(200, json.dumps(answer).encode())

    def _say(self, code: int, content: bytes, headers: dict[str, str] | None = None, cut: bool = False) -> None:
        self.send_response(code)
        for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[: len(content) // 2] if cut else content)
            self.close_connection = cut

    def log_message(self, *_: object) -> None:
        """Nothing."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    repositories: dict[str, Repository]
    delay = 0.0
    stopped: threading.Event


@contextlib.contextmanager
def hub(home: Path, delay: float = 0.0, **repositories: Repository) -> Iterator[dict[str, str]]:
    """The variables by which a command finds it: `org/<name>` are its repositories, `home` keeps what was fetched."""
    server = Server(("127.0.0.1", 0), Handler)
    server.repositories, server.delay, server.stopped = repositories, delay, threading.Event()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    no_proxy = dict.fromkeys(("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"), "")
    try:
        endpoint = f"http://127.0.0.1:{server.server_port}"
        yield {**no_proxy, "HF_HUB_OFFLINE": "", "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_TOKEN": ""}
    finally:
        server.stopped.set()
        server.shutdown()
        server.server_close()
