"""Videos from web servers. URLs come out of lists that may be somebody else's, so where they lead is checked.

The addresses of a name are held against ``FetchSettings.addresses`` before any of them is connected to, so that nobody
learns which ports are open within; and the address that a connection really has is, before anything is said on it. So
neither a name that changes its address nor a redirect leads into the inner network: ``public`` lets public addresses in
alone, ``private`` also those of this machine and of private networks, ``any`` also link-local ones and the metadata
services of clouds.
"""

from __future__ import annotations

import base64
import http.client
import ipaddress
import re
import socket
import ssl
from dataclasses import dataclass
from datetime import timedelta
from email.message import Message
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote, unquote, urljoin, urlsplit

from .fetch import Body, Connect, FetchSettings, Passing, Unfetchable, begin_anew

_REDIRECTS = (301, 302, 303, 307, 308)
_MOST_REDIRECTS = 5
_BUSY = (408, 425, 429, 500, 502, 503, 504)
_NAMES = {401: "refused", 403: "refused", 404: "not found", 410: "not found", 451: "refused"}
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_LONGEST_WAIT_S = 30.0  # of what a server asks for with Retry-After
_METADATA = [ipaddress.ip_network(n) for n in ("fd00:ec2::254/128", "fd20:ce::254/128", "100.100.100.200/32")]


@dataclass(frozen=True)
class _Answer:
    connection: http.client.HTTPConnection
    response: http.client.HTTPResponse

    def close(self) -> None:
        self.response.close()
        self.connection.close()


def connect_http(url: str, settings: FetchSettings) -> Connect:
    """The connecting function of one URL; a user and password in it go to its own host alone."""

    def connect(offset: int, validator: str | None) -> Body:
        headers = {"Range": f"bytes={offset}-", "If-Range": validator} if offset and validator else {}
        try:
            answer = _follow(url, headers, settings)
        except (Passing, Unfetchable):
            raise
        except socket.gaierror as error:
            if error.errno == socket.EAI_AGAIN:
                raise Passing("its host's name could not be looked up") from None
            raise Unfetchable("not found: there is no such host") from None
        except ssl.SSLCertVerificationError as error:
            raise Unfetchable(f"refused: the server's certificate is not valid ({error.verify_message})") from None
        except http.client.InvalidURL:
            raise Unfetchable("unreadable: this is no URL") from None
        except (OSError, http.client.HTTPException) as error:
            raise Passing(_why(error)) from None
        except ValueError:  # its message may hold the URL
            raise Unfetchable("unreadable: this is no URL") from None
        try:
            return _body(answer, offset if headers else 0, validator)
        except BaseException:
            answer.close()
            raise

    return connect


def may_connect(address: str, allowed: str) -> bool:
    """Whether an IP address may be connected to; see ``FetchSettings.addresses``."""
    if allowed == "any":
        return True
    ip: Any = ipaddress.ip_address(address.partition("%")[0])
    if ip.version == 6:  # an IPv4 address in other clothes
        if ip in ipaddress.ip_network("64:ff9b::/96"):
            ip = ipaddress.ip_address(int(ip) & 0xFFFFFFFF)
        else:
            ip = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else ip)
    if ip.is_loopback:
        return allowed == "private"
    if ip.is_link_local or ip.is_multicast or ip.is_unspecified or ip.is_reserved:
        return False
    if any(ip in network for network in _METADATA):
        return False
    return ip.is_global or (allowed == "private" and ip.is_private)


def _follow(url: str, headers: dict[str, str], settings: FetchSettings) -> _Answer:
    """The answer to a GET after redirects."""
    start = urlsplit(url)
    origin = (start.scheme.lower(), start.hostname, start.port)
    for _ in range(_MOST_REDIRECTS + 1):
        parts = urlsplit(url)
        if parts.scheme.lower() not in ("http", "https") or not parts.hostname:
            raise Unfetchable("refused: the server redirects to what is neither http nor https")
        sent = {"User-Agent": "svdflow", "Accept": "*/*", "Accept-Encoding": "identity", **headers}
        if start.username is not None and (parts.scheme.lower(), parts.hostname, parts.port) == origin:
            login = f"{unquote(start.username)}:{unquote(start.password or '')}"
            sent["Authorization"] = "Basic " + base64.b64encode(login.encode()).decode()
        connection = _connection(parts.scheme.lower(), parts.hostname, parts.port, settings)
        path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~") + (f"?{_quoted(parts.query)}" if parts.query else "")
        try:
            connection.request("GET", path, headers=sent)
            response = connection.getresponse()
        except BaseException:
            connection.close()
            raise
        location = response.headers.get("Location")
        if response.status not in _REDIRECTS or not location:
            return _Answer(connection, response)
        response.close()
        connection.close()
        url = urljoin(url, location)
    raise Unfetchable(f"unreachable: more than {_MOST_REDIRECTS} redirects")


def _quoted(query: str) -> str:
    return quote(query, safe="/%:@!$&'()*+,;=~?")


def _connection(scheme: str, host: str, port: int | None, settings: FetchSettings) -> http.client.HTTPConnection:
    connection: http.client.HTTPConnection
    if scheme == "https":
        context = ssl.create_default_context()
        connection = http.client.HTTPSConnection(host, port, timeout=settings.connect_timeout_s, context=context)
    else:
        connection = http.client.HTTPConnection(host, port, timeout=settings.connect_timeout_s)

    def create(address: Any, timeout: Any = None, source_address: Any = None) -> socket.socket:
        host, port = address
        stream = _connected(host, port, settings)
        stream.settimeout(settings.read_timeout_s)
        return stream

    connection._create_connection = create  # type: ignore[attr-defined]  # before TLS, and before a byte is sent
    return connection


def _connected(host: str, port: int, settings: FetchSettings) -> socket.socket:
    """A connection to the first of a name's addresses that may be connected to and answers."""
    found = [where[4] for where in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    allowed = [where for where in found if may_connect(str(where[0]), settings.addresses)]
    if found and not allowed:
        raise _refused(str(found[0][0]))
    failed: OSError = socket.gaierror(socket.EAI_NONAME, "no address")
    for where in allowed:
        try:
            stream = socket.create_connection((str(where[0]), where[1]), settings.connect_timeout_s)
        except OSError as error:
            failed = error
            continue
        peer = stream.getpeername()[0]
        if may_connect(peer, settings.addresses):
            return stream
        stream.close()
        raise _refused(peer)
    raise failed


def _refused(address: str) -> Unfetchable:
    return Unfetchable(f"refused: it leads to {address}, no public address (fetch.addresses allows others)")


def _body(answer: _Answer, offset: int, validator: str | None) -> Body:
    response, close = answer.response, answer.close
    status, headers = response.status, response.headers
    if status in _BUSY:
        raise Passing(f"the server answers {status}", _retry_after(headers))
    start, total = 0, None
    if status == 206:
        match = _RANGE.fullmatch(headers.get("Content-Range", "").strip())
        if not match or int(match[1]) != offset or _validator(headers) not in (None, validator):
            return begin_anew(close)
        start, total = offset, int(match[2]) + 1 if match[3] == "*" else int(match[3])
    elif status == 416:
        return begin_anew(close)
    elif status == 200:
        length = headers.get("Content-Length", "")
        total = int(length) if length.isdecimal() and "chunked" not in headers.get("Transfer-Encoding", "") else None
    else:
        raise Unfetchable(f"{_NAMES.get(status, 'unreachable')}: the server answers {status}")
    etag, modified = headers.get("ETag"), headers.get("Last-Modified")
    state = {"etag": etag, "modified": modified, "bytes": total} if etag or modified else None

    def read(size: int) -> bytes:
        try:
            return response.read1(size)
        except (OSError, http.client.HTTPException) as error:
            raise Passing(_why(error)) from None

    return Body(start, total, validator if start else _validator(headers), state, read, close)


def _validator(headers: Message) -> str | None:
    """What names the content byte for byte: a strong ETag, or a date of change that is long enough past (RFC 9110)."""
    etag, modified = headers.get("ETag"), headers.get("Last-Modified")
    if etag:
        return None if etag.startswith("W/") else etag
    try:
        if modified and parsedate_to_datetime(headers["Date"]) - parsedate_to_datetime(modified) >= timedelta(
            minutes=1
        ):
            return modified
    except (KeyError, TypeError, ValueError):
        pass
    return None


def _retry_after(headers: Message) -> float:
    """What a server asks for in s, by a number or by a date, which is held against its own clock."""
    asked = headers.get("Retry-After", "").strip()
    try:
        dates = () if asked.isdecimal() else (parsedate_to_datetime(asked), parsedate_to_datetime(headers["Date"]))
        seconds = (dates[0] - dates[1]).total_seconds() if dates else float(asked)
    except (TypeError, ValueError):
        return 0.0
    return min(max(seconds, 0.0), _LONGEST_WAIT_S)


def _why(error: Exception) -> str:
    """A failure of the connection, without the URL."""
    if isinstance(error, TimeoutError):
        return "the server fell silent"
    if isinstance(error, (ConnectionError, http.client.IncompleteRead)):
        return "the connection is refused" if isinstance(error, ConnectionRefusedError) else "the connection broke"
    if isinstance(error, http.client.HTTPException):
        return "the server does not speak HTTP"
    return (getattr(error, "strerror", None) or type(error).__name__).lower()
