"""What holds between rows and between manifests: SQL that selects the rows that break it, run by DuckDB."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from ...common.manifests import AXES, SCHEMAS
from .suites import NAMED_BY


@dataclass(frozen=True)
class Link:
    """A rule over manifests.

    Attributes:
        name: what holds when all is well.
        manifest: where it is shown.
        needs: manifests it reads.
        broken: SQL whose rows break the rule.
        severity: "critical" stops a run, "warning" does not.
    """

    name: str
    manifest: str
    needs: tuple[str, ...]
    broken: str
    severity: str = "critical"


def unique(name: str, manifest: str, column: str, where: str = "true", severity: str = "critical") -> Link:
    """No two rows share a value."""
    sql = f"SELECT {column}, count(*) AS rows FROM {manifest} WHERE {where} GROUP BY {column} HAVING count(*) > 1"
    return Link(name, manifest, (manifest,), sql, severity)


def held_by(name: str, manifest: str, other: str, column: str, shown: str, where: str = "true") -> Link:
    """Each row's value is found in another manifest. NOT EXISTS: with NOT IN one null there would hide every fault."""
    sql = f"""SELECT {shown} FROM {manifest} a
        WHERE NOT EXISTS (SELECT 1 FROM {other} b WHERE b.{column} = a.{column} AND {where})"""
    return Link(name, manifest, (manifest, other), sql)


def _required(kind: str) -> Link:
    columns = [f.name for f in SCHEMAS[kind] if not f.nullable]
    nulls = " OR ".join(f'"{c}" IS NULL' for c in columns)
    return Link(
        "required values are there",
        kind,
        (kind,),
        f"SELECT {', '.join(columns[:5])} FROM {kind} WHERE {nulls}",
    )


def _finite(kind: str) -> Link:
    plain = [f.name for f in SCHEMAS[kind] if f.type == pa.float64()]
    lists = [f.name for f in SCHEMAS[kind] if f.type == pa.list_(pa.float64(), 3)]
    parts = [f"(NOT coalesce(isfinite({c}), true){_told_nan(c) if kind == 'selection' else ''})" for c in plain]
    parts += [f"NOT coalesce(isfinite({c}[{i}]), true)" for c in lists for i in (1, 2, 3)]
    shown = ", ".join([NAMED_BY[kind][0], *plain, *lists])
    return Link("figures are finite", kind, (kind,), f"SELECT {shown} FROM {kind} WHERE {' OR '.join(parts)}")


def _told_nan(column: str) -> str:
    """The filter keeps an axis that is NaN as it is, and says so among the reasons."""
    axis, _, part = column.rpartition("_")
    return f" AND NOT (isnan({column}) AND list_contains(reasons, 'nan_{axis}'))" if part == "value" else ""


def _measured_throughout(axis: str, column: str) -> Link:
    return Link(
        f"{axis}, once measured, is measured on every clip",
        "annotations",
        ("annotations",),
        f"""SELECT clip_id, {column}, annotators FROM annotations WHERE {column} IS NULL
            AND EXISTS (SELECT 1 FROM annotations WHERE {column} IS NOT NULL)""",
        "warning",
    )


def _not_empty(kind: str) -> Link:
    return Link("the manifest has rows", kind, (kind,), f"SELECT 0 AS rows WHERE NOT EXISTS (SELECT 1 FROM {kind})")


_LOWER = ("motion", "aesthetic", "similarity")  # fail below the cut, the others above it
_WRONG_SIDE = " OR ".join(
    f"{a}_failed <> coalesce({a}_value {'<' if a in _LOWER else '>'} {a}_cut AND NOT isnan({a}_value), false)"
    for a in AXES
)
_AXIS_COLUMNS = ", ".join(f"{a}_value, {a}_cut, {a}_failed" for a in AXES)
_NOT_MISSING = " OR ".join(f"({a}_value IS NOT NULL AND list_contains(reasons, 'missing_{a}'))" for a in AXES)
_AXIS_VALUES = ", ".join(f"{a}_value" for a in AXES)
_UNTOLD = " OR ".join(f"{a}_failed <> list_contains(reasons, '{a}')" for a in AXES)

LINKS: list[Link] = [
    *[_not_empty(kind) for kind in SCHEMAS],
    *[_required(kind) for kind in SCHEMAS],
    *[_finite(kind) for kind in SCHEMAS if any("double" in str(f.type) for f in SCHEMAS[kind])],
    # videos
    unique("video ids are unique", "videos", "video_id", "video_id <> ''"),  # "" is that of bytes never read
    unique("video names are unique", "videos", "name", severity="warning"),
    Link(
        "a video has its sources, the first of them names it",
        "videos",
        ("videos",),
        """SELECT video_id, name, sources FROM videos
            WHERE coalesce(len(sources), 0) = 0 OR sources[1].name IS DISTINCT FROM name""",
    ),
    Link(
        "sources have a name and a place, sorted by name",
        "videos",
        ("videos",),
        """SELECT video_id, name, sources FROM videos
            WHERE list_contains([coalesce(s.name, '') = '' for s in sources], true)
               OR status = 'ok' AND list_contains([coalesce(s.uri, '') = '' for s in sources], true)
               OR [s.name for s in sources] <> list_sort([s.name for s in sources])""",
    ),
    Link(
        "what a list told about a source is JSON",
        "videos",
        ("videos",),
        """SELECT video_id, name, sources FROM videos
            WHERE list_contains([s.metadata IS NOT NULL AND NOT json_valid(s.metadata) for s in sources], true)""",
    ),
    Link(
        "status is ok or set_aside",
        "videos",
        ("videos",),
        "SELECT name, status FROM videos WHERE status NOT IN ('ok', 'set_aside')",
    ),
    Link(
        "a video set aside says why",
        "videos",
        ("videos",),
        "SELECT name, status, error FROM videos WHERE status = 'set_aside' AND coalesce(trim(error), '') = ''",
    ),
    Link(
        "there are usable videos",
        "videos",
        ("videos",),
        "SELECT 0 AS usable WHERE NOT EXISTS (SELECT 1 FROM videos WHERE status = 'ok')",
    ),
    # clips
    unique("clip ids are unique", "clips", "clip_id"),
    held_by(
        "a clip's video is in the videos manifest", "clips", "videos", "video_id", "clip_id, video_id", "status = 'ok'"
    ),
    Link(
        "a clip ends within its video",
        "clips",
        ("clips", "videos"),
        """SELECT clip_id, c.video_id, c.start_s, c.end_s, v.duration_s FROM clips c JOIN videos v USING (video_id)
            WHERE v.status = 'ok' AND c.end_s > v.duration_s + 2 / v.fps""",
    ),
    Link(
        "a clip's frames are within its video",
        "clips",
        ("clips", "videos"),
        """SELECT clip_id, c.video_id, c.first_frame, c.last_frame, v.frames FROM clips c JOIN videos v USING (video_id)
            WHERE v.status = 'ok' AND c.last_frame >= v.frames""",
    ),
    Link(
        "a clip has the shape of its video",
        "clips",
        ("clips", "videos"),
        """SELECT clip_id, c.width, c.height, v.width AS video_width, v.height AS video_height
            FROM clips c JOIN videos v USING (video_id)
            WHERE v.status = 'ok' AND abs(ln((c.width * v.height) / (c.height * v.width))) > 0.05""",
    ),
    Link(
        "clips of a video do not overlap",
        "clips",
        ("clips",),
        """SELECT clip_id, video_id, first_frame, last_frame, before_last FROM (
              SELECT *, max(last_frame) OVER (PARTITION BY video_id ORDER BY first_frame, last_frame, clip_id
                                              ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before_last
              FROM clips)
            WHERE first_frame <= before_last""",
    ),
    Link(
        "members of a shard do not overlap",
        "clips",
        ("clips",),
        """SELECT clip_id, shard_uri, "offset", bytes, before_end FROM (
              SELECT *, max("offset" + bytes) OVER (PARTITION BY shard_uri ORDER BY "offset", clip_id
                                                    ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before_end
              FROM clips)
            WHERE "offset" < before_end""",
    ),
    # annotations
    unique("annotated clips are unique", "annotations", "clip_id"),
    held_by("an annotation's clip is in the clips manifest", "annotations", "clips", "clip_id", "clip_id"),
    Link(
        "every clip has a row of annotations",
        "annotations",
        ("annotations", "clips"),
        "SELECT clip_id, video_id FROM clips c WHERE NOT EXISTS (FROM annotations a WHERE a.clip_id = c.clip_id)",
    ),
    Link(
        "motion scores share one unit",
        "annotations",
        ("annotations",),
        """SELECT motion_unit, count(*) AS rows FROM annotations WHERE motion_score IS NOT NULL GROUP BY motion_unit
            QUALIFY count(*) OVER () > 1""",
    ),
    Link(
        "a caption names its model",
        "annotations",
        ("annotations",),
        "SELECT clip_id, caption_image_model, caption_video_model, caption_summary_model FROM annotations WHERE "
        + " OR ".join(
            f"(caption_{c} IS NOT NULL AND coalesce(caption_{c}_model, '') = '')" for c in ("image", "video", "summary")
        ),
    ),
    Link(
        "a motion score has a unit, and flow maps a score",
        "annotations",
        ("annotations",),
        """SELECT clip_id, motion_score, motion_unit, flow_uri FROM annotations
            WHERE (motion_score IS NOT NULL AND coalesce(motion_unit, '') = '')
               OR (flow_uri IS NOT NULL AND motion_score IS NULL)""",
    ),
    _measured_throughout("watermark", "watermark"),
    _measured_throughout("nsfw", "nsfw"),
    _measured_throughout("an embedding", "embedding_uri"),
    _measured_throughout("flow", "flow_uri"),
    # selection
    Link(
        "thresholds are JSON",
        "selection",
        ("selection",),
        "SELECT DISTINCT thresholds FROM selection WHERE NOT json_valid(thresholds)",  # one long text for all rows
    ),
    unique("a clip is decided on once", "selection", "clip_id"),
    Link(
        "selection and clips hold the same clips",
        "selection",
        ("selection", "clips"),
        """(SELECT clip_id, 'not in clips' AS fault FROM selection s
             WHERE NOT EXISTS (FROM clips c WHERE c.clip_id = s.clip_id))
            UNION ALL
            (SELECT clip_id, 'not in selection' FROM clips c
             WHERE NOT EXISTS (FROM selection s WHERE s.clip_id = c.clip_id))""",
    ),
    Link(
        "selection and clips name the same video",
        "selection",
        ("selection", "clips"),
        """SELECT s.clip_id, s.video_id, c.video_id AS of_clip FROM selection s JOIN clips c USING (clip_id)
            WHERE s.video_id <> c.video_id""",
    ),
    Link(
        "a kept clip has a split, a dropped one has none",
        "selection",
        ("selection",),
        "SELECT clip_id, keep, split FROM selection WHERE keep <> (split IS NOT NULL)",
    ),
    Link(
        "a dropped clip has reasons, a kept one has none",
        "selection",
        ("selection",),
        "SELECT clip_id, keep, reasons FROM selection WHERE keep <> (len(reasons) = 0)",
    ),
    Link(
        "an axis fails on the wrong side of its cut alone",
        "selection",
        ("selection",),
        f"SELECT clip_id, {_AXIS_COLUMNS} FROM selection WHERE {_WRONG_SIDE}",
    ),
    Link(
        "a missing axis has no value",
        "selection",
        ("selection",),
        f"SELECT clip_id, reasons, {_AXIS_VALUES} FROM selection WHERE {_NOT_MISSING}",
    ),
    Link(
        "the cut of an axis is one for all clips",
        "selection",
        ("selection",),
        " UNION ALL ".join(
            f"SELECT '{a}' AS axis, min({a}_cut) AS lowest, max({a}_cut) AS highest FROM selection "
            f"HAVING min({a}_cut) <> max({a}_cut) OR count({a}_cut) NOT IN (0, count(*))"
            for a in AXES
        ),
    ),
    Link(
        "a failed axis is among the reasons",
        "selection",
        ("selection",),
        f"SELECT clip_id, reasons FROM selection WHERE {_UNTOLD}",
    ),
    Link(
        "no video is in both splits",
        "selection",
        ("selection",),
        """SELECT video_id, count(*) AS clips FROM selection WHERE split IS NOT NULL GROUP BY video_id
            HAVING count(DISTINCT split) > 1""",
    ),
    Link(
        "near-duplicates are in one split",
        "selection",
        ("selection",),
        """SELECT "group", count(*) AS clips FROM selection WHERE split IS NOT NULL AND "group" IS NOT NULL
            GROUP BY "group" HAVING count(DISTINCT split) > 1""",
    ),
    Link(
        "a place among duplicates is a whole number within a group",
        "selection",
        ("selection",),
        """SELECT clip_id, "group", duplicate_value FROM selection
            WHERE duplicate_value > 0 AND ("group" IS NULL OR duplicate_value <> floor(duplicate_value))""",
    ),
    Link(
        "there are clips to train on",
        "selection",
        ("selection",),
        "SELECT 0 AS train WHERE NOT EXISTS (SELECT 1 FROM selection WHERE split = 'train')",
    ),
    Link(
        "there are held-out clips",
        "selection",
        ("selection",),
        "SELECT 0 AS held_out WHERE NOT EXISTS (SELECT 1 FROM selection WHERE split = 'held_out')",
        severity="warning",
    ),
    # samples
    unique("sample ids are unique", "samples", "sample_id"),
    Link(
        "a sample has its own tensors",
        "samples",
        ("samples",),
        "SELECT shard_uri, tensor_prefix, count(*) AS rows FROM samples GROUP BY ALL HAVING count(*) > 1",
    ),
    Link(
        "a sample says where its frames are",
        "samples",
        ("samples",),
        """SELECT sample_id, layout, shard_uri, clip_shard, sequence_frames, sequence_fps, start_s FROM samples
            WHERE coalesce(layout, 'window') NOT IN ('window', 'frames', 'clip')
                OR (layout IS DISTINCT FROM 'clip' AND shard_uri IS NULL)
                OR (layout = 'clip' AND
                    (clip_shard IS NULL OR clip_offset IS NULL OR clip_bytes IS NULL OR crop IS NULL))
                OR (layout IN ('frames', 'clip') AND (sequence_frames IS NULL OR start_s IS NULL
                    OR coalesce(sequence_fps, 0) <= 0))""",
    ),
    Link(
        "a sample's windows lie in its sequence",
        "samples",
        ("samples",),
        """SELECT sample_id, frames, first_frame, stride, sequence_frames, starts FROM samples
            WHERE layout IN ('frames', 'clip') AND NOT coalesce(stride >= 1 AND starts[1] = 0
                AND list_max(starts) < sequence_frames AND list_contains(starts, first_frame)
                AND first_frame + (frames - 1) * stride < sequence_frames, false)""",
    ),
    Link(
        "a sample's captions are three texts",
        "samples",
        ("samples",),
        """SELECT sample_id, captions FROM samples
            WHERE len(captions) NOT IN (0, 3) OR list_contains([c IS NULL for c in captions], true)""",
    ),
    Link(
        "a sample's clip is kept, in the same split",
        "samples",
        ("samples", "selection"),
        """SELECT sample_id, clip_id, s.split, x.split AS of_clip FROM samples s LEFT JOIN selection x USING (clip_id)
            WHERE s.elevation_deg IS NULL AND x.split IS DISTINCT FROM s.split""",
    ),
    Link(
        "a sample's orbit is rendered, in the same split",
        "samples",
        ("samples", "orbits"),
        """SELECT sample_id, clip_id, s.split, o.split AS of_orbit
            FROM samples s LEFT JOIN orbits o ON s.clip_id = o.orbit_id
            WHERE s.elevation_deg IS NOT NULL AND o.split IS DISTINCT FROM s.split""",
    ),
    # orbits
    unique("orbit ids are unique", "orbits", "orbit_id"),
    Link(
        "no object is in both splits",
        "orbits",
        ("orbits",),
        "SELECT object_id, count(*) AS orbits FROM orbits GROUP BY object_id HAVING count(DISTINCT split) > 1",
    ),
]
