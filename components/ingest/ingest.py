"""Raw footage into the manifest ``videos``: what there is, what each file is, and the bytes in the data root."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, overload

from ..common.errors import BadInputError
from ..common.fanout import Executor, LocalProcesses, chosen_executor, default_workers, map_units
from ..common.identity import identity
from ..common.manifest_spool import ManifestSpool
from ..common.progress import track
from ..common.report import StepReport
from ..common.storage import DataRoot
from .footage import VERSION as FOOTAGE_VERSION
from .footage import write_footage
from .ingest_report import Tally
from .licences import refusal
from .settings import IngestSettings
from .sources import REMEDY, Source, about_file, find_sources, is_remote, with_unique_names
from .take import Errand, Taken, content_after_crash, find_known_file, sweep_abandoned, take
from .uris import scheme_of
from .verdict import Brought, probe_brought

_SPARE_S = 60.0  # for what is neither fetching nor probing: hashing and storing
_LOOK_UPS = 1 << 13  # of unchanged files that are under way at a time
_TIMED_OUT = "(exit code -14)"  # SIGALRM: the worker's own limit


@dataclass(frozen=True)
class Entry:
    """All sources of one content (or of one place whose content is unknown), and what became of them."""

    video_id: str
    sources: list[Source]  # sorted by name
    taken: Taken
    refusals: dict[str, str]  # source name to why its licence forbids its use

    @property
    def usable(self) -> list[Source]:
        """Sources whose licence lets the video be used."""
        return [source for source in self.sources if source.name not in self.refusals]

    @property
    def error(self) -> str | None:
        """Why it is set aside, as ``<short name>: <why>``."""
        if self.taken.fault:
            return self.taken.fault
        if not self.usable:
            return f"licence: {'; '.join(sorted({self.refusals[source.name] for source in self.sources}))}"
        return (self.taken.verdict or {}).get("error")


def ingest_videos(source: str, out: Path, root: DataRoot, settings: IngestSettings) -> StepReport:
    """Take in every video that a source names: one row for each content, in the order of their ids.

    A video is known by the sha256 of its bytes: exact duplicates are one video with several sources. What is known
    about a content, and which content an unchanged place has, is kept and not found out again. What is no usable video
    is set aside with a reason, and counted; where no bytes were to be had, the id is that of the name.

    Args:
        source: a folder, ``s3://bucket/prefix`` or a list (see ``sources.find_sources``); "" when only generated
            footage is wanted.
        out: the manifest ``videos`` to write.
        root: takes the bytes.
        settings: what to add, what to refuse, and limits.

    Raises:
        BadInputError: the source is not there or cannot be read, or there is nothing to take in.
        StorageError: the data root cannot be written, or the store of an S3 source does not answer.
    """
    sweep_abandoned(root)
    found = find_sources(source, settings.lists) if source else []
    sources = with_unique_names([*found, *_generated(root, settings)])
    if not sources:
        place = f"{source}: holds no file" if source else "no source is named and ingest.generated_clips is 0"
        raise BadInputError(f"{place}; {REMEDY}, or set ingest.generated_clips")
    sources = [replace(s, licence=s.licence or settings.licence) for s in sources]
    refused = {
        s.name: why
        for s in sources
        if (why := refusal(s.licence, settings.licences_allowed, settings.licences_refused))
    }
    taken = _take_all(sources, refused, root, settings)
    tally = Tally()
    with ManifestSpool("videos", root.scratch("ingest")) as rows:
        for entry in _entries(sources, refused, taken):
            row = _row(entry)
            rows.add(row)
            tally.add(row, entry)
        rows.write(out)
    return tally.report(root)


def _generated(root: DataRoot, settings: IngestSettings) -> list[Source]:
    if settings.generated_clips <= 0:
        return []
    key = identity(version=FOOTAGE_VERSION, seed=settings.generated_seed, footage=settings.footage)
    directory = root.scratch("footage", key)
    sources = []
    for path in write_footage(directory, settings.generated_clips, settings.generated_seed, settings.footage):
        about = about_file(path)
        name = f"generated/{path.name}"
        sources.append(Source(name, name, str(path), about.get("licence"), about.get("description"), kind="generated"))
    return sources


class _Outcomes:
    """What became of every place, packed: some hundred bytes each until all are put together by content."""

    def __init__(self) -> None:
        self._packed: dict[str, bytes] = {}
        self._contents: dict[str, str] = {}

    def __contains__(self, place: str) -> bool:
        return place in self._packed

    def keep(self, place: str, taken: Taken) -> None:
        self._packed[place] = zlib.compress(json.dumps(asdict(taken)).encode(), 1)
        if taken.content:
            self._contents[place] = taken.content.sha256

    def of(self, source: Source) -> Taken:
        if source.fault:
            return Taken(fault=source.fault)
        return self.at(source.place) if source.place in self else Taken()

    def at(self, place: str) -> Taken:
        """What was kept of a place."""
        return Taken.from_plain(json.loads(zlib.decompress(self._packed[place])))

    def content(self, place: str) -> str:
        """Sha256 of what lies at a place."""
        return self._contents[place]

    def key(self, source: Source) -> str:
        """The same for all sources of one content; of one place where the content is not known."""
        content = None if source.fault else self._contents.get(source.place)
        return content or f"place {source.place or source.name}"


def _take_all(sources: list[Source], refused: dict[str, str], root: DataRoot, settings: IngestSettings) -> _Outcomes:
    """What became of every place that is followed. Places afar that may not be used are not."""
    usable: dict[str, bool] = {}
    for source in sources:
        if not source.fault:
            usable[source.place] = usable.get(source.place, False) or source.name not in refused
    places = [place for place, may in usable.items() if may or not is_remote(place)]
    taken = _Outcomes()
    here = [place for place in places if not is_remote(place)]
    with ThreadPoolExecutor(2 * default_workers()) as threads:
        known = (
            (place, found)
            for at in range(0, len(here), _LOOK_UPS)
            for place, found in zip(
                here[at : at + _LOOK_UPS],
                threads.map(lambda p: find_known_file(p, root, settings.probe, usable[p]), here[at : at + _LOOK_UPS]),
                strict=True,
            )
        )
        for place, found in track(known, "files looked up", len(here)):
            if found is not None:
                taken.keep(place, found)
    errands = [
        Errand(place, usable[place], root.location, settings.fetch, settings.probe, settings.timeout_s)
        for place in places
        if place not in taken
    ]
    inputs = identity(places=sorted(places), fetch=settings.fetch, probe=settings.probe)
    executor = chosen_executor(root, "ingest", inputs)
    if isinstance(executor, LocalProcesses):
        _take_some(errands, taken, root, settings)
        return taken
    # Pods reach object stores alone: what lies elsewhere is brought by this step, and only probed there.
    stored = [errand for errand in errands if scheme_of(errand.place) == "s3"]
    others = [replace(errand, probe_later=True) for errand in errands if scheme_of(errand.place) != "s3"]
    _take_some(stored, taken, root, settings, executor)
    to_probe = _ToProbe(taken, _take_some(others, taken, root, settings), root, settings)
    executor, probe_s = chosen_executor(root, "probe", inputs), settings.timeout_s + _SPARE_S
    for outcome in map_units(probe_brought, to_probe, "videos probed", timeout_s=probe_s, executor=executor):
        verdict = outcome.value or _no_verdict(outcome.error or "", settings)
        to_probe.settle(outcome.unit, verdict)
        if outcome.value is None and outcome.unit.written:
            root.remove(outcome.unit.uri)
    return taken


class _ToProbe(Sequence[Brought]):
    """What was brought and is to be probed: each content once, made when it is asked for."""

    def __init__(self, taken: _Outcomes, places: list[str], root: DataRoot, settings: IngestSettings) -> None:
        self._taken, self._limits = taken, (root.location, settings.probe, settings.timeout_s)
        self._places: dict[str, list[str]] = {}
        for place in places:
            self._places.setdefault(taken.content(place), []).append(place)
        self._contents = list(self._places)

    def __len__(self) -> int:
        return len(self._contents)

    @overload
    def __getitem__(self, index: int) -> Brought: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Brought]: ...
    def __getitem__(self, index: int | slice) -> Brought | Sequence[Brought]:
        if isinstance(index, slice):
            return [self[n] for n in range(*index.indices(len(self)))]
        found = [self._taken.at(place) for place in self._places[self._contents[index]]]
        assert found[0].content and found[0].brought
        return Brought(found[0].brought, any(t.written for t in found), found[0].content, *self._limits)

    def settle(self, brought: Brought, verdict: dict[str, Any]) -> None:
        """Keep the verdict on a content for all its places."""
        for place in self._places[brought.content.sha256]:
            found = replace(self._taken.at(place), brought=None, written=False, verdict=verdict, examined=True)
            self._taken.keep(place, found)


def _take_some(
    errands: list[Errand], taken: _Outcomes, root: DataRoot, settings: IngestSettings, executor: Executor | None = None
) -> list[str]:
    """Take places in; returns those whose bytes are still to be probed."""
    brought = []
    afar = any(is_remote(errand.place) for errand in errands)
    timeout_s = settings.timeout_s + _SPARE_S + (settings.fetch.total_s if afar else settings.timeout_s)
    for outcome in map_units(take, errands, "videos", settings.workers, timeout_s, executor=executor):
        place, found = outcome.unit.place, outcome.value
        taken.keep(place, found or _crashed(place, outcome.error or "", root, settings))
        if found is not None and found.brought:
            brought.append(place)
    return brought


def _crashed(place: str, error: str, root: DataRoot, settings: IngestSettings) -> Taken:
    content, verdict = content_after_crash(place, root), _no_verdict(error.replace(place, "the file"), settings)
    return Taken(content=content, verdict=verdict) if content else Taken(fault=verdict["error"])


def _no_verdict(error: str, settings: IngestSettings) -> dict[str, Any]:
    """A crash or a time-out is no verdict on the bytes: it is not kept, and tried again in the next run."""
    if _TIMED_OUT in error:
        error = f"took longer than {settings.timeout_s:g} s and was stopped"
    return {"error": f"crash: probing it {error}"}


def _entries(sources: Iterable[Source], refused: dict[str, str], taken: _Outcomes) -> Iterator[Entry]:
    """Sources put together by content; those whose content is unknown by place."""
    for _, together in groupby(sorted(sources, key=lambda s: (taken.key(s), s.name)), key=taken.key):
        group = list(together)
        outcome = taken.of(group[0])
        for other in group[1:]:  # of one content, at a place that may be used
            outcome = outcome if outcome.verdict is not None else _better(outcome, taken.of(other))
        video_id = outcome.content.sha256 if outcome.content else unread_id(group[0].name)
        yield Entry(video_id, group, outcome, {s.name: refused[s.name] for s in group if s.name in refused})


def _better(outcome: Taken, other: Taken) -> Taken:
    return outcome if other.verdict is None else other


def unread_id(name: str) -> str:
    """The id of a source whose bytes could not be had: of the same form as a content's, and the same in every run."""
    return hashlib.sha256(f"svdflow: no bytes of {name}".encode()).hexdigest()


def _row(entry: Entry) -> dict[str, Any]:
    error, verdict, content = entry.error, entry.taken.verdict or {}, entry.taken.content
    telling = entry.usable or entry.sources
    return {
        "video_id": entry.video_id,
        "uri": "" if error else verdict["uri"],
        "name": entry.sources[0].name,
        "sources": [
            {"name": s.name, "uri": s.uri, "licence": s.licence, "metadata": s.metadata} for s in entry.sources
        ],
        "bytes": content.bytes if content else 0,
        **verdict.get("info", {}),
        "licence": next((s.licence for s in telling if s.licence), None),
        "source": "generated" if all(s.kind == "generated" for s in entry.sources) else "footage",
        "description": next((s.description for s in telling if s.description), None),
        "status": "set_aside" if error else "ok",
        "error": error,
    }
