"""What caption models are asked. A changed word is a new prompt: raise its version, which stands in the manifest."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Prompt:
    """A question to a model; both parts enter the identity of what it answers."""

    version: str
    text: str

    def signed(self, model: str) -> str:
        """The model's name in the manifest, as ``vlm prompt@2``."""
        return f"{model} prompt@{self.version}"


PROMPTS = {
    "caption_image": Prompt("1", "Describe this picture in one sentence."),
    "caption_video": Prompt(
        "1", "These are frames of one video, in order. Describe in one or two sentences what happens."
    ),
    "caption_summary": Prompt(
        "1", "Two captions of a video follow. Join them into one or two sentences; answer with these alone."
    ),
}


def summary_question(captions: list[str]) -> str:
    """The prompt of a summary with the captions to be joined."""
    return PROMPTS["caption_summary"].text + "".join(f"\n- {text}" for text in captions)
