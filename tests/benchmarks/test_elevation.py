"""Does a multi-view model listen to the elevation it is told? A longer training than the demo's, on more objects.

Takes half an hour and more on two cores. Run with `make bench`, or `pytest -s tests/benchmarks/test_elevation.py`.
"""

import pytest

CHANGES = {
    "render.train_objects": 48,
    "render.held_out_objects": 16,
    "train_multi_view.steps": 900,
    "train_multi_view.lr": 2.0e-3,
    "multiview.orbits": 32,
}


@pytest.fixture(scope="module")
def summary(run_local):
    return run_local(CHANGES)


def test_the_true_elevation_beats_another_orbits(summary):
    views = summary["multiview"]
    print({name: value for name, value in views.items() if name.startswith("psnr") or name.startswith("measured")})
    assert views["psnr_after"] > views["psnr_shuffled_elevation"]
    assert views["psnr_after"] > views["psnr_copy_input"]
