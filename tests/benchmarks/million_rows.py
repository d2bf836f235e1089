"""Manifests of very many clips, made by DuckDB: `python million_rows.py DIRECTORY CLIPS SHARE_BROKEN`."""

import sys
from pathlib import Path

import duckdb
import pyarrow.parquet as pq

from svdflow.common.manifests import AXES, SCHEMAS


def object_uri(number: str) -> str:
    return f"'files/md5/ab/' || lpad(lower(to_hex({number})), 30, '0')"


def three(low: float, span: float) -> str:
    return "[" + ", ".join([f"{low} + {span} * random()"] * 3) + "]"


def queries(clips: int, broken: float) -> dict[str, str]:
    """SQL by kind. The broken share of the clips has no frame rate, and of the annotations a negative motion."""
    name = "'v' || lpad(i::VARCHAR, 9, '0') || '.mp4'"
    source = f"{{'name': {name}, 'uri': 's3://footage/' || i, 'licence': 'CC0-1.0', 'metadata': NULL}}"
    evidence = '{"opened": {"detector": "content", "score": 31.2}, "closed": {"detector": "fade", "score": 0.8}}'
    annotators = '{"motion": "farneback@2", "text": "craft@1", "aesthetic": "laion@1"}'
    axes = ", ".join(f"random() AS {a}_value, NULL AS {a}_cut, false AS {a}_failed" for a in AXES if a != "duplicate")
    return {
        "videos": f"""
            SELECT sha256(i::VARCHAR) AS video_id, {object_uri("i")} AS uri, {name} AS name, [{source}] AS sources,
                1000000 + i AS bytes, 'mp4' AS container, 'h264' AS codec, 100.0 AS duration_s, 24.0 AS fps,
                1280 AS width, 720 AS height, 2400 AS frames, 0 AS rotation, false AS variable_fps,
                1.0 AS pixel_aspect, false AS interlaced, 'bt709' AS color_transfer, [0, 0, 0, 0] AS letterbox,
                true AS audio, 'CC0-1.0' AS licence, 'footage' AS source, NULL AS description, 'ok' AS status,
                NULL AS error
            FROM range({clips // 20}) t(i)""",
        "clips": f"""
            SELECT md5(i::VARCHAR) AS clip_id, sha256((i // 20)::VARCHAR) AS video_id, (i % 20) * 5.0 AS start_s,
                (i % 20) * 5.0 + 4 AS end_s, (i % 20) * 120 AS first_frame, (i % 20) * 120 + 95 AS last_frame,
                '{evidence}' AS cut_evidence, {object_uri("i // 100")} AS shard_uri, 'c' || i || '.mp4' AS member,
                512 + (i % 100) * 10240 AS "offset", 9000 AS bytes, 96 AS frames,
                CASE WHEN random() < {broken} THEN 0.0 ELSE 24.0 END AS fps, 1280 AS width, 720 AS height
            FROM range({clips}) t(i)""",
        "annotations": f"""
            SELECT *, [abs(motion_score) * 0.1, 0.0, 0.0] AS camera_motion FROM (
                SELECT md5(i::VARCHAR) AS clip_id,
                    CASE WHEN random() < {broken} THEN -1.0 ELSE 20 * random() END AS motion_score,
                    'px/0.5s@short128' AS motion_unit, {object_uri("i")} AS flow_uri, {three(0, 0.1)} AS text_area,
                    {three(3, 4)} AS aesthetic, {three(0, 0.5)} AS watermark, {three(0, 0.2)} AS nsfw,
                    {three(0.1, 0.3)} AS similarity_image, {three(0.1, 0.3)} AS similarity_video,
                    {three(0.1, 0.3)} AS similarity_summary, 'a person walks past a red door, ' || i AS caption_image,
                    'i@1' AS caption_image_model, 'the camera follows a person along a street, ' || i AS caption_video,
                    'v@1' AS caption_video_model, 'someone walks by, ' || i AS caption_summary,
                    's@1' AS caption_summary_model, {object_uri("i // 500")} AS embedding_uri,
                    '{annotators}' AS annotators
                FROM range({clips}) t(i))""",
        "selection": f"""
            SELECT md5(i::VARCHAR) AS clip_id, sha256((i // 20)::VARCHAR) AS video_id, true AS keep,
                CASE WHEN (i // 20) % 20 = 0 THEN 'held_out' ELSE 'train' END AS split, NULL AS "group",
                []::VARCHAR[] AS reasons, {axes}, 0.0 AS duplicate_value, NULL AS duplicate_cut,
                false AS duplicate_failed, '{{"asked": "' || repeat('x', 1500) || '"}}' AS thresholds
            FROM range({clips}) t(i)""",
    }


def main(directory: Path, clips: int, broken: float) -> None:
    for kind, query in queries(clips, broken).items():
        schema = SCHEMAS[kind]
        with duckdb.connect() as connection:
            table = connection.sql(f"FROM ({query}) ORDER BY 1").to_arrow_table().select(schema.names)
            writer = pq.ParquetWriter(directory / f"{kind}.parquet", schema, compression="zstd")
            with writer:
                for batch in table.to_batches(max_chunksize=1 << 18):  # the cast of all rows at once takes gigabytes
                    writer.write_batch(batch.cast(schema), row_group_size=1 << 20)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
