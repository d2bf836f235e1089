"""The raters' pages from a real server: who is let in, what is kept when it is killed, and the page in a browser."""

import asyncio
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

import pytest

from svdflow.common.ports import free_port  # above those that browsers refuse
from svdflow.common.video import encode_mp4
from svdflow.evaluation.study.create import create_study
from svdflow.evaluation.study.settings import StudySettings
from svdflow.evaluation.study.study import Study
from svdflow.evaluation.study.votes import read_votes
from svdflow.ingest.footage import make_scene
from tests.waiting import wait_for

CODE = "invited1"
SVDFLOW = Path(sys.executable).with_name("svdflow")


@pytest.fixture
def study(tmp_path: Path) -> Study:
    for coarse, name in ((1, "fine"), (4, "coarse")):
        (tmp_path / name).mkdir()
        for number in range(6):
            frames = make_scene(number, 8, 64, 96, camera="pan_left").frames[:, ::coarse, ::coarse]
            video = encode_mp4(frames.repeat(coarse, 1).repeat(coarse, 2), 8)
            (tmp_path / name / f"v{number}.mp4").write_bytes(video)
    texts = tmp_path / "texts.csv"
    texts.write_text("video,text\n" + "".join(f"v{n},<script>alert({n})</script> & a scene\n" for n in range(6)))
    settings = StudySettings(votes_per_task=4, check_share=0.1)
    return create_study(tmp_path / "study", {n: tmp_path / n for n in ("fine", "coarse")}, settings, texts)


@contextmanager
def serving(study: Study):
    """The command, on a port that it has got; gives port and process."""
    for _ in range(5):  # the port may be taken meanwhile
        port = free_port()
        process = start(study, port)
        if came_up(process, port):
            break
    else:
        pytest.fail("no server came up")
    try:
        yield port, process
    finally:
        process.kill()
        process.wait()


def start(study: Study, port: int) -> subprocess.Popen:
    command = [str(SVDFLOW), "study", "serve", str(study.folder), "--port", str(port)]
    environment = os.environ | {"SVDFLOW_STUDY_CODE": CODE}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def came_up(process: subprocess.Popen, port: int) -> bool:
    wait_for(lambda: process.poll() is not None or answers(port), 300)
    return process.poll() is None


def answers(port: int) -> bool:
    try:
        return ask(port, "GET", "/healthz")[0] == 200
    except OSError:
        return False


def ask(port: int, method: str, path: str, form: dict[str, str] | None = None, cookie: str = "", **headers: str):
    """Status, headers and body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    if form is not None:
        headers["Content-Type"] = "application/x-www-form-urlencoded"
    if cookie:
        headers["Cookie"] = cookie
    try:
        connection.request(method, path, None if form is None else urlencode(form), headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def begin(port: int) -> str:
    status, headers, _ = ask(port, "POST", "/begin", {"code": CODE})
    assert status == 303 and "HttpOnly" in headers["Set-Cookie"] and "SameSite=strict" in headers["Set-Cookie"]
    return headers["Set-Cookie"].partition(";")[0]


def shown(port: int, cookie: str) -> tuple[str, list[str], str]:
    """Ticket, videos and page of what a rater is asked."""
    page = ask(port, "GET", "/vote", cookie=cookie)[2].decode()
    ticket = re.search(r'name="ticket" value="([^"]+)"', page)
    return ticket[1] if ticket else "", re.findall(r'src="(/video/\w+\.mp4)"', page), page


def test_the_invited_see_the_pages_and_nobody_sees_more_than_the_pages(study):
    with serving(study) as (port, _):
        for path in ("/", "/?code=", "/?code=other"):
            status, _, page = ask(port, "GET", path)
            assert status == 403 and b"by invitation" in page
        assert ask(port, "POST", "/begin", {"code": "other"})[0] == 403
        assert (
            ask(port, "GET", "/vote")[0] == 303
            and ask(port, "POST", "/vote", {"ticket": "x", "side": "left"})[0] == 303
        )
        status, headers, page = ask(port, "GET", f"/?code={CODE}")
        assert status == 200 and b"Begin" in page and "default-src 'none'" in headers["Content-Security-Policy"]
        cookie = begin(port)
        behind_tls = ask(port, "POST", "/begin", {"code": CODE}, **{"X-Forwarded-Proto": "https"})[1]["Set-Cookie"]
        assert "Secure" in behind_tls, "a proxy on this machine is believed"
        _, videos, page = shown(port, cookie)
        assert len(videos) == 2 and "fine" not in page and "coarse" not in page and "<script>alert" not in page
        for path in videos:
            assert ask(port, "GET", path)[0] == 404, "without a cookie"
            status, headers, body = ask(port, "GET", path, cookie=cookie, Range="bytes=4-7")
            assert (status, body, headers["Content-Type"]) == (206, b"ftyp", "video/mp4")
        secret = study.secret()
        elsewhere = (
            "secret",
            "study.json",
            "votes.jsonl",
            "server.py",
            "docs",
            "../secret",
            "vote.css/../../study/secret",
        )
        for path in (f"/video/{'0' * 64}.mp4", "/video/..%2f..%2fsecret.mp4", *(f"/{place}" for place in elsewhere)):
            status, _, body = ask(port, "GET", path, cookie=cookie)
            assert status == 404 and secret not in body, path
        assert ask(port, "POST", "/vote", {"ticket": "x" * 10_000, "side": "left"}, cookie)[0] == 303
        for made_up in (
            "../../etc",
            "0123456789abcdef01234567",
            cookie.removeprefix("rater=")[:-5],
            shown(port, cookie)[0],
        ):
            for path in ("/vote", videos[0]):
                assert ask(port, "GET", path, cookie=f"rater={made_up}")[0] in (303, 404), "no invitation, no way in"
        assert ask(port, "POST", "/vote", {"ticket": cookie.removeprefix("rater="), "side": "left"}, cookie)[0] == 303
    assert list(read_votes(study.votes)) == []


def test_no_vote_that_was_acknowledged_is_lost_when_the_server_is_killed(study):
    acknowledged: list[tuple[str, str]] = []
    cookies: list[str] = []
    for _ in range(3):
        with serving(study) as (port, process):
            over = threading.Event()

            def rate(cookie: str, port: int = port, over: threading.Event = over) -> None:
                while not over.is_set():
                    try:
                        ticket, _, _ = shown(port, cookie)
                        if not ticket:
                            return
                        if ask(port, "POST", "/vote", {"ticket": ticket, "side": "left"}, cookie)[0] == 303:
                            acknowledged.append((cookie, ticket))
                    except (OSError, http.client.HTTPException):
                        return

            cookies = cookies or [begin(port) for _ in range(4)]
            raters = [threading.Thread(target=rate, args=(cookie,)) for cookie in cookies]
            enough = len(acknowledged) + 4
            for each in raters:
                each.start()
            while len(acknowledged) < enough and any(each.is_alive() for each in raters):
                time.sleep(0.001)
            process.send_signal(signal.SIGKILL)
            process.wait()
            over.set()
            for each in raters:
                each.join()
    votes = list(read_votes(study.votes))
    assert len({(vote.task, vote.rater) for vote in votes}) == len(votes)
    assert len(acknowledged) <= len(votes) <= len(acknowledged) + 3 * 4, (
        "at most the answer in hand of each was not told"
    )
    with serving(study) as (port, _):
        for cookie, ticket in acknowledged[:2]:
            assert ask(port, "POST", "/vote", {"ticket": ticket, "side": "right"}, cookie)[0] == 303
    assert list(read_votes(study.votes)) == votes, "an answer is not given twice"


def test_two_servers_do_not_take_votes_of_one_study(study):
    with serving(study):
        second = subprocess.run(
            [str(SVDFLOW), "study", "serve", str(study.folder), "--port", "1"],
            env=os.environ | {"SVDFLOW_STUDY_CODE": CODE},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert "/?code=CODE" in second.stdout and CODE not in second.stdout, "what was given is not for the log"
        assert second.returncode == 1 and "another server is taking this study's votes" in second.stderr


def test_from_votes_to_a_profile_by_the_commands(tmp_path, study):
    def svdflow(*words: str, status: int = 0) -> str:
        done = subprocess.run(
            [str(SVDFLOW), "study", *words], capture_output=True, text=True, timeout=600, cwd=tmp_path
        )
        assert done.returncode == status, done.stderr
        return done.stdout + done.stderr

    sets = ["--videos", "0=fine", "--videos", "25=coarse", "--set", "study.votes_per_task=1"]
    assert "no axis of the filter; motion" in svdflow("create", "f", *sets, "--filter", "beauty", status=1)
    assert "6 votes are wanted" in svdflow("create", "f", *sets, "--filter", "motion")
    assert "no vote that counts so far" in svdflow("results", "f", status=1)
    made = json.loads((tmp_path / "f" / "study.json").read_text())
    for n, _ in enumerate(made["items"]):
        line = {"task": f"quality-{n}-0-1", "left": 1, "right": 0, "chosen": 1, "rater": "r", "at": 1.0, "took_s": 1.0}
        with (tmp_path / "f" / "votes.jsonl").open("a") as stream:
            stream.write(json.dumps(line) + "\n")
    assert "Drop 25 % on motion" in svdflow("choose", "f", "-o", "mine.yaml")
    assert "Which video looks better?" in (tmp_path / "f" / "results.html").read_text()
    shown_ = subprocess.run(
        [str(SVDFLOW), "settings", "--profile", "mine.yaml"], capture_output=True, text=True, timeout=600, cwd=tmp_path
    )
    assert re.search(r"motion_percent: 25(\.0)?$", shown_.stdout, re.M), shown_.stderr

    assert "give the id of a video, or --item NAME" in svdflow("forget", "f", status=1)
    assert "cannot be undone; run it again with --yes" in svdflow("forget", "f", "--item", "v0", status=1)
    told = svdflow("forget", "f", "--item", "v0", "--yes")
    assert "1 of the 6 videos compared left it" in told and "a profile chosen by it stands on votes that" in told
    assert "Drop 25 % on motion" in svdflow("choose", "f", "-o", "mine.yaml")


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is there: apt-get install chromium")
def test_in_a_browser_both_videos_play_and_an_arrow_key_answers(study):
    with serving(study) as (port, _):
        seen = asyncio.run(in_a_browser(port))
    assert seen["complaints"] == []
    assert [(video["width"], video["error"], video["time"] > 0) for video in seen["videos"]] == [(96, None, True)] * 2
    (vote,) = read_votes(study.votes)
    assert vote.chosen == vote.right, "the right arrow"


async def in_a_browser(port: int) -> dict:
    """Begin, watch, press the right arrow; what was seen."""
    import aiohttp

    # A browser is many processes, and some write on while others have ended: all are killed, before the folder goes.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
        command = [CHROMIUM, *options, "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        browser = subprocess.Popen(command, start_new_session=True, **quiet)
        try:
            told = Path(profile) / "DevToolsActivePort"
            assert await asyncio.to_thread(wait_for, lambda: told.exists() and told.read_text().count("\n"), 300)
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{told.read_text().split()[0]}/json") as answer:
                    page = next(tab for tab in await answer.json() if tab["type"] == "page")
                async with session.ws_connect(page["webSocketDebuggerUrl"]) as socket_:
                    return await visit(socket_, port)
        finally:
            os.killpg(browser.pid, signal.SIGKILL)
            browser.wait()


async def visit(socket_, port: int) -> dict:
    complaints: list[str] = []
    number = 0

    async def command(method: str, **parameters):
        nonlocal number
        number += 1
        await socket_.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = json.loads((await socket_.receive(timeout=300)).data)
            if message.get("method") == "Log.entryAdded":
                complaints.append(message["params"]["entry"]["text"])
            if message.get("id") == number:
                return message.get("result", message)

    async def value(expression: str):
        return (await command("Runtime.evaluate", expression=expression)).get("result", {}).get("value")

    async def until(expression: str):
        for _ in range(6000):
            if (found := await value(expression)) not in (None, False, "[]"):
                return found
            await asyncio.sleep(0.05)
        raise AssertionError(expression)

    await command("Log.enable")
    await command("Page.navigate", url=f"http://127.0.0.1:{port}/?code={CODE}")
    await until("!!document.querySelector('form button')")
    await command("Runtime.evaluate", expression="document.querySelector('form button').click()")
    await until("[...document.querySelectorAll('video')].filter((v) => v.currentTime > 0).length == 2")
    videos = await value(
        "JSON.stringify([...document.querySelectorAll('video')].map((v) => "
        "({width: v.videoWidth, time: v.currentTime, error: v.error})))"
    )
    ticket = await value("document.querySelector('[name=ticket]').value")
    for kind in ("keyDown", "keyUp"):
        await command("Input.dispatchKeyEvent", type=kind, key="ArrowRight", code="ArrowRight")
    await until(
        f"document.querySelector('[name=ticket]') && document.querySelector('[name=ticket]').value != '{ticket}'"
    )
    return {"videos": json.loads(videos), "complaints": complaints}
