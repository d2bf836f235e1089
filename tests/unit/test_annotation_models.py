"""Model adapters on tiny models made here with save_pretrained, and loaded through the production path."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from svdflow.common.config import load_settings
from svdflow.common.errors import BadInputError, ConfigError
from svdflow.common.video import VideoFrame
from svdflow.curation.annotate import captioners, clip
from svdflow.curation.annotate.annotator import ClipView, ModelAnnotator, load
from svdflow.curation.annotate.coca import greedy_tokens, words_of
from svdflow.curation.annotate.convert_weights import RELEASES, Release, convert, main
from svdflow.curation.annotate.generation import padded_length
from svdflow.curation.annotate.settings import AnnotateSettings

LOCAL = load_settings(AnnotateSettings, "annotate", "local")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "blue", "disc", "moves", "over", "sea"]
READ = ["input_ids", "attention_mask"]
SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def chosen(axis: str, **changed) -> ModelAnnotator:
    (found,) = (a for a in load(LOCAL.model_copy(update=changed)) if a.axis == axis)
    assert isinstance(found, ModelAnnotator)
    return found


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import BertTokenizerFast, CLIPConfig, CLIPImageProcessorPil, CLIPModel

    directory = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    text = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "vocab_size": 40,
        "max_position_embeddings": 12,
        "eos_token_id": 3,
        "bos_token_id": 2,
        "pad_token_id": 0,
    }
    vision = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "image_size": 32,
        "patch_size": 16,
    }
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).eval().save_pretrained(directory)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(directory)
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *"abcdefghij",
        *[f"##{c}" for c in "abcdefghij"],
        "red",
        "blue",
        "disc",
        "moves",
    ]
    BertTokenizerFast(vocab={word: n for n, word in enumerate(words)}).save_pretrained(directory)
    return directory


def view_of(pictures: list[np.ndarray], **columns: str | None) -> ClipView:
    frames = [VideoFrame(n, n / 2, picture) for n, picture in enumerate(pictures)]
    return ClipView("clip", key_frames=frames, spread_frames=pictures, columns=dict(columns))


def handed_on(annotator: ModelAnnotator, view: ClipView) -> ClipView:
    """As a clip comes to the process of the models: without its frames."""
    annotator.prepare(view)
    return view.without_frames()


def assert_neighbours_do_not_matter(annotator: ModelAnnotator, views: list[ClipView], unit: int) -> list:
    """Alone, in other company and in another place of the unit, a clip's result is the same to the bit."""
    alone = [annotator.measure([handed_on(annotator, view)])[0] for view in views]
    for order in (range(len(views)), reversed(range(len(views))), [1, 0], [len(views) - 1, 1]):
        company = list(order)[:unit]
        together = annotator.measure([handed_on(annotator, views[i]) for i in company])
        for i, found in zip(company, together, strict=True):
            assert_equal(found, alone[i])
    return alone


def assert_equal(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, dict):
            assert all(np.array_equal(value[k], other[name][k]) for k in value)
        else:
            assert value == other[name], name


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


def make_blip(tmp_path: Path, only_disc: bool) -> Path:
    import torch
    from transformers import (
        BertTokenizerFast,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessorPil,
        BlipProcessor,
    )

    torch.manual_seed(1)
    words = WORDS
    text = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "vocab_size": len(words),
        "encoder_hidden_size": 16,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "sep_token_id": 3,
        "pad_token_id": 0,
        "max_position_embeddings": 32,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "image_size": 32,
        "patch_size": 16,
    }
    network = BlipForConditionalGeneration(
        BlipConfig(text_config=text, vision_config=vision, projection_dim=8, image_text_hidden_size=8)
    )
    if only_disc:
        network.text_decoder.cls.predictions.bias.data[7] = 20.0  # it can say nothing but "disc"
    network.save_pretrained(tmp_path)
    tokenizer = BertTokenizerFast(vocab={word: n for n, word in enumerate(words)})
    BlipProcessor(BlipImageProcessorPil(size={"height": 32, "width": 32}), tokenizer).save_pretrained(tmp_path)
    return tmp_path


def test_any_image_to_text_model_captions_the_middle_frame(tmp_path: Path) -> None:
    make_blip(tmp_path, only_disc=True)
    settings = LOCAL.model_copy(
        update={"caption_image": "transformers-captioner", "captioner_model": str(tmp_path), "caption_tokens": 4}
    )
    annotator = next(a for a in load(settings) if a.axis == "caption_image")
    said = annotator.annotate(view_of([texture(48, 64)] * 3))
    assert set(said["caption_image"].split()) == {"disc"} and said["caption_image_model"].startswith(str(tmp_path))
    described = ClipView("clip", " two people dance ", view_of([texture(48, 64)] * 3).key_frames)
    assert annotator.annotate(described) == {
        "caption_image": "two people dance",
        "caption_image_model": "sidecar-description@1",
    }


def clips_of(count: int) -> list[ClipView]:
    return [
        view_of(
            [texture(48, 64, 3 * n + k) for k in range(3)], caption_image="red disc", caption_video="moves " * (n + 1)
        )
        for n in range(count)
    ]


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
def tiny_blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_blip(tmp_path_factory.mktemp("blip"), only_disc=False)


def test_captions_do_not_depend_on_the_clips_beside_them(tiny_blip: Path) -> None:
    annotator = chosen(
        "caption_image",
        caption_image="transformers-captioner",
        captioner_model=str(tiny_blip),
        caption_tokens=8,
        unit_clips=4,
        prefer_description=False,
    )
    assert_neighbours_do_not_matter(annotator, clips_of(4), 4)


def batches_seen(monkeypatch: pytest.MonkeyPatch, network) -> list[tuple[int, ...]]:
    """Shapes of the prompts that a network is given from now on."""
    shapes: list[tuple[int, ...]] = []
    real = network.generate

    def generate(**inputs):
        shapes.append(tuple(inputs["input_ids"].shape))
        return real(**inputs)

    monkeypatch.setattr(network, "generate", generate)
    return shapes


@given(tokens=st.integers(1, 20_000))
def test_a_prompt_is_always_filled_up_and_never_by_much(tokens: int) -> None:
    assert tokens < padded_length(tokens) <= max(tokens * 1.125 + 1, tokens + 64)
    assert padded_length(tokens) <= padded_length(tokens + 1)


def test_of_a_large_frame_captioners_take_along_what_they_read_and_no_more(tiny_blip: Path) -> None:
    """An 8K frame is 100 MB; sixteen clips of them would wait for the models, and sixteen more in every next unit."""
    large = [np.zeros((4320, 7680, 3), np.uint8)] * 3
    server = {"endpoint_url": "http://127.0.0.1:9/v1", "endpoint_model": "x"}
    for name, most in (("transformers-captioner", 512 * 911 * 3), ("endpoint", 100_000)):
        annotator = chosen(
            "caption_image", caption_image=name, captioner_model=str(tiny_blip), prefer_description=False, **server
        )
        assert 0 < handed_on(annotator, view_of(large)).bytes <= most
    spread = [np.zeros((224, 398, 3), np.uint8)] * 8
    annotator = chosen("caption_video", caption_video="endpoint", **server)
    assert 0 < handed_on(annotator, ClipView("clip", spread_frames=spread)).bytes <= 100_000


def test_a_video_captioner_sees_the_frames_and_the_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from transformers import (
        BertTokenizerFast,
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    torch.manual_seed(0)
    words = [*WORDS, "<image>"]
    vision = CLIPVisionConfig(**SMALL, image_size=32, patch_size=16, projection_dim=16)
    text = LlamaConfig(**SMALL, vocab_size=len(words), pad_token_id=0, bos_token_id=2, eos_token_id=3)
    network = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=len(words) - 1, vision_feature_layer=-1)
    )
    network.generation_config.suppress_tokens = [0, 1, 2, 3, 4, len(words) - 1]  # it shall say words
    network.save_pretrained(tmp_path)
    template = (
        "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<image> "
        "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}"
    )
    size = {"height": 32, "width": 32}
    LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size),
        BertTokenizerFast(
            vocab={word: n for n, word in enumerate(words)},
            extra_special_tokens={"image_token": "<image>"},
            model_input_names=READ,
        ),
        patch_size=16,
        vision_feature_select_strategy="default",
        chat_template=template,
        num_additional_image_tokens=1,
    ).save_pretrained(tmp_path)
    changed = {
        "caption_video": "transformers-video-captioner",
        "video_captioner_model": str(tmp_path),
        "caption_tokens": 4,
        "caption_clips": 4,
        "unit_clips": 16,
        "video_caption_frames": 3,
    }
    annotator = chosen("caption_video", **changed)
    assert annotator.spread == 3
    views = clips_of(3)
    said = assert_neighbours_do_not_matter(annotator, views, 3)
    shapes = batches_seen(monkeypatch, captioners._vision_model(str(tmp_path), None, "cpu")[1])
    assert annotator.measure([handed_on(annotator, view) for view in views]) == said
    assert shapes == [(4, 64)], "one batch for all, filled up, and longer than the longest prompt"
    few = views[1]
    few.spread_frames = few.spread_frames[:2]  # one of a clip too short: it has a batch of its own
    few.taken.clear()
    odd = [handed_on(annotator, view) for view in (views[0], few, views[2])]
    found = annotator.measure(odd)
    assert [found[0], found[2]] == [said[0], said[2]] and shapes[1:] == [(4, 64), (4, 64)]
    assert all(set(found["caption_video"].split()) <= {*words} for found in said)
    assert said[0]["caption_video_model"] == f"{tmp_path}@main prompt@1"
    assert chosen("caption_video", **{**changed, "video_caption_frames": 4}).identity() != annotator.identity()


def test_a_language_model_joins_the_captions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from transformers import BertTokenizerFast, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    network = LlamaForCausalLM(
        LlamaConfig(**SMALL, vocab_size=len(WORDS), pad_token_id=0, bos_token_id=2, eos_token_id=3)
    )
    network.generation_config.suppress_tokens = [0, 1, 2, 3, 4]
    network.save_pretrained(tmp_path)
    tokenizer = BertTokenizerFast(vocab={word: n for n, word in enumerate(WORDS)}, model_input_names=READ)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer.save_pretrained(tmp_path)
    annotator = chosen(
        "caption_summary",
        caption_summary="transformers-summary",
        summary_model=str(tmp_path),
        caption_tokens=4,
        caption_clips=2,
        unit_clips=16,
    )
    views = [
        view_of([texture(48, 64)] * 3, caption_image="red disc", caption_video="moves " * n) for n in (1, 9, 30, 90)
    ]
    said = assert_neighbours_do_not_matter(annotator, views, 4)
    shapes = batches_seen(monkeypatch, captioners._language_model(str(tmp_path), None, "cpu")[1])
    silent = view_of([texture(48, 64)] * 3, caption_image=None, caption_video=None)
    assert annotator.measure([views[0], silent, *views[1:]]) == [
        said[0], {"caption_summary": None, "caption_summary_model": None}, *said[1:]
    ]  # fmt: skip
    assert sorted(shapes) == [(2, 64), (2, 64), (2, 128)], "two at a time, and by length"
    assert all(set(found["caption_summary"].split()) <= {*WORDS} for found in said)
    assert annotator.annotate(silent) == {"caption_summary": None, "caption_summary_model": None}


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
    clip._file.cache_clear()
    assert chosen("embedding", embedding="clip", clip_model=moved).identity() != before


class _Parrot:
    """Says after each token the next one of a row that the picture chooses: a CoCa with a memory of one token."""

    rows = ([320, 321, 49407, 9], [330, 49407, 9, 9])

    def _encode_image(self, x_NCHW):
        return x_NCHW.mean((1, 2, 3)), x_NCHW

    def __call__(self, image, tokens, image_latent, image_embs, output_labels):
        import torch

        logits = torch.zeros(len(tokens), tokens.shape[1], 49408)
        for n, which in enumerate(image_latent.int().tolist()):
            logits[n, -1, self.rows[which][tokens.shape[1] - 1]] = 1
        return {"logits": logits}


def test_coca_decodes_greedily_until_every_caption_has_ended() -> None:
    import torch

    pictures = torch.stack([torch.zeros(3, 4, 4), torch.ones(3, 4, 4)])
    tokens = greedy_tokens(_Parrot(), pictures, most=4)
    assert tokens.tolist() == [[49406, 320, 321, 49407], [49406, 330, 49407, 9]]
    assert [words_of(row).tolist() for row in tokens.tolist()] == [[320, 321], [330]]
    assert words_of([49406, 5, 6]).tolist() == [5, 6] and greedy_tokens(_Parrot(), pictures, most=1).shape == (2, 2)


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
