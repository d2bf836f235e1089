"""Zero-shot UCF-101 as the paper measures it (Table 2, App. E.4): videos of class names, their FVD to real ones.

Every video and every row of features is kept in the data root under what it depends on. A run that was broken off goes
on where it stopped, and several processes, each with its part, share the work.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...common.errors import BadInputError, ConfigError
from ...common.identity import file_sha256, tree_sha256
from ...common.progress import track
from ...common.storage import DataRoot
from ..gaussians import Moments, distance_between
from ..video_network import CALLED_WITH, NetworkFile
from .classes import Asked, csv_counts, draw, folder_videos, part_of, plan
from .features import VideoFeatures
from .settings import Ucf101Settings
from .videos import Generated, as_seen, real_frames

PAPER_VIDEOS, PAPER_CLASSES = 13_320, 101
PAPER_COUNTS = {"TableTennisShot": 140, "PlayingPiano": 105}  # [P, App. E.4]: the two classes that it gives as examples
OURS = ("steps", "motion_bucket")  # the paper does not tell them
TABLE_2 = {  # [P, Table 2]
    "CogVideo (Chinese)": 751.34,
    "CogVideo (English)": 701.59,
    "Make-A-Video": 367.23,
    "Video LDM": 550.61,
    "MagicVideo": 655.00,
    "PYOCO": 355.20,
    "SVD (base, text to video)": 242.02,
}


@dataclass
class Measured:
    """What came of a run, or of one part of it.

    Attributes:
        card: the model's card.
        model_sha256: of the model directory.
        sampler: the name of what samples it.
        settings: of the protocol.
        asked: the videos of this run or part.
        asked_in_all: how many all parts have.
        counts: class to videos in the reference; drawn: in this run.
        generated: the model's videos.
        network: what the features are computed with, if anything.
        real: the real videos.
        refused: class and name of a real video, as ``YoYo/v_1.avi``, to the reason why it could not be used.
        figure: name and value; None while a part, or what is needed for it, is missing.
        lacking: what is missing for a figure, for the user.
        seconds: that it took.
    """

    card: dict[str, Any]
    model_sha256: str
    sampler: str
    settings: Ucf101Settings
    asked: list[Asked]
    asked_in_all: int
    counts: dict[str, int]
    drawn: dict[str, int]
    generated: Generated
    network: NetworkFile | None
    real: list[Path] = field(default_factory=list)
    real_compared: int = 0
    refused: dict[str, str] = field(default_factory=dict)
    figure: tuple[str, float] | None = None
    lacking: str = ""
    seconds: float = 0.0

    @property
    def whole(self) -> bool:
        """Whether the class distribution of the reference was asked for in full."""
        return self.drawn == self.counts

    @property
    def comparable(self) -> bool:
        """Whether the figure may stand beside the paper's: its network and its videos of each class, real ones too."""
        paper = Ucf101Settings()
        told = self.settings.sampler() | self.settings.seen() | {"split_words": self.settings.split_words}
        as_told = all(value == getattr(paper, name) for name, value in told.items() if name not in OURS)
        real = Counter(path.parent.name for path in self.real)
        of_paper = self.whole and _is_ucf101(self.counts) and _is_ucf101(real) and self.real_compared == PAPER_VIDEOS
        return bool(as_told and of_paper and self.network and self.network.is_i3d)


def _is_ucf101(counts: Mapping[str, int]) -> bool:
    """Whether the videos of each class may be UCF-101's, as far as the paper tells their numbers."""
    told = all(counts.get(name) == count for name, count in PAPER_COUNTS.items())
    return told and len(counts) == PAPER_CLASSES and sum(counts.values()) == PAPER_VIDEOS


def measure_ucf101(
    model: Path,
    reference: Path,
    root: DataRoot,
    settings: Ucf101Settings,
    network: NetworkFile | None = None,
    real: Path | None = None,
    part: str | None = None,
) -> Measured:
    """Generate the videos that are missing and measure them, as far as what is given allows.

    Args:
        model: directory of a text-to-video model.
        reference: folder of UCF-101 (one folder a class), or a CSV with columns ``class`` and ``count``.
        root: where videos and features are kept.
        settings: of the protocol.
        network: what features are computed with; without it videos are made and nothing is measured.
        real: folder of the real videos, where the reference is a CSV or other ones are to be taken.
        part: ``2/8`` for the second of eight parts: no figure comes of it.

    Raises:
        BadInputError: the model is of another kind, the reference cannot be read, or the network may not be loaded.
        ConfigError: features of a CSV's videos are asked for, and no real ones are named.
    """
    from ...diffusion.model_directory import read_card

    card = read_card(model)
    if card["kind"] != "text_to_video":
        raise BadInputError(f"{model}: a model of kind {card['kind']}; this protocol needs text_to_video")
    first, parts = part_of(part) if part else (0, 1)
    by_class = folder_videos(reference) if reference.is_dir() else None
    counts = {name: len(paths) for name, paths in by_class.items()} if by_class else csv_counts(reference)
    if real is not None:
        by_class = folder_videos(real)
    if network is not None and by_class is None:
        raise ConfigError(
            f"--features: {reference} names no real videos to compare with; give their folder with --real"
        )
    if network is not None:
        network.check()
    drawn = draw(counts, settings.videos)
    asked = plan(drawn, settings.split_words)
    model_sha256 = tree_sha256(model)
    generated = Generated(model, model_sha256, settings, root)
    mine = asked[first::parts]
    measured = Measured(
        card, model_sha256, _sampler(model), settings, mine, len(asked), counts, drawn, generated, network
    )
    for one in track(mine, "videos generated"):
        generated.ensure(one)
    generated.release()
    if network is None or by_class is None:
        measured.lacking = "the feature network (--features)"
        return measured
    measured.real = _real_videos(by_class, settings)[first::parts]
    features = VideoFeatures(network, root, settings.batch)
    of_made = _of_generated(features, generated, mine, settings)
    of_real = _of_real(features, measured, settings)
    if parts > 1:
        measured.lacking = "the other parts: when all are done, run without --part"
    elif of_made is None or of_real is None or of_real.count < 2:
        raise BadInputError(
            f"{reference}: no real videos can be compared: {'; '.join(measured.refused.values())[:400]}"
        )
    else:
        measured.real_compared = of_real.count
        measured.figure = (_figure_name(network, measured), distance_between(of_real, of_made))
    return measured


def _sampler(model: Path) -> str:
    from ...diffusion.json_files import read_json
    from ...diffusion.model_directory import parameterisation_of

    discrete = parameterisation_of(read_json(model / "scheduler" / "scheduler_config.json")).schedule is not None
    return "DDIM, deterministic" if discrete else "Euler, Karras's noise levels"


def _figure_name(network: NetworkFile, measured: Measured) -> str:
    """A smaller draw says so in its name: a Fréchet distance falls as videos become more."""
    return network.figure if measured.whole else f"{network.figure}_{measured.asked_in_all}_videos"


def _real_videos(by_class: dict[str, list[Path]], settings: Ucf101Settings) -> list[Path]:
    taken = draw({name: len(paths) for name, paths in by_class.items()}, settings.real_videos)
    return [path for name, count in taken.items() for path in by_class[name][:count]]


def _of_generated(
    features: VideoFeatures, generated: Generated, asked: Sequence[Asked], settings: Ucf101Settings
) -> Moments | None:
    moments, refused = features.moments(
        asked,
        lambda one: {"video": generated.key(one), "seen": settings.seen()},
        lambda one: as_seen(generated.frames(one), settings),
        "features of generated videos",
    )
    if refused:
        raise BadInputError(next(iter(refused.values())))  # our own bytes: none may be missing
    return moments


def _of_real(features: VideoFeatures, measured: Measured, settings: Ucf101Settings) -> Moments | None:
    own = {"frames", "fps", "cropped_height", "cropped_width", "real_clip"}
    how = settings.model_dump(mode="json", include=own)
    moments, refused = features.moments(
        measured.real,
        lambda path: {"real": file_sha256(path), "how": how},
        lambda path: real_frames(path, settings),
        "features of real videos",
    )
    measured.refused = {real_name(measured.real[place]): reason for place, reason in refused.items()}
    return moments


def real_name(path: Path) -> str:
    """How a real video is told from others: ``YoYo/v_1.avi``, since two classes may have files of one name."""
    return f"{path.parent.name}/{path.name}"


def result_of(measured: Measured) -> dict[str, Any]:
    """A figure with all of its protocol, as plain values. Needs a figure.

    Raises:
        ValueError: there is none.
    """
    if measured.figure is None or measured.network is None:
        raise ValueError("nothing was measured")
    name, value = measured.figure
    s = measured.settings
    return {
        "format": 1,
        "model": {
            "sha256": measured.model_sha256,
            **{key: measured.card.get(key) for key in ("kind", "stage", "dataset")},
        },
        "figures": {name: round(value, 6)},
        "comparable_with_table_2": measured.comparable,
        "published": {"fvd": TABLE_2, "source": "arXiv 2311.15127, Table 2"},
        "protocol": {
            "source": "arXiv 2311.15127, appendix E.4",
            "videos": {
                "asked_for": measured.asked_in_all,
                "reference": sum(measured.counts.values()),
                "paper": PAPER_VIDEOS,
                "draw": "all" if measured.whole else "fewer, with the same distribution by largest remainders",
                "by_class": measured.drawn,
            },
            "prompt": "the class name, words split" if s.split_words else "the raw class name",
            "frames": s.frames,
            "fps": s.fps,
            "size_px": [s.height, s.width],
            "guidance": {"scale": s.guidance, "over_frames": "constant"},
            "sampler": {
                "name": measured.sampler,
                "steps": s.steps,
                "motion_bucket": s.motion_bucket,
                "ours": "the paper names none of these",
            },
            "seen_by_the_network": {
                "resized_px": [s.resized_height, s.resized_width],
                "how": "bilinear, antialiased, rounded to 8 bits",
                "cropped_px": [s.cropped_height, s.cropped_width],
            },
            "features": {"network": measured.network.name, "sha256": measured.network.sha256, "call": CALLED_WITH},
            "real": {
                "videos": measured.real_compared,
                "set_aside": len(measured.refused),
                "clip": f"{s.real_clip} {s.frames} frames at {s.fps:g} a second; ours, the paper's are not known",
            },
            "distance": "Fréchet, float64; covariances over N, as StyleGAN-V",
            "settings": s.model_dump(mode="json"),
        },
    }
