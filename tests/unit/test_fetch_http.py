"""Fetching over HTTP, against a real server that drops connections, ignores ranges, changes content and stalls."""

import json
import resource
import socket
import subprocess
import sys
import threading
import time
from email.utils import formatdate
from pathlib import Path

import numpy as np
import pytest
from web_server import WebServer

from svdflow.common.errors import StorageError
from svdflow.ingest import fetch
from svdflow.ingest.fetch import FetchSettings, Unfetchable, connect_patiently, download
from svdflow.ingest.fetch_http import connect_http, may_connect

DATA = np.random.default_rng(0).bytes(700_000)
OTHER = np.random.default_rng(1).bytes(650_000)
HERE = FetchSettings(addresses="private", connect_timeout_s=120.0, patience_s=120.0, read_timeout_s=120.0)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(fetch, "_FIRST_PAUSE_S", 0.02)


@pytest.fixture
def server():
    with WebServer() as server:
        yield server


def get(url: str, part: Path, settings: FetchSettings = HERE) -> dict | None:
    deadline = time.monotonic() + settings.total_s
    connect = connect_http(url, settings)
    return download(part, connect, connect_patiently(part, connect, settings, deadline), settings, deadline)


@pytest.fixture
def part(tmp_path) -> Path:
    return tmp_path / "part"


@pytest.mark.parametrize("chunked", [False, True])
def test_a_file_comes_whole(server, part, chunked):
    server.file("/a.mp4", DATA, chunked=chunked)
    state = get(f"{server.url}/a.mp4?x=1", part)
    assert part.read_bytes() == DATA
    assert state == {"etag": '"one"', "modified": None, "bytes": None if chunked else len(DATA)}
    assert server.requests[0][0] == "/a.mp4?x=1" and len(server.requests) == 1


@pytest.mark.parametrize("chunked", [False, True])
def test_a_dropped_connection_is_gone_on_with_where_it_broke(server, part, chunked):
    server.file("/a.mp4", DATA, breaks=[200_000, 300_000], chunked=chunked)
    get(f"{server.url}/a.mp4", part)
    assert part.read_bytes() == DATA
    first, second, third = server.ranges()
    assert first is None and second == "bytes=200000-" and third == "bytes=500000-"
    assert server.requests[1][1]["If-Range"] == '"one"'
    assert server.sent == len(DATA)  # not one byte twice


def test_a_server_that_ignores_ranges_is_read_from_the_start(server, part):
    server.file("/a.mp4", DATA, resumes=False, breaks=[200_000])
    get(f"{server.url}/a.mp4", part)
    assert part.read_bytes() == DATA and server.sent == len(DATA) + 200_000


@pytest.mark.parametrize("heeds", [True, False])
def test_content_that_changes_meanwhile_is_never_mixed(server, part, heeds):
    page = server.file("/a.mp4", DATA, breaks=[200_000], heeds_if_range=heeds)

    def change():
        page.data, page.etag = OTHER, '"two"'

    page.after_break = change
    state = get(f"{server.url}/a.mp4", part)
    assert part.read_bytes() == OTHER and state["etag"] == '"two"'


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_what_cannot_be_named_surely_is_not_resumed(server, part, etag):
    page = server.file("/a.mp4", DATA, etag=etag, breaks=[200_000])
    page.after_break = lambda: setattr(page, "data", OTHER)
    get(f"{server.url}/a.mp4", part)
    assert part.read_bytes() == OTHER and server.ranges() == [None, None]


def test_an_old_enough_date_of_change_serves_for_an_etag(server, part):
    server.file("/a.mp4", DATA, etag=None, modified="Wed, 01 Jan 2020 00:00:00 GMT", breaks=[200_000])
    get(f"{server.url}/a.mp4", part)
    assert part.read_bytes() == DATA and server.ranges()[1] == "bytes=200000-"


def test_a_busy_server_is_tried_again_after_growing_pauses(server, part):
    server.file("/a.mp4", DATA, fails=[503, 500, 429, 502])
    started = time.monotonic()
    get(f"{server.url}/a.mp4", part)
    assert part.read_bytes() == DATA and len(server.requests) == 5
    assert time.monotonic() - started >= 0.8 * 0.02 * (1 + 2 + 4 + 8)


@pytest.mark.parametrize("kind", ["seconds", "date"])
def test_retry_after_is_heeded(server, part, kind):
    def busy(request):
        server.file("/a.mp4", DATA)
        request.send_response(429)
        request.send_header("Retry-After", "1" if kind == "seconds" else formatdate(time.time() + 2, usegmt=True))
        request.send_header("Content-Length", "0")
        request.end_headers()

    server.pages["/a.mp4"] = busy
    started = time.monotonic()
    get(f"{server.url}/a.mp4", part)
    assert time.monotonic() - started >= 1.0 and part.read_bytes() == DATA


@pytest.mark.parametrize(
    ("status", "reason"),
    [(404, "not found"), (410, "not found"), (403, "refused"), (401, "refused"), (400, "unreachable")],
)
def test_a_lasting_refusal_is_not_tried_again(server, part, status, reason):
    server.file("/a.mp4", DATA, fails=[status])
    with pytest.raises(Unfetchable, match=f"^{reason}: the server answers {status}$"):
        get(f"{server.url}/a.mp4", part)
    assert len(server.requests) == 1


def test_patience_ends(server, part):
    server.file("/a.mp4", DATA, fails=[503] * 10_000)
    settings = HERE.model_copy(update={"patience_s": 0.3})
    with pytest.raises(Unfetchable, match=r"^unreachable: the server answers 503, after 0.3 s of trying$"):
        get(f"{server.url}/a.mp4", part, settings)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(Unfetchable, match="^unreachable: the connection is refused, after"):
            get(f"http://127.0.0.1:{closed.getsockname()[1]}/a.mp4", part, settings)


def test_a_server_that_always_breaks_at_the_same_place_is_given_up(server, part):
    server.file("/a.mp4", DATA, resumes=False, breaks=[100_000] * 10_000)
    settings = HERE.model_copy(update={"patience_s": 0.5})
    with pytest.raises(Unfetchable, match="^unreachable: the connection ended after 100000 of 700000 bytes, after"):
        get(f"{server.url}/a.mp4", part, settings)


def test_a_server_that_is_away_for_a_while_is_waited_for(server, part):
    page = server.file("/a.mp4", DATA, breaks=[200_000])
    page.after_break = lambda: page.fails.extend([503] * 20)
    settings = HERE.model_copy(update={"patience_s": 60.0})
    fetch._LONGEST_PAUSE_S, before = 0.05, fetch._LONGEST_PAUSE_S
    try:
        get(f"{server.url}/a.mp4", part, settings)
    finally:
        fetch._LONGEST_PAUSE_S = before
    assert part.read_bytes() == DATA and server.sent == len(DATA)


def test_silence_ends_a_connection_and_slowness_is_bounded(server, part):
    hold = threading.Event()

    def silent(request):
        request.send_response(200)
        request.send_header("Content-Length", "1000")
        request.end_headers()
        request.wfile.write(b"a")
        hold.wait(120)

    def slow(request):
        request.send_response(200)
        request.send_header("Content-Length", "1000000")
        request.end_headers()
        while not hold.wait(0.02):
            request.wfile.write(b"a")

    server.pages |= {"/silent": silent, "/slow": slow}
    try:
        settings = HERE.model_copy(update={"read_timeout_s": 0.2, "patience_s": 0.1})
        with pytest.raises(Unfetchable, match="the server fell silent"):
            get(f"{server.url}/silent", part, settings)
        with pytest.raises(Unfetchable, match="^timed out: "):  # the whole would take some five hours
            get(f"{server.url}/slow", part, HERE.model_copy(update={"total_s": 0.5}))
    finally:
        hold.set()


@pytest.mark.parametrize("chunked", [False, True])
def test_what_is_too_large_is_not_fetched(server, part, chunked):
    server.file("/a.mp4", DATA, chunked=chunked)
    with pytest.raises(Unfetchable, match="^too large: "):
        get(f"{server.url}/a.mp4", part, HERE.model_copy(update={"max_bytes": 300_000}))
    assert not part.exists() or part.stat().st_size <= 300_000 + (1 << 18)


# where a URL may lead


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("93.184.216.34", "public"),
        ("2606:2800:220:1:248:1893:25c8:1946", "public"),
        ("10.1.2.3", "private"),
        ("192.168.0.1", "private"),
        ("172.20.0.1", "private"),
        ("127.0.0.1", "private"),
        ("::1", "private"),
        ("::ffff:10.0.0.1", "private"),
        ("fd12::1", "private"),
        ("169.254.169.254", "any"),
        ("::ffff:169.254.169.254", "any"),
        ("64:ff9b::a9fe:a9fe", "any"),
        ("2002:a9fe:a9fe::1", "any"),
        ("fe80::1%eth0", "any"),
        ("fd00:ec2::254", "any"),
        ("100.100.100.200", "any"),
        ("0.0.0.0", "any"),
        ("224.0.0.1", "any"),
    ],
)
def test_addresses_are_let_in_by_how_private_they_are(address, allowed):
    levels = ["public", "private", "any"]
    assert [may_connect(address, level) for level in levels] == [levels.index(allowed) <= n for n in range(3)]


def test_by_default_nothing_is_said_to_a_private_address(server, part):
    server.file("/a.mp4", DATA)
    for host in (f"127.0.0.1:{server.port}", f"localhost:{server.port}"):
        with pytest.raises(Unfetchable, match=r"^refused: it leads to (127\.0\.0\.1|::1), no public address"):
            get(f"http://{host}/a.mp4", part, FetchSettings(patience_s=0.2))
    assert server.requests == []


def test_what_may_not_be_connected_to_is_not_even_knocked_at(part, monkeypatch):
    """An open port, a closed one and one that drops everything: the answer is the same, and the server sees nobody."""
    with socket.socket() as listening, socket.socket() as closed:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        listening.setblocking(False)
        closed.bind(("127.0.0.1", 0))
        told = set()
        for port in (listening.getsockname()[1], closed.getsockname()[1]):
            with pytest.raises(Unfetchable) as refused:
                get(f"http://127.0.0.1:{port}/a.mp4", part, FetchSettings(patience_s=0.2))
            told.add(str(refused.value))
        assert told == {"refused: it leads to 127.0.0.1, no public address (fetch.addresses allows others)"}
        with pytest.raises(BlockingIOError):
            listening.accept()


def test_of_several_addresses_those_that_may_be_connected_to_are(server, part, monkeypatch):
    """A name with an inner address before a public one (which is ours here)."""
    server.file("/a.mp4", DATA)
    look_up = socket.getaddrinfo

    def several(host, *more, **options):
        inner = look_up("10.1.2.3", *more, **options) if host == "several" else []
        return inner + look_up("127.0.0.1" if host == "several" else host, *more, **options)

    monkeypatch.setattr(socket, "getaddrinfo", several)
    monkeypatch.setattr("svdflow.ingest.fetch_http.may_connect", lambda address, allowed: address == "127.0.0.1")
    get(f"http://several:{server.port}/a.mp4", part)
    assert part.read_bytes() == DATA


def redirect(to: str, status: int = 302):
    def page(request):
        request.send_response(status)
        request.send_header("Location", to)
        request.send_header("Content-Length", "0")
        request.end_headers()

    return page


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_followed_also_when_resuming(server, part, status):
    server.pages["/here"] = redirect("/there", status)
    server.file("/there", DATA, breaks=[100_000])
    get(f"{server.url}/here", part)
    assert part.read_bytes() == DATA and server.sent == len(DATA)


@pytest.mark.parametrize("to", ["file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://127.0.0.1/x", "data:text/plain,x"])
def test_a_redirect_leads_to_the_web_alone(server, part, to):
    server.pages["/here"] = redirect(to)
    with pytest.raises(Unfetchable, match="^refused: the server redirects to what is neither http nor https$"):
        get(f"{server.url}/here", part)
    assert not part.exists()


def test_a_redirect_into_the_inner_network_is_refused(server, part, monkeypatch):
    """Two names of one server; the second one's address is held to be link-local."""
    server.pages["/here"] = redirect(f"http://localhost:{server.port}/secret")
    server.file("/secret", DATA)
    asked = []

    def only_once(address, allowed):
        asked.append(address)
        return len(asked) <= 2  # before the first connection, and on it

    monkeypatch.setattr("svdflow.ingest.fetch_http.may_connect", only_once)
    with pytest.raises(Unfetchable, match="^refused: it leads to "):
        get(f"{server.url}/here", part)
    assert [path for path, _ in server.requests] == ["/here"]


def test_redirects_in_a_circle_end(server, part):
    server.pages["/here"] = redirect("/here")
    with pytest.raises(Unfetchable, match="more than 5 redirects"):
        get(f"{server.url}/here", part)


def test_a_password_goes_to_its_own_host_alone(server, part):
    with WebServer() as stranger:
        stranger.file("/there", DATA)
        server.file("/own", DATA)
        server.pages |= {"/here": redirect(f"{stranger.url}/there"), "/near": redirect("/own")}
        for path in ("here", "near"):
            get(f"http://me:se%20cret@127.0.0.1:{server.port}/{path}", part)
        assert [headers.get("Authorization") for _, headers in server.requests] == ["Basic bWU6c2UgY3JldA=="] * 3
        assert [headers.get("Authorization") for _, headers in stranger.requests] == [None]


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:99999/x",
        "http://[::1/x",
        "http:///x",
        "http://127.0.0.1:9/\r\nX: y",
        "http://" + "a" * 70 + ".test/",
    ],
)
def test_what_is_no_url_is_one_line_without_it(part, url):
    with pytest.raises(Unfetchable) as told:
        get(url, part, HERE.model_copy(update={"patience_s": 0.1}))
    assert "127.0.0.1" not in str(told.value) and "\n" not in str(told.value)


def test_an_answer_that_is_no_http_is_given_up(part):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def talk():
            while True:
                try:
                    stream, _ = listener.accept()
                except OSError:
                    return
                with stream:
                    stream.recv(1000)
                    stream.sendall(b"SSH-2.0-OpenSSH_9\r\n" * 3)

        threading.Thread(target=talk, daemon=True).start()
        with pytest.raises(Unfetchable, match="^unreachable: the server does not speak HTTP"):
            get(f"http://127.0.0.1:{listener.getsockname()[1]}/", part, HERE.model_copy(update={"patience_s": 0.2}))


# across runs


FETCH = """
import sys
from email.utils import formatdate
from pathlib import Path
from svdflow.ingest.fetch import FetchSettings, connect_patiently, download
from svdflow.ingest.fetch_http import connect_http
settings = FetchSettings(addresses="private")
connect = connect_http(sys.argv[1], settings)
part = Path(sys.argv[2])
download(part, connect, connect_patiently(part, connect, settings, 1e12), settings, 1e12)
"""


def test_a_killed_fetch_is_gone_on_with_in_the_next_run(server, part):
    all_is_sent, held = threading.Event(), threading.Event()
    page = server.file("/a.mp4", DATA, breaks=[400_000])
    # the connection stays open while the fetching process is killed
    page.after_break = lambda: all_is_sent.set() or held.wait(300)
    process = subprocess.Popen([sys.executable, "-c", FETCH, f"{server.url}/a.mp4", str(part)])
    deadline = time.monotonic() + 120
    while not (all_is_sent.is_set() and part.is_file() and part.stat().st_size):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    held.set()
    there = part.stat().st_size
    assert part.read_bytes() == DATA[:there] and there > 0
    page.breaks.clear()
    sent = server.sent
    get(f"{server.url}/a.mp4", part)
    assert part.read_bytes() == DATA
    assert server.ranges()[-1] == f"bytes={there}-"
    assert server.sent - sent == len(DATA) - there


def test_what_lies_there_of_another_content_is_not_gone_on_with(server, part):
    part.write_bytes(b"something else")
    server.file("/a.mp4", DATA)
    for note in ({"validator": '"other"', "state": None}, {"validator": None, "state": None}, {}, {"a": 1}, [], "x"):
        part.with_suffix(".json").write_text(json.dumps(note))
        get(f"{server.url}/a.mp4", part)
        assert part.read_bytes() == DATA
        part.write_bytes(b"something else")


def test_what_lies_there_whole_is_not_fetched_again(server, part):
    server.file("/a.mp4", DATA)
    get(f"{server.url}/a.mp4", part)
    requests = len(server.requests)
    get(f"{server.url}/a.mp4", part)
    assert len(server.requests) == requests + 1 and part.read_bytes() == DATA


def test_a_disk_that_takes_no_more_ends_the_work(server, part):
    server.file("/a.mp4", DATA)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    try:
        with pytest.raises(StorageError, match="work already done is kept"):
            get(f"{server.url}/a.mp4", part)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    get(f"{server.url}/a.mp4", part)
    assert part.read_bytes() == DATA and server.ranges()[-1] is not None


PEAK = (
    FETCH
    + """
status = open("/proc/self/status").read().splitlines()  # ru_maxrss would be the parent's too, until exec
print(next(int(line.split()[1]) for line in status if line.startswith("VmHWM")))
"""
)


def test_memory_does_not_grow_with_the_file(server, tmp_path):
    peaks = []
    for megabytes in (2, 200):
        server.file(f"/{megabytes}", bytes(megabytes << 20))
        part = tmp_path / f"{megabytes}"
        command = [sys.executable, "-c", PEAK, f"{server.url}/{megabytes}", str(part)]
        peaks.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
        assert part.stat().st_size == megabytes << 20
    assert peaks[1] - peaks[0] < 8 << 10  # KiB
