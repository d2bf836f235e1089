"""Captions from an OpenAI-compatible server (vLLM, a cloud service), with retries; the key never leaves the request."""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from typing import Any

from ...common.errors import ConfigError, ServiceError
from ...common.report import jpeg_data_uri
from .annotator import Annotator, ClipView, register
from .captions_local import described
from .settings import AnnotateSettings

_RETRIED = {408, 409, 425, 429, 500, 502, 503, 504}
_LARGEST_ANSWER = 1 << 20
_PROMPTS = {
    "caption_image": "Describe this picture in one sentence.",
    "caption_video": "These are frames of one video, in order. Describe in one or two sentences what happens.",
    "caption_summary": "Two captions of a video follow. Join them into one or two sentences; answer with these alone.",
}


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect could carry the key to another host."""

    def redirect_request(self, *args: Any) -> None:
        return None


def ask(settings: AnnotateSettings, prompt: str, pictures: list[str]) -> str:
    """One chat completion.

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
    if key := os.environ.get(settings.endpoint_key_variable):
        headers["Authorization"] = f"Bearer {key}"
    url = settings.endpoint_url.rstrip("/") + "/chat/completions"
    opener = urllib.request.build_opener(_NoRedirect)
    reason = ""
    for attempt in range(settings.endpoint_tries):
        if attempt:
            time.sleep(min(0.2 * 4 ** (attempt - 1), 20))
        request = urllib.request.Request(url, json.dumps(body).encode(), headers, method="POST")
        try:
            with opener.open(request, timeout=settings.endpoint_timeout_s) as answer:
                words = json.loads(answer.read(_LARGEST_ANSWER))["choices"][0]["message"]["content"]
            if isinstance(words, str) and words.strip():
                return " ".join(words.split())
            reason = "its answer is empty"
        except urllib.error.HTTPError as error:
            reason = f"it answers {error.code} {error.reason}"
            if error.code not in _RETRIED:
                break
        except (KeyError, IndexError, TypeError, json.JSONDecodeError) as error:
            reason = f"its answer is no chat completion ({type(error).__name__})"
        except (OSError, http.client.HTTPException) as error:
            reason = f"{getattr(error, 'reason', error) or type(error).__name__}"
    raise ServiceError(f"{url}: {reason} (tried {attempt + 1} times); check annotate.endpoint_url and endpoint_model")


class _Endpoint(Annotator):
    name, version = "endpoint", "1"

    def __init__(self, settings: AnnotateSettings) -> None:
        super().__init__(settings)
        if not settings.endpoint_url.startswith(("http://", "https://")) or not settings.endpoint_model:
            raise ConfigError(
                f"annotate.{self.axis}=endpoint needs annotate.endpoint_url (as http://host:8000/v1) and endpoint_model"
            )

    def config(self) -> dict[str, Any]:
        """The settings its result depends on."""
        s = self.settings
        return {
            "url": s.endpoint_url,
            "model": s.endpoint_model,
            "prompt": _PROMPTS[self.axis],
            "tokens": s.caption_tokens,
        }

    def answer(self, text: str = "", pictures: list[Any] | None = None) -> dict[str, Any]:
        """Ask, and name the model that answered."""
        words = ask(self.settings, _PROMPTS[self.axis] + text, [jpeg_data_uri(p, max_side=512) for p in pictures or []])
        return {self.axis: words, f"{self.axis}_model": self.settings.endpoint_model}


@register
class EndpointImageCaption(_Endpoint):
    """Caption of the middle frame."""

    axis, columns, uses_description = "caption_image", ("caption_image", "caption_image_model"), True

    def config(self) -> dict[str, Any]:
        """The settings its result depends on."""
        return {**super().config(), "prefer_description": self.settings.prefer_description}

    def annotate(self, clip: ClipView) -> dict[str, Any]:
        """Its columns for one clip."""
        return described(clip, self.settings.prefer_description) or self.answer(pictures=[clip.key_frames[1].rgb])


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

    def annotate(self, clip: ClipView) -> dict[str, Any]:
        """Its columns for one clip."""
        return self.answer(pictures=clip.spread_frames)


@register
class EndpointSummary(_Endpoint):
    """One caption out of the image's and the video's."""

    axis, columns = "caption_summary", ("caption_summary", "caption_summary_model")
    needs = ("caption_image", "caption_video")

    def annotate(self, clip: ClipView) -> dict[str, Any]:
        """Its columns for one clip."""
        captions = [text for name in self.needs if (text := clip.columns.get(name))]
        if not captions:
            return {"caption_summary": None, "caption_summary_model": None}
        return self.answer("".join(f"\n- {text}" for text in captions))
