"""A web server on loopback that misbehaves on request."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

Answer = Callable[[BaseHTTPRequestHandler], None]


class WebServer:
    """Use as a context manager. ``pages[path]`` answers; ``requests`` are (path, headers) in the order they came."""

    def __init__(self) -> None:
        self.pages: dict[str, Answer] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.sent = 0  # bytes of bodies
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:  # noqa: N802
                owner.requests.append((self.path, dict(self.headers)))
                page = owner.pages.get(self.path.split("?")[0])
                self.close_connection = True
                try:
                    page(self) if page else self.send_error(404)
                except OSError:
                    pass  # the client has gone

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> WebServer:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    def file(self, path: str, data: bytes, **how: Any) -> File:
        """Serve bytes; see File for how."""
        page = File(self, data, **how)
        self.pages[path] = page
        return page

    def ranges(self) -> list[str | None]:
        """The Range header of every request."""
        return [headers.get("Range") for _, headers in self.requests]


class File:
    """A file as a server serves it.

    Args:
        server: counts what is sent.
        data: its bytes.
        etag: the header, quotes included; None for none.
        resumes: whether it understands ranges.
        heeds_if_range: whether it looks at the condition of a range.
        breaks: after how many bytes of each answer, one after the other, the connection is dropped.
        fails: statuses of the first answers.
        modified: the header Last-Modified.
        headers: further ones.
        chunked: sent in chunks, without a length.
    """

    def __init__(
        self,
        server: WebServer,
        data: bytes,
        etag: str | None = '"one"',
        resumes: bool = True,
        heeds_if_range: bool = True,
        breaks: list[int] | None = None,
        fails: list[int] | None = None,
        modified: str | None = None,
        headers: dict[str, str] | None = None,
        chunked: bool = False,
    ) -> None:
        self.server, self.data, self.etag, self.resumes, self.heeds = server, data, etag, resumes, heeds_if_range
        self.breaks, self.fails = list(breaks or []), list(fails or [])
        self.modified, self.headers, self.chunked = modified, headers or {}, chunked
        self.after_break: Callable[[], None] | None = None

    def __call__(self, request: BaseHTTPRequestHandler) -> None:
        if self.fails:
            request.send_response(self.fails.pop(0))
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        asked = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        condition = request.headers.get("If-Range")
        start = 0
        if asked and self.resumes and (not self.heeds or condition in (None, self.etag, self.modified)):
            start = int(asked[1])
        if start >= len(self.data) > 0:
            request.send_error(416)
            return
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(self.data) - 1}/{len(self.data)}")
        for name, value in {"ETag": self.etag, "Last-Modified": self.modified, **self.headers}.items():
            if value:
                request.send_header(name, value)
        body = self.data[start:]
        request.send_header(*(("Transfer-Encoding", "chunked") if self.chunked else ("Content-Length", str(len(body)))))
        request.end_headers()
        most = self.breaks.pop(0) if self.breaks else len(body)
        cut = body[:most]
        for at in range(0, len(cut), 1 << 16):
            piece = cut[at : at + (1 << 16)]
            self.server.sent += len(piece)  # before the client can have it and look
            request.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if self.chunked else piece)
        if self.chunked and most >= len(body):
            request.wfile.write(b"0\r\n\r\n")
        if most < len(body) and self.after_break:
            request.wfile.flush()
            self.after_break()
