"""Model adapters on tiny models made here with save_pretrained, and loaded through the production path."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from model_views import LOCAL, SMALL, assert_neighbours_do_not_matter, chosen, clips_of, texture, view_of

from svdflow.common.errors import BadInputError, ConfigError
from svdflow.common.pretrained import weights_file
from svdflow.curation.annotate.annotator import load
from svdflow.curation.annotate.convert_weights import RELEASES, Release, convert, main
from tests.tiny_clip import save_tiny_clip


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


def test_clip_gives_what_transformers_itself_gives(tiny_clip: Path) -> None:
    import torch
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

    settings = LOCAL.model_copy(update={"similarity": "clip", "embedding": "clip", "clip_model": str(tiny_clip)})
    by_axis = {a.axis: a for a in load(settings)}
    pictures = [texture(48, 64, n) for n in range(3)]
    view = view_of(pictures, caption_image="red disc moves", caption_video=None, caption_summary="blue disc " * 20)
    found = by_axis["similarity"].annotate(view)
    model, tokenizer = CLIPModel.from_pretrained(tiny_clip).eval(), AutoTokenizer.from_pretrained(tiny_clip)
    pixels = AutoImageProcessor.from_pretrained(tiny_clip, use_fast=False)(images=pictures, return_tensors="pt")[
        "pixel_values"
    ]
    with torch.inference_mode():
        out = model(
            pixel_values=pixels,
            **{k: v for k, v in tokenizer(["red disc moves"], return_tensors="pt").items() if k != "token_type_ids"},
        )
    expected = (out.text_embeds @ out.image_embeds.T)[0].tolist()
    assert found["similarity_image"] == pytest.approx(expected, abs=1e-5)
    assert (
        found["similarity_video"] is None and len(found["similarity_summary"]) == 3
    )  # too long for the model: cut, not refused
    assert by_axis["embedding"].embeddings([view])[0] == pytest.approx(out.image_embeds.numpy(), abs=1e-5)


def test_the_aesthetic_head_is_its_linear_layers(tiny_clip: Path, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    layers = [
        (rng.normal(size=(8, 16)).astype(np.float32), rng.normal(size=8).astype(np.float32)),
        (rng.normal(size=(1, 8)).astype(np.float32), rng.normal(size=1).astype(np.float32)),
    ]
    save_file(
        {
            f"layers.{10 * n + 2}.{part}": a
            for n, pair in enumerate(layers)
            for part, a in zip(("weight", "bias"), pair, strict=True)
        },
        tmp_path / "head.safetensors",
    )
    settings = LOCAL.model_copy(
        update={
            "aesthetic": "clip-aesthetic-head",
            "embedding": "clip",
            "clip_model": str(tiny_clip),
            "aesthetic_head": str(tmp_path / "head.safetensors"),
        }
    )
    by_axis = {a.axis: a for a in load(settings)}
    view = view_of([texture(48, 64, n) for n in range(3)])
    (x,) = by_axis["embedding"].embeddings([view])
    expected = (x @ layers[0][0].T + layers[0][1]) @ layers[1][0].T + layers[1][1]
    assert by_axis["aesthetic"].annotate(view)["aesthetic"] == pytest.approx(expected[:, 0].tolist(), abs=1e-4)


def test_other_weights_are_another_identity(tiny_clip: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(tiny_clip, tmp_path / "other"))
    (other / "added.txt").write_text("changed")
    keys = []
    for directory in (tiny_clip, other):
        settings = LOCAL.model_copy(update={"similarity": "clip", "clip_model": str(directory)})
        keys.append(load(settings)[-1].key("0" * 64, None, {}))
    assert keys[0] != keys[1]
    with pytest.raises(BadInputError, match="cannot be loaded"):
        chosen("embedding", embedding="clip", clip_model=str(tmp_path)).annotate(view_of([texture(48, 64)] * 3))


def test_clips_figures_do_not_depend_on_the_clips_beside_them(tiny_clip: Path, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"weight": np.ones((1, 16), np.float32), "bias": np.zeros(1, np.float32)}, tmp_path / "head.safetensors")
    changed = {
        "embedding": "clip",
        "similarity": "clip",
        "aesthetic": "clip-aesthetic-head",
        "aesthetic_head": str(tmp_path / "head.safetensors"),
        "clip_model": str(tiny_clip),
        "unit_clips": 5,
    }
    for axis in ("embedding", "similarity", "aesthetic"):
        alone = assert_neighbours_do_not_matter(chosen(axis, **changed), clips_of(5), 5)
        assert len({str(found) for found in alone}) == 5


@pytest.fixture(scope="module")
def tiny_classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("vit")
    labels = {0: "clean", 1: "Watermark", 2: "logo"}
    config = ViTConfig(
        **SMALL, image_size=32, patch_size=16, id2label=labels, label2id={v: k for k, v in labels.items()}
    )
    ViTForImageClassification(config).save_pretrained(directory)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(directory)
    return directory


def test_a_watermark_score_is_the_labels_probability(tiny_classifier: Path) -> None:
    import torch
    from transformers import AutoImageProcessor, ViTForImageClassification

    changed = {"watermark": "transformers-classifier", "watermark_model": str(tiny_classifier), "unit_clips": 3}
    annotator, views = chosen("watermark", **changed), clips_of(3)
    found = assert_neighbours_do_not_matter(annotator, views, 3)
    processor = AutoImageProcessor.from_pretrained(tiny_classifier, use_fast=False)
    with torch.inference_mode():
        logits = ViTForImageClassification.from_pretrained(tiny_classifier)(
            **processor(images=views[0].pictures(), return_tensors="pt")
        ).logits
    assert found[0]["watermark"] == pytest.approx(logits.softmax(-1)[:, 1].tolist(), abs=1e-5)
    other = chosen("watermark", **changed, watermark_label="logo")
    assert other.identity() != annotator.identity()
    with pytest.raises(BadInputError, match=r"no label 'nsfw'; it has \['Watermark', 'clean', 'logo'\]"):
        chosen("nsfw", nsfw="transformers-classifier", nsfw_model=str(tiny_classifier)).annotate(views[0])
    with pytest.raises(ConfigError, match="annotate.nsfw_model"):
        load(LOCAL.model_copy(update={"nsfw": "transformers-classifier"}))


@pytest.mark.parametrize(
    "model",
    [
        "",
        "ViT-L-14",
        "ViT-L-14/openai",
        "ViT-L-14/absent.safetensors",
        "ViT-L-14/{}/w.pt",
        "hf-hub:a/b/{}/w.safetensors",
    ],
)
def test_open_clip_reads_weights_from_a_safetensors_file_and_from_nowhere_else(model: str, tmp_path: Path) -> None:
    for name in ("w.pt", "w.safetensors"):
        (tmp_path / name).write_bytes(b"weights")
    model = model.format(tmp_path)
    with pytest.raises(ConfigError, match=r"annotate.coca_model: .* is not ARCHITECTURE/FILE.safetensors"):
        chosen("caption_image", caption_image="coca", coca_model=model)
    with pytest.raises(ConfigError, match="annotate.clip_model"):
        chosen("embedding", embedding="clip", clip_model=f"open_clip:{model}").identity()


def test_open_clip_models_ask_for_their_package_when_it_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"weights")
    model = f"ViT-L-14/{tmp_path}/w.safetensors"
    with pytest.raises(BadInputError, match="open_clip_torch"):
        chosen("caption_image", caption_image="coca", coca_model=model, prefer_description=False).annotate(
            clips_of(1)[0]
        )
    embedding = chosen("embedding", embedding="clip", clip_model=f"open_clip:{model}")
    with pytest.raises(BadInputError, match="open_clip_torch"):
        embedding.annotate(clips_of(1)[0])
    before = embedding.identity()
    (tmp_path / "again").mkdir()
    shutil.copy(tmp_path / "w.safetensors", tmp_path / "again")
    moved = f"open_clip:ViT-L-14/{tmp_path}/again/w.safetensors"
    assert chosen("embedding", embedding="clip", clip_model=moved).identity() == before, (
        "named by content, not by place"
    )
    (tmp_path / "again" / "w.safetensors").write_bytes(b"others")
    weights_file.cache_clear()
    assert chosen("embedding", embedding="clip", clip_model=moved).identity() != before


# weights in pickles


def laion_like(path: Path) -> dict:
    import torch

    torch.manual_seed(0)
    state = {name: torch.randn(shape) for name, shape in RELEASES["laion-aesthetic"].shapes.items()}
    torch.save(state, path)
    return state


def test_a_pinned_pickle_becomes_safetensors_that_score_as_the_network_would(tmp_path: Path, tiny_clip: Path) -> None:
    import torch
    from safetensors.torch import load_file

    from svdflow.common.identity import file_sha256
    from svdflow.curation.annotate.clip import ClipAestheticHead

    state = laion_like(tmp_path / "head.pth")
    release = Release(file_sha256(tmp_path / "head.pth"), "head.pth", RELEASES["laion-aesthetic"].shapes)
    convert(release, tmp_path / "head.pth", tmp_path / "out" / "head.safetensors")
    kept = load_file(tmp_path / "out" / "head.safetensors")
    assert kept.keys() == state.keys() and all(torch.equal(kept[name], state[name]) for name in state)
    network = torch.nn.Sequential(
        torch.nn.Linear(768, 1024),
        torch.nn.Dropout(0.2),
        torch.nn.Linear(1024, 128),
        torch.nn.Dropout(0.2),
        torch.nn.Linear(128, 64),
        torch.nn.Dropout(0.1),
        torch.nn.Linear(64, 16),
        torch.nn.Linear(16, 1),
    ).eval()
    network.load_state_dict({name.removeprefix("layers."): value for name, value in state.items()})
    x = torch.randn(3, 768)
    head = chosen(
        "aesthetic",
        aesthetic="clip-aesthetic-head",
        aesthetic_head=str(tmp_path / "out" / "head.safetensors"),
        clip_model=str(tiny_clip),
    )
    assert isinstance(head, ClipAestheticHead)
    with torch.inference_mode():
        assert head._score(x.numpy().astype(np.float64)) == pytest.approx(network(x)[:, 0].tolist(), rel=1e-4, abs=1e-3)


def test_another_file_and_a_pickle_that_does_things_are_not_read(tmp_path: Path, capsys) -> None:
    import pickle

    from svdflow.common.identity import file_sha256

    laion_like(tmp_path / "other.pth")
    assert main(["laion-aesthetic", str(tmp_path / "other.pth"), str(tmp_path / "out")]) == 1
    assert "not read" in capsys.readouterr().err

    class Harm:
        def __reduce__(self):
            return Path.touch, (tmp_path / "harmed",)

    (tmp_path / "harm.pth").write_bytes(pickle.dumps({"layers.0.weight": Harm()}))
    with pytest.raises(BadInputError, match="cannot be read as weights"):
        convert(Release(file_sha256(tmp_path / "harm.pth"), "", {}), tmp_path / "harm.pth", tmp_path / "out")
    assert not (tmp_path / "harmed").exists() and not (tmp_path / "out").exists()
    with pytest.raises(BadInputError, match="has no x"):
        convert(Release(file_sha256(tmp_path / "other.pth"), "", {"x": (1,)}), tmp_path / "other.pth", tmp_path / "out")


def test_any_other_pickle_needs_a_digest_that_somebody_vouches_for(tmp_path: Path, capsys) -> None:
    import torch
    from safetensors.torch import load_file

    from svdflow.common.identity import file_sha256

    weights, source, target = torch.randn(3, 2), tmp_path / "model.pt", tmp_path / "model.safetensors"
    torch.save({"epoch": 3, "state_dict": {"visual.proj": weights}}, source)
    assert main(["any", str(source), str(target)]) == 1 and "--sha256" in capsys.readouterr().err
    assert main(["any", str(source), str(target), "--sha256", "0" * 64]) == 1 and not target.exists()
    assert main(["any", str(source), str(target), "--sha256", file_sha256(source)]) == 0
    assert torch.equal(load_file(target)["visual.proj"], weights)
