import pytest
import torch

from eval.metrics import clip_rate


def test_counts_what_is_stuck_and_was_not():
    x = torch.full((1, 3, 4, 4), 0.5)
    y = x.clone()
    y[0, 0, 0] = 1.0  # 4 of 48
    y[0, 1, 1, :2] = 0.0  # 2 more
    assert clip_rate.clip_rate(x, y).item() == pytest.approx(6 / 48)
    assert clip_rate.clip_rate(y, x).item() == 0.0


def test_a_white_sky_and_its_neighbourhood_cost_nothing():
    sky = torch.full((1, 3, 8, 8), 0.99)
    assert clip_rate.clip_rate(sky, torch.ones_like(sky)).item() == 0.0
    assert clip_rate.clip_rate(sky, torch.zeros_like(sky)).item() == 1.0
    assert clip_rate.clip_rate(0 * sky, 0 * sky).item() == 0.0


def test_a_scale_that_is_off_runs_into_the_end(photographs):
    images = photographs(2)
    rates = [clip_rate.clip_rate(images, (gain * images).clamp(0, 1)).mean().item() for gain in (1.0, 1.5, 2.5, 5.0)]
    assert rates[0] == 0.0
    assert rates == sorted(rates)
    expected = ((2.5 * images >= 1 - 0.5 / 255) & (images <= 1 - 4 / 255)).float().mean().item()
    assert rates[2] == pytest.approx(expected)
