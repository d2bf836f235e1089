"""Two claims of the paper at small scale, on clips whose motion is known. Writes a page with the curves.

1. A video model that starts from a trained image model beats one with random spatial weights at equal steps (4.1).
2. The motion bucket is obeyed: the measured flow of samples rises with it, and does not where training shuffled the
   scores among the clips (App. C conditions on it).

pytest -s tests/benchmarks/test_claims.py       about half an hour on two cores; SVDFLOW_BENCH_PAGE names the page
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from svdflow.common.report import StepReport, curves, table, videos
from svdflow.common.video import encode_mp4
from svdflow.diffusion.import_model import open_model
from svdflow.diffusion.sampling import generate
from svdflow.report.page import render_page
from svdflow.training.train.settings import stage_settings
from svdflow.training.train.train import train_stage
from tests.benchmarks import sliding_pictures as footage

TRAIN, HELD_OUT = 384, 24
IMAGE_STEPS, VIDEO_STEPS, MOTION_STEPS = 300, 300, 800
BUCKETS = (8, 40, 72, 104, 136, 168, 200, 232)
PICTURES, SEEDS = 4, (0, 1)
UNET = {
    "latent_channels": 8,
    "block_out_channels": [64, 64],
    "layers_per_block": 1,
    "attention_heads": [4, 4],
    "cross_attention_dim": 384,
    "addition_time_embed_dim": 32,
    "num_frames": footage.FRAMES,
    "sample_size": 8,
}
SHARED = {
    "frames": None,
    "height": None,
    "width": None,
    "processes": 2,
    "precision": "fp32",
    "latent": "mean",
    "checkpoint_every": 100,
    "warmup": 20,
    "held_out_samples": HELD_OUT,
    "held_out_seeds": 2,
    "ema": 0.99,
}


class Workshop:
    """Trains stages on the clips, each once, and collects what they tell."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root, rows = footage.write_samples(folder, TRAIN, HELD_OUT)
        self.true = footage.manifest(rows, folder / "true.parquet")
        self.shuffled = footage.manifest(footage.with_shuffled_scores(rows, seed=0), folder / "shuffled.parquet")

    def train(self, stage: str, name: str, init: str | None = None, samples: Path | None = None, **values: Any) -> Any:
        settings = stage_settings(stage, SHARED | ({"unet": UNET} if stage != "image_to_video" else {}) | values)
        report = train_stage(
            stage,
            samples or self.true,
            self.folder / init if init else None,
            self.folder / name,
            self.root,
            settings,
            {"name": "sliding pictures"},
        )
        return report.summary["training"][stage], {section["title"]: section for section in report.sections}


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    made = Workshop(tmp_path_factory.mktemp("claims"))
    image = made.train("image", "image", batch=32, steps=IMAGE_STEPS, lr=2e-3)[0]
    print(f"\nimage model: held-out loss {image['held_out_loss_before']:.3f} -> {image['held_out_loss_after']:.3f}")
    return made


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory):
    reports: list[StepReport] = []
    yield reports
    path = Path(os.environ.get("SVDFLOW_BENCH_PAGE") or tmp_path_factory.mktemp("page") / "claims.html")
    run = {"id": "-", "pipeline": "claims", "profile": "-", "settings_changed": {}, "failed": [], "versions": {}}
    path.write_text(render_page(reports, run))
    print(f"curves: {path}")


def test_an_image_model_is_a_better_start_than_random_weights(workshop: Workshop, page: list[StepReport]) -> None:
    workshop.train("image", "random", batch=32, steps=0)
    lines, after = {}, {}
    for name, init in (("from the image model", "image"), ("random spatial weights", "random")):
        summary, sections = workshop.train(
            "video", f"video {init}", init, batch=8, steps=VIDEO_STEPS, lr=1e-3, validate_every=VIDEO_STEPS // 8
        )
        lines[name] = sections["Held-out loss while it trained"]["series"]["mean"]
        after[init] = summary["held_out_loss_after"]
        print(f"video model, {name}: held-out loss {lines[name][1][0]:.3f} -> {after[init]:.3f}")
    page.append(StepReport(
        "start", "An image model as the start of a video model",
        sections=[curves("Held-out loss", lines, "step", "weighted loss", note="of the running average")],
    ))  # fmt: skip
    (_, ours), (_, random) = lines.values()
    assert all(a < b for a, b in zip(ours[1:], random[1:], strict=True)), "ahead at every look after the start"
    assert after["image"] < after["random"]


def test_samples_move_as_much_as_their_bucket_says(workshop: Workshop, page: list[StepReport]) -> None:
    workshop.train("video", "inflated", "image", batch=8, steps=0)
    motion, shown, rank = {}, [], {}
    for name in ("true", "shuffled"):
        workshop.train(
            "image_to_video", f"moving {name}", "inflated", getattr(workshop, name), batch=8, steps=MOTION_STEPS,
            lr=2e-3, image_dropout=0.05, refit_motion=True,
        )  # fmt: skip
        model = open_model(workshop.folder / f"moving {name}")
        scores = np.zeros((len(BUCKETS), PICTURES * len(SEEDS)))
        for row, bucket in enumerate(BUCKETS):
            for column in range(scores.shape[1]):
                picture = footage.sliding_clip(TRAIN + column // len(SEEDS), 0.0)[0][0]
                frames_FHWC = generate(
                    model, picture, frames=footage.FRAMES, fps=footage.FPS, motion_bucket=bucket, steps=12,
                    guidance=(1.0, 1.0), seed=SEEDS[column % len(SEEDS)],
                )  # fmt: skip
                scores[row, column] = footage.measured_motion(frames_FHWC)
                if name == "true" and column == 0:
                    shown.append((encode_mp4(frames_FHWC, footage.FPS), f"bucket {bucket}"))
        motion[name] = scores
        rank[name] = spearmanr(np.repeat(BUCKETS, scores.shape[1]), scores.ravel()).statistic
        print(f"{name} scores in training: flow of single samples {scores.mean(1).round(2)}, rank correlation with the "
              f"bucket {rank[name]:.2f}")  # fmt: skip
    lines = {f"trained with {name} scores": (list(BUCKETS), scores.mean(1).tolist()) for name, scores in motion.items()}
    page.append(StepReport(
        "motion", "Motion asked for and motion made",
        sections=[
            curves("Measured flow", lines, "motion bucket", "px between frames at 128 px",
                   note=f"mean of {PICTURES * len(SEEDS)} held-out pictures and seeds"),
            table("Rank correlation of bucket and flow, single samples", ["scores in training", "Spearman"],
                  [[name, round(float(value), 3)] for name, value in rank.items()]),
            videos("Samples", shown, note="one picture and seed, a bucket each"),
        ],
    ))  # fmt: skip
    assert rank["true"] >= 0.8
    assert rank["shuffled"] < 0.4
