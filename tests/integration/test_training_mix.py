"""A stage on a mix of dataset versions and pictures: from the command's settings to what the training job is given."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from svdflow.common.errors import BadInputError, ConfigError
from svdflow.common.manifests import read_rows, write_manifest
from svdflow.common.video import encode_mp4
from svdflow.curation.version.component import checkout
from svdflow.curation.version.settings import VersionSettings
from svdflow.pipelines.stage_runs import dataset_to_train_on
from svdflow.training.encode.component import encode, encode_images, encode_mix
from svdflow.training.train import train as train_module
from svdflow.training.train.component import train
from svdflow.training.train.datasets import read_datasets
from svdflow.training.train.held_apart import ALIKE, SAME
from svdflow.training.train.settings import load_stage_settings
from tests.dataset_bench import Bench
from tests.dataset_manifests import make_manifests


def movie(seed: int):
    """16 frames that move, another clip for each place."""

    def make(video: int, clip: int) -> bytes:
        still = np.random.default_rng([seed, video, clip]).integers(0, 255, (6, 8, 3), dtype=np.uint8)
        still = np.kron(still, np.ones((8, 8, 1), np.uint8))
        return encode_mp4(np.stack([np.roll(still, shift, 1) for shift in range(16)]), 8)

    return make


@pytest.fixture
def registered(bench, tmp_path):
    """Versions of two datasets in one registry, a folder of two pictures, and the settings that name them."""
    for name, seed, prefix in (("demo", 1, ""), ("more", 2, "m")):
        bench.settings = VersionSettings(name=name, remote=bench.settings.remote)
        folder = bench.directory / f"manifests of {name}"
        bench.register_these(make_manifests(bench.root, folder, 2, 4, movie=movie(seed), prefix=prefix))
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for index in range(2):
        Image.fromarray(np.full((80, 96, 3), 90 * index, np.uint8)).save(pictures / f"{index}.png")
    mix = [{"dataset": "more", "weight": 2.0}]
    asked = {"version.registry": str(bench.registry), "train_image.mix": mix, "encode_images.source": str(pictures)}
    return bench, tmp_path / "work", asked


def test_versions_and_pictures_of_the_mix_are_encoded_and_reach_the_job_with_their_weights(registered, monkeypatch):
    bench, workdir, asked = registered
    workdir.mkdir()
    tag, overrides = dataset_to_train_on(workdir, "demo", "test", asked | {"train_image.images": 3.0}, ("image",))
    assert tag == "demo@v1.0.0" and overrides["version.mix"] == ["more@v1.0.0"]
    assert overrides["train_image.mix"] == [{"dataset": "more@v1.0.0", "weight": 2.0}]
    monkeypatch.setenv("SVDFLOW_DATA_ROOT", str(workdir / "data"))
    common = {"workdir": str(workdir), "run_id": "run", "profile": "test", "overrides": overrides}
    names = (
        "videos",
        "clips",
        "annotations",
        "selection",
        "dataset",
        "mixed",
        "samples",
        "further",
        "pictures",
        "model",
    )
    artifacts = {name: SimpleNamespace(path=str(workdir / name)) for name in names}
    taken = {name: artifacts[name] for name in names[:6]}
    checkout.python_func(version=tag, **taken, **common)
    encode.python_func(**{name: artifacts[name] for name in ("clips", "annotations", "selection", "samples")}, **common)
    encode_mix.python_func(mixed=artifacts["mixed"], samples=artifacts["further"], **common)
    encode_images.python_func(samples=artifacts["pictures"], **common)
    assert len(read_rows("samples", workdir / "further" / "more@v1.0.0.parquet")) == 4
    assert [json.loads((workdir / name / "mix.json").read_text()) for name in ("mixed", "further")] == [
        ["more@v1.0.0"]
    ] * 2
    shown = json.loads((workdir / "steps" / "run" / "encode_mix.json").read_text())
    assert shown["summary"]["encode_mix"]["more@v1.0.0"]["train_samples"] == 2

    jobs = []
    monkeypatch.setattr(
        train_module, "launch", lambda job, folder, key: jobs.append(job) or (_ for _ in ()).throw(KeyError)
    )
    with pytest.raises(KeyError):
        train.python_func(stage="image", samples=artifacts["samples"], dataset=artifacts["dataset"],
                          mixed=artifacts["further"], pictures=artifacts["pictures"], model=artifacts["model"],
                          **common)  # fmt: skip
    (job,) = jobs
    assert [part.weight for part in job.settings.mix] == [2.0, 3.0]
    assert job.card["mixed"] == {"more@v1.0.0": 2.0} and job.card["dataset"]["tag"] == "demo@v1.0.0"
    found = read_datasets(job.samples, "image", job.settings)
    assert found.weights == (1.0, 2.0, 3.0)
    assert [found.dataset.count(number) for number in range(3)] == [2, 2, 2]
    assert {(row["height"], row["width"]) for row in found.train} == {(64, 64)}  # pictures at the size of the clips
    assert {row["clip_id"][0] for row in found.held_out} == {"c"}


def test_a_mix_that_cannot_be_is_refused_before_anything_starts(registered):
    _, workdir, asked = registered
    for change, kind, error, says in (
        ({"train_image.mix": [{"dataset": "other"}]}, "image", BadInputError, r"train_image.mix.0.dataset: .*other"),
        ({"train_image.mix": [{"samples": "no.parquet"}]}, "image", BadInputError, r"mix.0.samples: no.parquet: there"),
        ({"train_image.mix": [{"weight": 1}]}, "image", ConfigError, r"train_image.mix.0: .*neither"),
        ({"train_image.mix": [{"dataset": "a b"}]}, "image", ConfigError, r"train_image.mix.0.dataset"),
        ({"encode_images.source": "/nowhere"}, "image", BadInputError, r"encode_images.source: /nowhere"),
        ({}, "video", ConfigError, r"encode_images.source: .*train_video.short_frames"),
    ):
        with pytest.raises(error, match=says):
            dataset_to_train_on(workdir, "demo", "test", asked | change, [kind])
    assert not workdir.exists()


def test_datasets_of_two_registries_that_share_videos_are_held_apart_by_video(bench, tmp_path, monkeypatch):
    """Each was split by itself: what one holds out, the other was to train on."""
    other = Bench(tmp_path / "other")
    other.settings = VersionSettings(name="more", remote=other.settings.remote)
    bench.register_these(make_manifests(bench.root, bench.directory / "manifests", 3, 6, movie=movie(1)))
    theirs = make_manifests(other.root, other.directory / "manifests", 4, 7, movie=movie(2), prefix="m")
    # theirs hold out video1; they train on a clip of video0, and another of it, dropped, is like a clip of mvideo2
    same = {"mvideo0": "video1", "mvideo3": "video0"}
    for kind in ("videos", "clips", "selection"):
        rows = [row | {"video_id": same.get(row["video_id"], row["video_id"])} for row in read_rows(kind, theirs[kind])]
        alike = {"group": "mclip020"}
        if kind == "selection":
            rows = [row | (alike if row["clip_id"] in ("mclip020", "mclip031") else {}) for row in rows]
        write_manifest(kind, rows, theirs[kind])
    other.register_these(theirs)

    monkeypatch.setenv("SVDFLOW_DATA_ROOT", str(tmp_path / "data"))
    samples = []
    for each, name in ((bench, "demo"), (other, "more")):
        workdir = tmp_path / name
        overrides = {"version.registry": str(each.registry)}
        common = {"workdir": str(workdir), "run_id": "run", "profile": "test", "overrides": overrides}
        names = ("videos", "clips", "annotations", "selection", "dataset", "mixed", "samples")
        artifacts = {kind: SimpleNamespace(path=str(workdir / kind)) for kind in names}
        checkout.python_func(version=name, **{kind: artifacts[kind] for kind in names[:6]}, **common)
        given = {kind: artifacts[kind] for kind in ("clips", "annotations", "selection", "samples")}
        encode.python_func(**given, **common)
        samples.append(workdir / "samples")
    assert {row["source_id"] for row in read_rows("samples", samples[1])} == {"mvideo1", "mvideo2", *same.values()}

    for own, mixed, held_out in ((*samples, "video0"), (*samples[::-1], "video1")):
        settings = load_stage_settings("image", "test", {"train_image.mix": [{"samples": str(mixed)}]})
        found = read_datasets(own, "image", settings)
        assert {row["source_id"] for row in found.held_out} == {held_out}
        assert sorted(row["clip_id"] for row in found.train) == [
            "clip020",
            "clip021",
            "mclip010",
            "mclip011",
            "mclip021",
        ]
        assert found.left_out == {SAME: 3, ALIKE: 1}
