"""Captions from an OpenAI-compatible server (vLLM, a cloud service), with retries; the key never leaves the request."""

from __future__ import annotations

import http.client
import json
import os
import random
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from ...common.errors import ConfigError, ServiceError, SvdflowError
from ...common.manifests import valid_text
from ...common.report import jpeg_data_uri
from .annotator import ClipView, ModelAnnotator, register
from .captioners import caption_columns
from .captions_local import described
from .prompts import PROMPTS, summary_question
from .settings import AnnotateSettings

_RETRIED = {408, 409, 425, 429, 500, 502, 503, 504}
_LARGEST_ANSWER = 1 << 20
_LONGEST_CAPTION = 8192  # characters: of a server that heeds no max_tokens
_LONGEST_WAIT_S = 30.0
_PICTURE_PX = 512


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect could carry the key to another host."""

    def redirect_request(self, *args: Any) -> None:
        return None


def ask(settings: AnnotateSettings, prompt: str, pictures: list[str]) -> str:
    """One chat completion.

    What may pass (a busy or absent server, a time-out, an answer that is none) is tried again, later each time, or
    when the server says so; a refusal is not.

    Args:
        settings: where and as whom.
        prompt: the text.
        pictures: data URIs.

    Raises:
        ServiceError: no usable answer after all tries.
    """
    content: list[dict[str, Any]] = [{"type": "text", "text": prompt}]
    content += [{"type": "image_url", "image_url": {"url": uri}} for uri in pictures]
    body = {
        "model": settings.endpoint_model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 2 * settings.caption_tokens,
        "temperature": 0,
    }
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get(settings.endpoint_key_variable, "").strip():  # a file's last line end is no part of it
        headers["Authorization"] = f"Bearer {key}"
    url = settings.endpoint_url.rstrip("/") + "/chat/completions"
    opener = urllib.request.build_opener(_NoRedirect)
    reason, asked_wait_s = "", 0.0
    for attempt in range(settings.endpoint_tries):
        if attempt:
            time.sleep(_wait_s(attempt, asked_wait_s))
        request = urllib.request.Request(url, json.dumps(body).encode(), headers, method="POST")
        asked_wait_s = 0.0
        try:
            with opener.open(request, timeout=settings.endpoint_timeout_s) as answer:
                words = json.loads(answer.read(_LARGEST_ANSWER))["choices"][0]["message"]["content"]
            if isinstance(words, str) and words.strip() and len(words) <= _LONGEST_CAPTION:
                return valid_text(words)
            told = isinstance(words, str) and words.strip()
            reason = f"its answer has more than {_LONGEST_CAPTION} characters" if told else "its answer is empty"
        except urllib.error.HTTPError as error:
            reason = f"it answers {error.code} {error.reason}"
            asked_wait_s = _seconds(error.headers.get("Retry-After"))
            error.close()
            if error.code not in _RETRIED:
                break
        except (KeyError, IndexError, TypeError, ValueError, RecursionError) as error:
            reason = f"its answer is no chat completion ({type(error).__name__})"
        except (OSError, http.client.HTTPException) as error:
            reason = f"{getattr(error, 'reason', error) or type(error).__name__}"
    raise ServiceError(f"{url}: {reason} (tried {attempt + 1} times); check annotate.endpoint_url and endpoint_model")


def _wait_s(attempt: int, asked_s: float) -> float:
    """Longer each time, and not in step with the other requests; at least what the server asked for, within reason."""
    backoff_s = 0.2 * 4 ** (attempt - 1) * random.uniform(1, 1.5)
    return min(max(backoff_s, asked_s), _LONGEST_WAIT_S)


def _seconds(retry_after: str | None) -> float:
    try:
        return max(float(retry_after or 0), 0.0)
    except ValueError:  # a date: the usual wait will do
        return 0.0


def _as_sent(rgb: np.ndarray) -> str:
    return jpeg_data_uri(rgb, max_side=_PICTURE_PX)


class _Endpoint(ModelAnnotator):
    name, version = "endpoint", "2"

    def __init__(self, settings: AnnotateSettings) -> None:
        super().__init__(settings)
        if not settings.endpoint_url.startswith(("http://", "https://")) or not settings.endpoint_model:
            raise ConfigError(
                f"annotate.{self.axis}=endpoint needs annotate.endpoint_url (as http://host:8000/v1) and endpoint_model"
            )
        if set("@?#") & set(settings.endpoint_url):  # settings are written to reports: a secret has no place there
            raise ConfigError(
                "annotate.endpoint_url: may hold no user, password or query; the key goes into the environment, as "
                f"{settings.endpoint_key_variable} (annotate.endpoint_key_variable)"
            )

    def config(self) -> dict[str, Any]:
        """The settings its result depends on; a server may move."""
        prompt = PROMPTS[self.axis]
        return {
            "model": self.settings.endpoint_model,
            "prompt": [prompt.version, prompt.text],
            "tokens": self.settings.caption_tokens,
        }

    def measure(self, clips: Sequence[ClipView]) -> list[dict[str, Any] | SvdflowError]:
        """Their columns; several requests are under way at once."""
        with ThreadPoolExecutor(self.settings.endpoint_requests) as requests:
            return list(requests.map(self._caption, clips))

    def _caption(self, clip: ClipView) -> dict[str, Any] | SvdflowError:
        try:
            return self.caption(clip)
        except ServiceError as error:
            return error

    def caption(self, clip: ClipView) -> dict[str, Any] | SvdflowError:
        """Its columns for one clip."""
        raise NotImplementedError

    def answer(self, prompt: str, pictures: Sequence[str] = ()) -> dict[str, Any] | SvdflowError:
        """Ask, and name the model and the prompt."""
        words = ask(self.settings, prompt, list(pictures))
        return caption_columns(self.axis, words, PROMPTS[self.axis].signed(self.settings.endpoint_model))


@register
class EndpointImageCaption(_Endpoint):
    """Caption of the middle frame."""

    axis, columns, uses_description = "caption_image", ("caption_image", "caption_image_model"), True

    def config(self) -> dict[str, Any]:
        """The settings its result depends on."""
        return {**super().config(), "prefer_description": self.settings.prefer_description}

    def prepare(self, clip: ClipView) -> None:
        """Keep the middle frame, as it is sent."""
        if not described(clip, self.settings.prefer_description):
            self._pictures(clip)

    def caption(self, clip: ClipView) -> dict[str, Any] | SvdflowError:
        """Its columns for one clip."""
        own = described(clip, self.settings.prefer_description)
        return own or self.answer(PROMPTS[self.axis].text, self._pictures(clip))

    def _pictures(self, clip: ClipView) -> list[str]:
        return clip.once("middle frame to be sent", lambda: [_as_sent(clip.key_frames[1].rgb)])


@register
class EndpointVideoCaption(_Endpoint):
    """Caption of frames spread over the clip."""

    axis, columns = "caption_video", ("caption_video", "caption_video_model")

    def __init__(self, settings: AnnotateSettings) -> None:
        super().__init__(settings)
        self.spread = settings.video_caption_frames

    def config(self) -> dict[str, Any]:
        """The settings its result depends on."""
        return {**super().config(), "frames": self.spread}

    def prepare(self, clip: ClipView) -> None:
        """Keep the frames, as they are sent."""
        self._pictures(clip)

    def caption(self, clip: ClipView) -> dict[str, Any] | SvdflowError:
        """Its columns for one clip."""
        return self.answer(PROMPTS[self.axis].text, self._pictures(clip))

    def _pictures(self, clip: ClipView) -> list[str]:
        return clip.once("spread frames to be sent", lambda: [_as_sent(rgb) for rgb in clip.spread_frames])


@register
class EndpointSummary(_Endpoint):
    """One caption out of the image's and the video's."""

    axis, columns = "caption_summary", ("caption_summary", "caption_summary_model")
    needs = ("caption_image", "caption_video")

    def caption(self, clip: ClipView) -> dict[str, Any] | SvdflowError:
        """Its columns for one clip."""
        captions = [text for name in self.needs if (text := clip.columns.get(name))]
        return self.answer(summary_question(captions)) if captions else dict.fromkeys(self.columns)
