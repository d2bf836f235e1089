"""Do the stages learn? The profile `local` for three seeds: stages lower their held-out losses, models beat baselines.

Takes about half an hour on two cores. Run with `make bench`, or `pytest -s tests/benchmarks/test_learning.py`.
"""

import pytest

STAGES = ("image", "video", "image_to_video", "multi_view")


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_stage_lowers_its_held_out_loss_and_the_models_beat_their_baselines(run_local, seed):
    summary = run_local({f"train_{stage}.seed": seed for stage in STAGES})
    for stage in STAGES:
        figures = summary["training"][stage]
        before, after, zero = (
            figures[k] for k in ("held_out_loss_before", "held_out_loss_after", "zero_predictor_loss")
        )
        print(f"seed {seed} {stage}: held-out loss {before:.3f} -> {after:.3f}, a network of zeros {zero:.3f}")
        assert after < before, stage
        assert after < zero, stage
    views = summary["multiview"]
    print(f"seed {seed} multi-view:", {k: v for k, v in views.items() if k.startswith("psnr")})
    assert views["psnr_after"] > views["psnr_before"]
    assert views["psnr_after"] > views["psnr_copy_input"]
    serving = summary["serving"]
    print(f"seed {seed} serving: {serving['first_frame_matches']} of {serving['images']} images found again")
    assert serving["equal_to_in_process"] and serving["seeds_differ"]
    assert serving["first_frame_matches"] == serving["images"] == 8
