"""What a stage trains on: its own samples, and those of other manifests by weight; held out stays held out."""

import pytest

from svdflow.common.errors import BadInputError, ConfigError
from svdflow.common.identity import identity
from svdflow.common.manifests import write_manifest
from svdflow.training.train.datasets import manifests_of, read_datasets, resolve_mix
from svdflow.training.train.draws import Plan
from svdflow.training.train.held_apart import ALIKE, SAME
from svdflow.training.train.settings import stage_settings


def sample(name, split="train", frames=16, **changes):
    return {
        "sample_id": f"{identity(sample=name)}-00", "clip_id": name, "split": split, "shard_uri": "files/md5/aa/bb",
        "tensor_prefix": name, "frames": min(frames, 8), "height": 64, "width": 64, "fps": 8.0, "layout": "frames",
        "first_frame": 0, "stride": 1, "sequence_frames": frames, "sequence_fps": 8.0, "start_s": 0.0, "starts": [0],
        "captions": ["a", "b", "c"],
    } | changes  # fmt: skip


@pytest.fixture
def manifests(tmp_path):
    """Clips with a held-out one and one that is too short; other clips; images."""
    sets = {
        "own": [sample("a"), sample("b"), sample("h", "held_out"), sample("short", frames=4)],
        "more": [sample("c"), sample("d", height=96), sample("g", "held_out")],
        "images": [sample(f"i{n}", frames=1) for n in range(3)],
    }
    paths = {name: tmp_path / f"{name}.parquet" for name in sets}
    for name, rows in sets.items():
        write_manifest("samples", rows, paths[name])
    return paths


def settings_for(paths, stage="video", **values):
    mix = [{"samples": str(paths["more"]), "weight": 1.0}, {"samples": str(paths["images"]), "weight": 2.0}]
    size = {"frames": 8, "height": None, "width": None, "short_frames": [1], "batch": 4, "processes": 1}
    return stage_settings(stage, size | {"mix": mix, "weight": 5.0} | values)


def test_a_stage_draws_from_all_manifests_by_weight_and_batches_hold_one_bucket(manifests):
    settings = settings_for(manifests)
    found = read_datasets(manifests["own"], "video", settings)
    assert manifests_of(manifests["own"], settings) == list(manifests.values())
    assert [row["clip_id"] for row in found.held_out] == ["h"]  # the stage's own alone
    assert found.weights == (5.0, 1.0, 2.0) and not found.left_out
    names = [row["clip_id"] for row in found.train]
    assert sorted(names) == ["a", "b", "c", "d", "i0", "i1", "i2", "short"]
    buckets = [(8 if row["sequence_frames"] >= 8 else 1, row["height"]) for row in found.train]
    plan = Plan(settings, list(zip(found.dataset, buckets, strict=True)), found.weights)
    drawn = [plan.micro_batch(step, 0, 0, 1) for step in range(2500)]
    assert all(len({buckets[draw.row] for draw in batch}) == 1 for batch in drawn)
    shares = [sum(found.dataset[d.row] == number for b in drawn for d in b) / 10_000 for number in range(3)]
    assert shares == pytest.approx([5 / 8, 1 / 8, 2 / 8], abs=0.015)


def test_samples_that_are_too_short_are_left_out_and_counted_over_all_manifests(manifests):
    settings = settings_for(manifests, short_frames=[4], mix=[{"samples": str(manifests["more"])}])
    assert not read_datasets(manifests["own"], "video", settings).left_out
    settings = settings_for(manifests, short_frames=[], mix=[{"samples": str(manifests["more"])}])
    assert read_datasets(manifests["own"], "video", settings).left_out == {"fewer than 8 frames": 1}


def reads(tmp_path, *sets):
    """The clips trained on, the clips held out, and what was left out, of a stage's own rows and those mixed in."""
    paths = [tmp_path / f"set {number}.parquet" for number in range(len(sets))]
    for path, rows in zip(paths, sets, strict=True):
        write_manifest("samples", rows, path)
    mix = [{"samples": str(path)} for path in paths[1:]]
    found = read_datasets(paths[0], "video", settings_for({"more": "", "images": ""}, mix=mix))
    assert len(found.dataset) == len(found.train)
    train, held_out = ([row["clip_id"] for row in rows] for rows in (found.train, found.held_out))
    return sorted(train), sorted(held_out), dict(found.left_out)


@pytest.mark.parametrize("turned", [False, True], ids=["own holds out", "mixed holds out"])
def test_what_one_dataset_holds_out_no_other_is_trained_on_by_clip_or_by_source_video(tmp_path, turned):
    holds = [sample("a", source_id="A"), sample("h", "held_out", source_id="H"), sample("old", "held_out")]
    trains = [
        sample("h"),  # of before schema 4: the clip is all that is known
        sample("h2", source_id="H"), sample("h3", source_id="H"), sample("old", source_id="O"),
        sample("b", source_id="B"), sample("c"),
    ]  # fmt: skip
    train, held_out, left_out = reads(tmp_path, *((trains, holds) if turned else (holds, trains)))
    assert train == ["a", "b", "c"]
    assert held_out == ([] if turned else ["h", "old"])
    assert left_out == {SAME: 4}


def test_near_duplicates_that_either_dataset_knows_of_hold_apart_what_they_tie_to_a_held_out_video(tmp_path):
    holds = [
        sample("h", "held_out", source_id="H", group="g", group_sources=["H", "P"]),  # a clip of P is like it
        sample("i", "held_out", source_id="I"),
        sample("a", source_id="A"),
    ]
    trains = [
        sample("p", source_id="P"),
        sample("b1", source_id="B", group="k", group_sources=["B", "I"]),  # like a clip of I that was dropped here
        sample("b2", source_id="B", group="k"),  # the group's sources stand on one of its samples
        sample("b3", source_id="B"),
        sample("c", source_id="C", group="m", group_sources=["C", "D"]),
    ]
    assert reads(tmp_path, holds, trains) == (["a", "b3", "c"], ["h", "i"], {ALIKE: 3})
    assert reads(tmp_path, trains, holds) == (["a", "b3", "c"], [], {ALIKE: 3})


def test_within_one_dataset_the_filter_has_the_last_word_on_near_duplicates(tmp_path):
    """It bars clips that are like a kept held-out one, and lets the others of a video be."""
    own = [
        sample("t", source_id="T", group="g", group_sources=["H", "T"]),
        sample("h", "held_out", source_id="H"),
        sample("both", source_id="H"),  # no selection of ours has this
    ]
    assert reads(tmp_path, own) == (["t"], ["h"], {SAME: 1})


def test_a_dataset_of_which_nothing_is_left_is_refused_with_the_reason(tmp_path):
    held = [sample("a", source_id="A"), sample("h", "held_out", source_id="H")]
    with pytest.raises(BadInputError, match=r"set 1.parquet: holds no training sample .*; 2 show what a dataset"):
        reads(tmp_path, held, [sample("x", source_id="H"), sample("y", source_id="H")])
    with pytest.raises(BadInputError, match=r"set 0.parquet: holds no training sample .*; 1 show what a dataset"):
        reads(tmp_path, [sample("x", source_id="H")], held)


def test_a_manifest_that_gives_nothing_is_refused_by_name(manifests):
    images = [{"samples": str(manifests["images"])}]
    with pytest.raises(BadInputError, match="images.parquet: no sample holds 8 frames, the longest holds 1"):
        read_datasets(manifests["own"], "video", settings_for(manifests, mix=images, short_frames=[]))
    with pytest.raises(BadInputError, match="absent"):
        read_datasets(manifests["own"], "video", settings_for(manifests, mix=[{"samples": "absent"}]))
    with pytest.raises(ConfigError, match=r"mix.0.weight"):
        settings_for(manifests, mix=[{"samples": "x", "weight": 0}])


def test_the_image_stage_takes_frames_of_clips_and_pictures_alike(manifests):
    found = read_datasets(manifests["own"], "image", settings_for(manifests, "image", frames=None, short_frames=[]))
    assert len(found.train) == 8 and not found.left_out


def test_a_worker_prepares_the_mix_that_its_job_names(tmp_path, monkeypatch):
    """From the stage's call to the sources of a worker, without the processes between."""
    from svdflow.common.manifests import read_rows
    from svdflow.training.train import train
    from svdflow.training.train.job import Job
    from svdflow.training.train.model import prepare_model
    from tests.training_runs import make_autoencoder, make_samples, settings_for

    root, own = make_samples(tmp_path / "own")
    rows = [row | {"split": "train", "clip_id": f"m{n}"} for n, row in enumerate(read_rows("samples", own))]
    write_manifest("samples", rows[:2], tmp_path / "more.parquet")
    monkeypatch.chdir(tmp_path)
    autoencoder = make_autoencoder(tmp_path / "vae")
    keys = []

    def prepare(job, folder, *_):
        keys.append(folder.name)
        path = folder / "job.json"
        job.write(path)
        prepared.append(prepare_model(Job.read(path)))
        raise BadInputError("far enough")

    prepared: list = []
    monkeypatch.setattr(train, "launch", prepare)
    for weight in (1.0, 1.0, 3.0):
        settings = settings_for(autoencoder, mix=[{"samples": "more.parquet", "weight": weight}])
        with pytest.raises(BadInputError, match="far enough"):
            train.train_stage("image", own, None, tmp_path / "out", root, settings, {})
    write_manifest("samples", rows[2:4], tmp_path / "more.parquet")
    with pytest.raises(BadInputError, match="far enough"):
        train.train_stage("image", own, None, tmp_path / "out", root, settings, {})
    assert keys[0] == keys[1] and len(set(keys)) == 3, "weights and content of the mix name the result"
    _, source, held_out, plan = prepared[2]
    assert len(source.rows) == 8 and len(held_out.rows) == 2
    drawn = [source.rows[plan.draw(i).row]["clip_id"].startswith("m") for i in range(4000)]
    assert sum(drawn) / 4000 == pytest.approx(0.75, abs=0.03)
    assert source.latents(plan.draw(0), single_frame=True).shape == (1, 4, 8, 8)


def test_versions_of_the_mix_are_found_among_the_samples_of_the_pipeline_and_pictures_join_where_they_can(
    manifests, tmp_path
):
    write_manifest("samples", [], tmp_path / "none.parquet")
    manifests["more"].rename(tmp_path / "more@v1.0.0.parquet")
    asked = {"mix": [{"dataset": "more@v1.0.0", "weight": 3.0}, {"samples": str(manifests["images"])}]}

    def resolved(stage="video", **values):
        settings = settings_for(manifests, stage, **asked, **values)
        return [(part.samples, part.weight) for part in resolve_mix(stage, settings, tmp_path, manifests["images"]).mix]

    own = [(str(tmp_path / "more@v1.0.0.parquet"), 3.0), (str(manifests["images"]), 1.0)]
    pictures = (str(manifests["images"]), 2.0)
    assert resolved(images=2.0) == [*own, pictures]  # single frames are among the lengths of the windows
    assert resolved(images=2.0, short_frames=[4]) == own
    assert resolved("image", images=2.0, short_frames=[]) == [*own, pictures]
    settings = settings_for(manifests, **asked)
    assert len(resolve_mix("video", settings, tmp_path, tmp_path / "none.parquet").mix) == 2
    with pytest.raises(BadInputError, match=r"train_video.mix.0.dataset: samples of more@v1.0.0 are not at hand"):
        resolve_mix("video", settings)


def test_motion_scores_of_a_mix_are_in_one_unit(tmp_path):
    small = {"motion_score": 1.0, "motion_unit": "px/0.5s@short128"}
    large = {"motion_score": 2.0, "motion_unit": "px/0.5s@short256"}
    paths = [tmp_path / "one.parquet", tmp_path / "two.parquet"]
    settings = settings_for({"more": "", "images": ""}, mix=[{"samples": str(paths[1])}])
    write_manifest("samples", [sample("a", **small), sample("b")], paths[0])
    write_manifest("samples", [sample("c", **small), sample("d", **large | {"motion_score": None})], paths[1])
    assert read_datasets(paths[0], "video", settings).motion_unit == "px/0.5s@short128"
    write_manifest("samples", [sample("c", **large)], paths[1])
    with pytest.raises(BadInputError, match="px/0.5s@short128 and px/0.5s@short256, of which no one map"):
        read_datasets(paths[0], "video", settings)


def test_captions_of_another_text_encoder_than_the_model_attends_to_are_refused(tmp_path):
    from svdflow.training.train.job import Job
    from svdflow.training.train.model import prepare_model
    from tests.training_runs import UNET, make_autoencoder, make_samples, settings_for

    root, samples = make_samples(tmp_path)
    settings = settings_for(make_autoencoder(tmp_path / "vae"), unet=UNET | {"cross_attention_dim": 32})
    job = Job("image", settings, samples, root.location, None, *[tmp_path / "x"] * 5, {})
    with pytest.raises(BadInputError, match=r"text encoder's states are 16 wide, the model takes 32.*encode.text_enc"):
        prepare_model(job)
