"""`flexlora-report watch`: the page of a folder's runs on this machine, drawn again whenever a run writes."""

import shlex
import sys
import threading
import time
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from flexlora.cli.report_common import Parser
from flexlora.errors import UserError
from flexlora.reading import TEXT, read_bytes
from flexlora.report.live import as_html, as_lines, stamp_of, unfinished
from flexlora.results.collect import Run, collect

HOST = "127.0.0.1"
PORT = 8765
SECONDS = 5.0
SHOWN = ("result.json", "log.txt", "config.yaml", "metrics.jsonl", "ranks.jsonl")
"""The files of a run that the page may link to."""
RELOADS = """<script>
setInterval(async () => {
  try { if (await (await fetch("/stamp")).text() !== "STAMP") location.reload(); } catch (error) { /* it has ended */ }
}, MILLISECONDS);
</script>"""
EMPTY = "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>no runs</title></head><body></body></html>"

Page = Callable[[], str]
Text = Callable[[Sequence[Run]], str]


def parser() -> Parser:
    made = Parser(
        prog="flexlora-report watch",
        description="The runs under a folder, finished or not, as a page that loads itself again when a run writes. "
        f"Only this machine can read it ({HOST}); nothing is written. Ctrl-C ends it.",
    )
    made.add_argument(
        "folder", nargs="?", default="outputs", type=Path, help="where to look for runs (default: outputs)"
    )
    made.add_argument("--port", type=int, default=PORT, help=f"of the page; 0: any free one (default: {PORT})")
    made.add_argument("--text", action="store_true", help="print on the terminal instead, without a page")
    made.add_argument(
        "--every", type=float, default=SECONDS, metavar="SECONDS", help=f"look so often (default: {SECONDS:g})"
    )
    made.add_argument("--once", action="store_true", help="with --text: print once and end")
    return made


def watch(words: Sequence[str], page: Callable[[Path], str], text: Text) -> int:
    """Show the runs until Ctrl-C.

    Args:
        words: the words of the command line behind `watch`.
        page: makes the whole page of the runs in a folder.
        text: makes the tables of runs as text.

    Raises:
        UserError: the folder does not exist, the port is in use, or a number is out of range.
    """
    options = parser().parse_args(words)
    if not options.folder.is_dir():
        raise UserError(f"there is no folder {options.folder}: give the output_root of your runs")
    if not 0 <= options.port < 2**16:
        raise UserError(f"--port must be between 0 and {2**16 - 1}, not {options.port}")
    if not 0.1 <= options.every <= 3600:
        raise UserError(f"--every must be between 0.1 and 3600 seconds, not {options.every:g}")
    if options.text:
        return _print(options.folder, options.every, options.once, text)
    try:
        server = _Server(options.folder, options.port, options.every, page)
    except OSError as error:
        raise UserError(f"port {options.port}: {error.strerror}: give another one with --port, 0 for any") from error
    with server:
        print(f"http://{HOST}:{server.server_port}/ shows {options.folder}; Ctrl-C ends it", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("ended", flush=True)
    return 0


def command_of(words: Sequence[str]) -> str:
    """Return the command that makes the page."""
    return shlex.join(["flexlora-report", "watch", *words])


def _print(root: Path, every: float, once: bool, text: Text) -> int:
    before = None
    try:
        while True:
            stamp = stamp_of(root)
            if stamp != before:
                runs = collect(root).runs
                if before is not None and sys.stdout.isatty():
                    print("\033[2J\033[H", end="")
                lines = [*as_lines(unfinished(runs, root))]
                done = [run for run in runs if (run.path / "result.json").is_file()]
                tables = text(done) if done else "no run has ended yet\n"
                print("\n".join([time.strftime("%H:%M:%S"), *lines, "", tables]), end="", flush=True)
            if once:
                return 0
            before = stamp
            time.sleep(every)
    except KeyboardInterrupt:
        print("ended", flush=True)
    return 0


class _Server(ThreadingHTTPServer):
    """Serves the page of one folder. It is made again only if a file of a run has changed."""

    daemon_threads = True

    def __init__(self, root: Path, port: int, every: float, page: Callable[[Path], str]) -> None:
        super().__init__((HOST, port), _Handler)
        self.root = root.resolve()
        self._every, self._page = every, page
        self._lock = threading.Lock()
        self._made: tuple[str, str] | None = None

    def whole_page(self) -> str:
        with self._lock:
            stamp = stamp_of(self.root)
            if self._made is None or self._made[0] != stamp:
                self._made = (stamp, self._whole(stamp))
            return self._made[1]

    def _whole(self, stamp: str) -> str:
        runs = collect(self.root).runs
        page = self._page(self.root) if runs else EMPTY
        reloads = RELOADS.replace("STAMP", stamp).replace("MILLISECONDS", f"{1000 * self._every:.0f}")
        top = as_html(unfinished(runs, self.root)) if runs else "<p>No run has begun yet.</p>"
        head, body, rest = page.partition("<body>")
        return f"{head}{body}{reloads}{top}{rest}"


class _Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD only, and only to this machine."""

    server: _Server

    def do_GET(self) -> None:
        self._answer(with_content=True)

    def do_HEAD(self) -> None:
        self._answer(with_content=False)

    def log_message(self, *arguments: object) -> None:
        """Print nothing for a request."""

    def _answer(self, with_content: bool) -> None:
        status, kind, content = self._found()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        if with_content:
            self.wfile.write(content)

    def _found(self) -> tuple[HTTPStatus, str, bytes]:
        # A page of another site could otherwise read this one under a name of its own that leads to 127.0.0.1.
        if self.headers.get("Host", "").rpartition(":")[0] not in (HOST, "localhost"):
            return HTTPStatus.FORBIDDEN, "text/plain", b"this page is for this machine only\n"
        path = unquote(urlsplit(self.path).path)
        if path == "/":
            return HTTPStatus.OK, "text/html", self.server.whole_page().encode("utf-8", "backslashreplace")
        if path == "/stamp":
            return HTTPStatus.OK, "text/plain", stamp_of(self.server.root).encode()
        file = (self.server.root / path.lstrip("/")).resolve()
        try:
            if file.name in SHOWN and file.is_relative_to(self.server.root):
                return HTTPStatus.OK, "text/plain", read_bytes(file, TEXT)
        except OSError:
            pass
        return HTTPStatus.NOT_FOUND, "text/plain", b"there is no such file\n"
