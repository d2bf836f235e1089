"""The raters' pages: a question, two videos, two buttons. Plain HTML, made here; nothing is loaded from elsewhere."""

from __future__ import annotations

import contextlib
import hmac
import html
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from ...common.errors import StorageError
from .ballots import Ballots, Showing
from .settings import QUESTIONS
from .study import Study
from .votes import VoteLog, alone_with

_HERE = Path(__file__).parent
_MOST_BYTES = 4096  # of a form
_YEAR_S = 365 * 86400
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; media-src 'self'; "
    "img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


@contextlib.contextmanager
def opened(study: Study) -> Iterator[Ballots]:
    """A study's votes, for one server at a time.

    Raises:
        BadInputError: another server has them.
    """
    with alone_with(study.votes):
        log = VoteLog(study.votes)
        try:
            yield Ballots(study, log)
        finally:
            log.close()


def make_app(ballots: Ballots, code: str | None) -> Starlette:
    """The web application.

    Args:
        ballots: the study's votes.
        code: what a rater's first address must bear (``/?code=…``); None lets everybody in who reaches the port.
    """
    study = ballots.study
    videos = study.shown()

    def rater_of(request: Request) -> str | None:
        return ballots.rater_of(request.cookies.get("rater", ""))

    def welcome(request: Request) -> Response:
        given = request.query_params.get("code")
        if rater_of(request) is None and code is not None and not _same(given, code):
            return _page(
                "Not let in", "<p>This study is by invitation: the link that you were given lets you in.</p>", 403
            )
        votes, wanted = ballots.state()
        if votes >= wanted:
            return _page("Thank you", "<p>This study has all its votes.</p>")
        asked = "".join(f"<li>{html.escape(QUESTIONS[c])}</li>" for c in study.settings.categories)
        body = (
            "<p>You will see two videos side by side and one question, again and again:</p>"
            f"<ul>{asked}</ul><p>Take the one that you find better, even if it is close. There is no right "
            "answer, and no time limit; stop whenever you like and come back with the same browser. The "
            "arrow keys work too.</p>"
            "<p class=soft>What is kept: your answers, how long each took, and a random number in a cookie that tells "
            "this browser from others. Nothing about you.</p>"
            '<form method="post" action="/begin">'
            f'<input type="hidden" name="code" value="{html.escape(given or "", quote=True)}">'
            "<button>Begin</button></form>"
        )
        return _page("Which is better?", body)

    async def begin(request: Request) -> Response:
        form = await _form(request)
        rater = rater_of(request)
        if rater is None and code is not None and not _same(form.get("code"), code):
            return _page(
                "Not let in", "<p>This study is by invitation: the link that you were given lets you in.</p>", 403
            )
        answer = RedirectResponse("/vote", 303)
        secure = request.url.scheme == "https"
        answer.set_cookie(
            "rater",
            request.cookies["rater"] if rater else ballots.admit(),
            _YEAR_S,
            httponly=True,
            samesite="strict",
            secure=secure,
        )
        return answer

    def vote(request: Request) -> Response:
        rater = rater_of(request)
        if rater is None:
            return RedirectResponse("/", 303)
        showing = ballots.next_for(rater)
        if showing is None:
            if ballots.is_waited_for(rater):
                return _page("Almost done", "<p>The last questions are with others. Look again in some minutes.</p>")
            given = ballots.given_by(rater)
            thanks = f"Your answers: {given}. " if given else ""
            return _page("Thank you", f"<p>{thanks}There is nothing left to ask you.</p>")
        return _page("Which is better?", _question(showing, ballots.given_by(rater)), script=True)

    async def cast(request: Request) -> Response:
        rater = rater_of(request)
        if rater is None:
            return RedirectResponse("/", 303)
        form = await _form(request)
        try:
            await run_in_threadpool(ballots.cast, rater, form.get("ticket", ""), form.get("side", ""))
        except StorageError:
            body = (
                '<p>Your answer could not be kept. Nothing is wrong on your side.</p><p><a href="/vote">Go on</a></p>'
            )
            return _page("Not kept", body, 503)
        return RedirectResponse("/vote", 303)

    def video(request: Request) -> Response:
        digest = request.path_params["digest"]
        if rater_of(request) is None or digest not in videos:
            return PlainTextResponse("not found", 404)
        # a private copy: nothing in it tells whose it is, and it never changes
        return FileResponse(
            study.video(digest), media_type="video/mp4", headers={"Cache-Control": "private, max-age=86400"}
        )

    def asset(request: Request) -> Response:
        return FileResponse(_HERE / request.url.path.removeprefix("/"), headers={"Cache-Control": "max-age=3600"})

    async def healthy(_: Request) -> Response:
        return PlainTextResponse("ok")

    app = Starlette(
        routes=[
            Route("/", welcome),
            Route("/begin", begin, methods=["POST"]),
            Route("/vote", vote),
            Route("/vote", cast, methods=["POST"]),
            Route("/video/{digest}.mp4", video),
            Route("/vote.css", asset),
            Route("/vote.js", asset),
            Route("/healthz", healthy),
        ]
    )
    app.add_middleware(_Headers)
    return app


class _Headers:
    """What every answer bears, unless it says otherwise itself."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def sending(message: Any) -> None:
            if message["type"] == "http.response.start":
                there = {name.lower() for name, _ in message["headers"]}
                message["headers"] += [
                    (name.lower().encode(), value.encode())
                    for name, value in _HEADERS.items()
                    if name.lower().encode() not in there
                ]
            await send(message)

        await self.app(scope, receive, sending)


def serve(study: Study, host: str, port: int, code: str | None) -> None:
    """Take votes until told to stop.

    Raises:
        BadInputError: another server has the study.
    """
    import uvicorn

    with opened(study) as ballots:
        config = uvicorn.Config(
            make_app(ballots, code), host=host, port=port, log_level="warning", access_log=False, lifespan="off",
            limit_concurrency=1000, timeout_keep_alive=15, timeout_graceful_shutdown=5, server_header=False,
        )  # fmt: skip
        uvicorn.Server(config).run()


def _same(given: str | None, code: str) -> bool:
    return given is not None and hmac.compare_digest(given.encode(), code.encode())


async def _form(request: Request) -> dict[str, str]:
    """A small form's fields; nothing of one that is too large."""
    body = b""
    async for part in _parts(request):
        body += part
        if len(body) > _MOST_BYTES:
            return {}
    try:
        return {name: values[0] for name, values in parse_qs(body.decode("ascii"), max_num_fields=8).items()}
    except ValueError:
        return {}


async def _parts(request: Request) -> AsyncIterator[bytes]:
    async for part in request.stream():
        yield part


def _question(showing: Showing, given: int) -> str:
    def side(name: str, digest: str, key: str) -> str:
        return (
            f'<div><video src="/video/{digest}.mp4" autoplay muted loop playsinline aria-label="{name} video"></video>'
            f'<button name="side" value="{name}">{name.capitalize()} <kbd>{key}</kbd></button></div>'
        )

    text = f"<blockquote>{html.escape(showing.text)}</blockquote>" if showing.text else ""
    return (
        f"<h2>{html.escape(QUESTIONS[showing.category])}</h2>{text}"  # type: ignore[index]
        f'<form method="post" action="/vote" class="pair">'
        f'<input type="hidden" name="ticket" value="{html.escape(showing.ticket, quote=True)}">'
        f"{side('left', showing.left, '←')}{side('right', showing.right, '→')}</form>"
        f'<p class="soft">Your answers so far: {given} '
        '<button type="button" id="again">Play from the start</button></p>'
    )


def _page(title: str, body: str, status: int = 200, script: bool = False) -> HTMLResponse:
    return HTMLResponse(
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f'<title>{title}</title><link rel="stylesheet" href="/vote.css">'
        + ('<script src="/vote.js" defer></script>' if script else "")
        + f"</head><body><main><h1>{title}</h1>{body}</main></body></html>",
        status,
    )
