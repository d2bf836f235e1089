"""What training sees depends on the seed and the ordinal of the sample, not on how the work is split."""

import math
from collections import Counter

import numpy as np
import pytest

from svdflow.common.errors import BadInputError, ConfigError
from svdflow.training.train.draws import Plan, frame_noise, held_out_draws, held_out_sigmas, noise
from svdflow.training.train.settings import stage_settings


def make(**values):
    return stage_settings("image_to_video", {"batch": 8, "processes": 1, "zero_stage": 0, "steps": 10, **values})


@pytest.mark.parametrize(("processes", "accumulation"), [(1, 1), (2, 1), (4, 2), (8, 1), (1, 4)])
def test_any_split_over_processes_sees_the_same_samples(processes, accumulation):
    whole, split = Plan(make(), 13), Plan(make(processes=processes, accumulation=accumulation), 13)
    for step in (0, 1, 7):
        expected = [whole.draw(step * 8 + i) for i in range(8)]
        got = [
            d for m in range(accumulation) for r in range(processes) for d in split.micro_batch(step, m, r, processes)
        ]
        assert got == expected
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_array_equal(noise(a, (2, 3)), noise(b, (2, 3)))


def test_every_epoch_visits_each_sample_once_in_another_order():
    plan = Plan(make(), 21)
    epochs = [[plan.draw(epoch * 21 + i).row for i in range(21)] for epoch in range(3)]
    assert all(sorted(rows) == list(range(21)) for rows in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_draw_does_not_depend_on_what_was_drawn_before():
    plan = Plan(make(), 5)
    later = plan.draw(1234)
    plan.draw(3)
    assert plan.draw(1234) == later == Plan(make(), 5).draw(1234)
    assert Plan(make(seed=1), 5).draw(1234) != later


def test_noise_levels_captions_and_dropped_conditions_have_the_distributions_asked_for():
    settings = make(p_mean=0.7, p_std=1.6, image_dropout=0.1, text_dropout=0.15)
    plan = Plan(settings, 10)
    draws = [plan.draw(i) for i in range(4000)]
    logs = np.log([d.sigma for d in draws])
    assert abs(logs.mean() - 0.7) < 4 * 1.6 / math.sqrt(4000)
    assert abs(logs.std() - 1.6) < 0.08
    augment = np.log([d.augment_sigma for d in draws])
    assert abs(augment.mean() + 3.0) < 0.04 and abs(augment.std() - 0.5) < 0.03
    captions = Counter(d.caption for d in draws)
    for caption, share in enumerate((0.5, 0.25, 0.25)):
        assert abs(captions[caption] / 4000 - share) < 0.035
    dropped = Counter((d.drop_embedding, d.drop_frame) for d in draws)
    for what, share in {(True, False): 0.1, (True, True): 0.1, (False, True): 0.1, (False, False): 0.7}.items():
        assert abs(dropped[what] / 4000 - share) < 0.035
    assert abs(np.mean([d.drop_text for d in draws]) - 0.15) < 0.025


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ({"embedding_dropout": 0.3, "frame_dropout": 0.2}, (0.3, 0.2)),
        ({"embedding_dropout": 0.3}, (0.3, 0.0)),
        ({"frame_dropout": 1.0, "image_dropout": 0.1}, (0.0, 1.0)),
    ],
)
def test_embedding_and_frame_are_dropped_independently_where_they_have_rates_of_their_own(rates, expected):
    plan = Plan(make(text_dropout=0.15, **rates), 10)
    draws = [plan.draw(i) for i in range(4000)]
    both = np.mean([d.drop_embedding and d.drop_frame for d in draws])
    assert abs(np.mean([d.drop_embedding for d in draws]) - expected[0]) < 0.025
    assert abs(np.mean([d.drop_frame for d in draws]) - expected[1]) < 0.025
    assert abs(both - expected[0] * expected[1]) < 0.02
    with_text = np.mean([d.drop_text and d.drop_embedding for d in draws])
    assert abs(with_text - 0.15 * expected[0]) < 0.02 and abs(np.mean([d.drop_text for d in draws]) - 0.15) < 0.025


def test_noise_of_samples_and_of_their_conditioning_frames_is_independent_standard_normal():
    plan = Plan(make(), 10)
    arrays = [f(plan.draw(i), (50, 40)) for i in range(4) for f in (noise, frame_noise)]
    stacked = np.stack(arrays).reshape(8, -1)
    assert np.abs(np.corrcoef(stacked) - np.eye(8)).max() < 0.1
    assert abs(stacked.mean()) < 0.04 and abs(stacked.std() - 1) < 0.03


def test_held_out_draws_are_fixed_and_cover_equal_shares_of_the_noise_distribution():
    settings = make(p_mean=1.0, p_std=1.6, held_out_samples=3, held_out_levels=5, held_out_seeds=2)
    draws = held_out_draws(settings, 100)
    assert draws == held_out_draws(
        make(p_mean=1.0, p_std=1.6, held_out_samples=3, held_out_seeds=2, seed=9, lr=1.0), 100
    )
    assert len(draws) == 3 * 5 * 2 and len({d.noise_key for _, d in draws}) == 30
    sigmas = held_out_sigmas(settings)
    assert sigmas[2] == pytest.approx(math.e)  # the median of ln sigma ~ N(1, .) is 1
    assert not any(d.drop_text or d.drop_embedding or d.drop_frame for _, d in draws)
    assert held_out_draws(settings, 0) == []


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"batch": 7, "processes": 2}, "multiple of 2"),
        ({"batch": 8, "processes": 2, "accumulation": 3}, "multiple of 6"),
        ({"caption_weights": (0.5, 0.5, 0.5)}, "add up to 1"),
        ({"image_dropout": 0.4}, "image_dropout"),  # embedding alone, both, frame alone: a third each at most
        ({"preset": "vidoe"}, "shipped ones are"),
        ({"stepps": 3}, "stepps"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_one_line(values, word):
    with pytest.raises(ConfigError, match=word) as caught:
        make(**values)
    assert "train_image_to_video" in str(caught.value) and "\n" not in str(caught.value)


def test_no_training_sample_is_said_so():
    with pytest.raises(BadInputError, match="no training sample"):
        Plan(make(), 0)


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        (
            "video",
            {
                "steps": 100_000,
                "batch": 768,
                "lr": 1e-4,
                "p_mean": 0.0,
                "p_std": 1.0,
                "frames": 14,
                "height": 320,
                "width": 576,
            },
        ),
        (
            "image_to_video",
            {"steps": 50_000, "batch": 768, "lr": 3e-5, "p_mean": 1.0, "p_std": 1.6, "ema": 0.9999, "height": 576},
        ),
        ("multi_view", {"steps": 12_000, "batch": 16, "lr": 1e-5, "frames": 21, "height": 576, "width": 576}),
    ],
)
def test_a_stage_without_a_profile_has_the_papers_numbers(stage, expected):
    settings = stage_settings(stage, {})
    assert {name: getattr(settings, name) for name in expected} == expected
