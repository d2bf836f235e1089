"""What is kept of each clip: one result for every clip's content, annotator, version, settings and inputs.

Three kinds of records in the data root, each found by what it follows from:

* ``clip_content``: sha256 of a clip's bytes, by its place in a shard (shards never change);
* ``annotate``: columns of one annotator, by content; all of one clip begin with the same 32 digits of its sha256;
* ``annotate_clip``: all columns of a clip, by place and settings: a rerun reads this one alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from ...common.identity import identity
from ...common.storage import DataRoot
from .annotator import Annotator
from .settings import AnnotateSettings

CONTENT, RESULT, WHOLE = "clip_content", "annotate", "annotate_clip"


@dataclass(frozen=True)
class ClipWork:
    """One clip to annotate; picklable.

    Attributes:
        root: the data root.
        settings: of the step.
        clip: of the manifest, what is needed: the id and where the bytes lie.
        description: the caption that came with the video, if any.
        number: the clip's place in the manifest.
    """

    root: str
    settings: AnnotateSettings
    clip: dict[str, Any]
    description: str | None
    number: int = 0

    @property
    def clip_id(self) -> str:
        """Of the manifest."""
        return self.clip["clip_id"]

    def place(self) -> str:
        """Names where the clip's bytes lie, and so the bytes."""
        return identity(shard=self.clip["shard_uri"], offset=self.clip["offset"], bytes=self.clip["bytes"])


@dataclass
class ClipResult:
    """What was measured on one clip: axis to seconds for what was computed, to a reason for what failed."""

    columns: dict[str, Any] = field(default_factory=dict)
    computed: dict[str, float] = field(default_factory=dict)
    reused: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def settled(self, axis: str) -> bool:
        """Whether nothing is to be done any more."""
        return axis in self.computed or axis in self.reused or axis in self.failed


class Results:
    """The records of these annotators."""

    def __init__(self, root: DataRoot, annotators: Sequence[Annotator]) -> None:
        self.root, self.annotators = root, annotators
        self.identity = identity(annotators=[a.identity() for a in annotators])

    def whole(self, work: ClipWork) -> ClipResult | None:
        """Everything of a clip, if it is there; one look-up."""
        columns = self._find(WHOLE, self._whole_key(work))
        return None if columns is None else ClipResult(columns, reused=[a.axis for a in self.annotators])

    def content(self, work: ClipWork) -> str | None:
        """Sha256 of a clip's bytes, if they were read before."""
        found = self.root.find(CONTENT, work.place())
        return found and found["sha256"]

    def read(self, work: ClipWork) -> tuple[bytes, str]:
        """A clip's bytes and their sha256."""
        clip = work.clip
        mp4 = self.root.read_range(clip["shard_uri"], clip["offset"], clip["bytes"])
        content = sha256(mp4).hexdigest()
        if self.content(work) is None:
            self.root.record(CONTENT, work.place(), {"sha256": content})
        return mp4, content

    def parts(self, work: ClipWork, content: str) -> ClipResult:
        """What there is of a clip: each annotator whose inputs are known too."""
        result = ClipResult()
        for annotator in self.annotators:
            if not missing_inputs(annotator, result.columns):
                self.take(annotator, content, work, result)
        return result

    def take(self, annotator: Annotator, content: str, work: ClipWork, result: ClipResult) -> bool:
        """Take one annotator's columns if they are there."""
        columns = self._find(RESULT, annotator.key(content, work.description, result.columns))
        if columns is None:
            return False
        result.columns.update(columns)
        result.reused.append(annotator.axis)
        return True

    def keep(
        self, annotator: Annotator, content: str, work: ClipWork, found: Mapping[str, Any], result: ClipResult
    ) -> None:
        """Keep what an annotator found; not what it made of failed inputs, which is not final."""
        columns = annotator.store(dict(found), self.root)
        if not missing_inputs(annotator, result.columns):
            self.root.record(RESULT, annotator.key(content, work.description, result.columns), columns)
        result.columns.update(columns)

    def close(self, work: ClipWork, result: ClipResult) -> None:
        """Keep the whole of a clip when nothing is missing."""
        if not result.failed:
            self.root.record(WHOLE, self._whole_key(work), result.columns)

    def _whole_key(self, work: ClipWork) -> str:
        return f"{work.place()}-{identity(annotators=self.identity, description=work.description)}"

    def _find(self, kind: str, key: str) -> dict[str, Any] | None:
        columns = self.root.find(kind, key)
        if columns is None:
            return None
        uris = [value for name, value in columns.items() if name.endswith("_uri") and value]
        return columns if all(self.root.exists(uri) for uri in uris) else None  # an object may have been cleaned away


def missing_inputs(annotator: Annotator, columns: Mapping[str, Any]) -> list[str]:
    """Columns that an annotator reads and that are not there, since theirs failed."""
    return [name for name in annotator.needs if name not in columns]
