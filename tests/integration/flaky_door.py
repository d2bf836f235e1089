"""A door before a server that can be shut: connections through it break, and new ones are refused."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

from tests.ports import free_port


class FlakyDoor:
    """A TCP relay on 127.0.0.1 to ``target_port``. Use as a context manager; ``shut`` and ``open`` at will."""

    def __init__(self, target_port: int) -> None:
        self.target_port = target_port
        self._lock = threading.Lock()
        self._streams: set[socket.socket] = set()
        self._listener: socket.socket | None = None
        self.port = free_port()  # its own for good: ``open`` listens on it again
        self.connections = 0
        self.closed = threading.Event()
        self._bytes_left: int | None = None

    def __enter__(self) -> FlakyDoor:
        self.open()
        return self

    def __exit__(self, *exc: object) -> None:
        self.shut()

    def open(self) -> None:
        """Take connections, on the same port as before."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(64)
        self.closed.clear()
        self._listener = listener
        threading.Thread(target=self._take, args=(listener,), daemon=True).start()

    def shut(self) -> None:
        """Break every connection with a reset and refuse new ones."""
        with self._lock:
            listener, self._listener = self._listener, None
            if listener:
                listener.shutdown(socket.SHUT_RDWR)
                listener.close()
            for stream in self._streams:
                with suppress(OSError):  # its other end has gone already
                    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                    stream.shutdown(socket.SHUT_RDWR)
            self._streams.clear()
        self.closed.set()

    def shut_after(self, size: int) -> None:
        """Be shut once so many more bytes have gone through, in the middle of whatever they belong to."""
        self._bytes_left = size

    def _take(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", self.target_port))
            except OSError:
                return
            with self._lock:
                if self._listener is not listener:
                    near.close()
                    far.close()
                    return
                self.connections += 1
                self._streams |= {near, far}
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._relay, args=(source, sink), daemon=True).start()

    def _is_over(self, size: int) -> bool:
        with self._lock:
            if self._bytes_left is None or (left := self._bytes_left - size) > 0:
                self._bytes_left = self._bytes_left and left
                return False
            self._bytes_left = None
            return True

    def _relay(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                sink.sendall(data)
                if self._is_over(len(data)):
                    self.shut()
        except OSError:
            pass
        with self._lock:
            for stream in (source, sink):
                self._streams.discard(stream)
                try:
                    stream.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
