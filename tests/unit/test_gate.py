"""The gate lets good figures through and says what is wrong with bad ones."""

import json
from pathlib import Path

import pytest

from svdflow.common.errors import BadInputError, GateRefused
from svdflow.evaluation.gate import check_gate
from svdflow.evaluation.settings import GateSettings

SETTINGS = GateSettings(min_samples=2)


def metrics_file(path: Path, **changes: object) -> Path:
    figures = {
        "psnr_db": {"model": 20.0, "untrained": 10.0, "first_frame_repeated": 20.5},
        "frechet_efficientnet_lite0": {"model": 10.0, "untrained": 60.0, "first_frame_repeated": 5.0},
        "first_frame_psnr_db": {"model": 24.0, "untrained": 12.0, "first_frame_repeated": 100.0},
    }
    kind = changes.pop("kind", "image_to_video")
    samples = changes.pop("samples", 8)
    for dotted, value in changes.items():
        figure, column = dotted.split("__")
        figures[figure][column] = value  # type: ignore[assignment]
    path.write_text(
        json.dumps({"model": {"kind": kind, "sha256": "ab"}, "protocol": {"samples": samples}, "figures": figures})
    )
    return path


def test_a_good_model_passes_and_its_verdict_is_written(tmp_path: Path) -> None:
    report = check_gate(metrics_file(tmp_path / "m.json"), SETTINGS, tmp_path / "verdict.json")
    verdict = json.loads((tmp_path / "verdict.json").read_text())
    assert report.summary["gate"]["passed"] and verdict["gate"]["passed"] and verdict["model"]["sha256"] == "ab"
    assert len(verdict["gate"]["criteria"]) == 6


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"psnr_db__untrained": 19.5}, "PSNR gain over untrained weights is 0.5 dB, needed at least 1 dB"),
        (
            {"psnr_db__first_frame_repeated": 22.0},
            "PSNR gain over the first frame repeated is -2 dB, needed at least -1 dB",
        ),
        ({"frechet_efficientnet_lite0__model": 40.0}, "untrained weights over the model's is 1.5, needed at least 2"),
        ({"first_frame_psnr_db__model": 19.0}, "first frame is 19 dB, needed at least 20 dB"),
        ({"samples": 1}, "held-out samples is 1, needed at least 2"),
        ({"kind": "multi_view"}, "kind of model is multi_view, needed image_to_video"),
    ],
)
def test_each_criterion_refuses_alone_with_its_values(change: dict[str, object], words: str, tmp_path: Path) -> None:
    with pytest.raises(GateRefused) as refused:
        check_gate(metrics_file(tmp_path / "m.json", **change), SETTINGS, tmp_path / "verdict.json")
    assert words in str(refused.value) and "; " not in str(refused.value) and "\n" not in str(refused.value)
    assert not (tmp_path / "verdict.json").exists()


def test_several_failures_are_all_named(tmp_path: Path) -> None:
    with pytest.raises(GateRefused) as refused:
        check_gate(metrics_file(tmp_path / "m.json", psnr_db__model=float("nan"), samples=1), SETTINGS)
    assert str(refused.value).count("needed") == 3  # both PSNR gains are nan


def test_a_criterion_that_is_null_is_not_asked_for(tmp_path: Path) -> None:
    lenient = GateSettings(
        min_samples=1,
        min_psnr_gain_db=None,
        max_psnr_loss_db=None,
        min_frechet_ratio=None,
        min_first_frame_psnr_db=None,
    )
    check_gate(metrics_file(tmp_path / "m.json", psnr_db__model=1.0, frechet_efficientnet_lite0__model=1e9), lenient)


def test_files_that_are_no_metrics_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="run the evaluation"):
        check_gate(tmp_path / "none.json", SETTINGS)
    for content in ("{", "[]", '{"model": {"kind": "image_to_video"}}'):
        (tmp_path / "m.json").write_text(content)
        with pytest.raises(BadInputError, match="not a metrics file"):
            check_gate(tmp_path / "m.json", SETTINGS)
    with pytest.raises(BadInputError, match="psnr_db of untrained is None"):
        check_gate(metrics_file(tmp_path / "m.json", psnr_db__untrained=None), SETTINGS)
