"""Which samples a measurement keeps."""

import pytest
import torch

from compress.nn.batches import spread


def triples(steps):
    n = len(steps)
    return torch.arange(n)[:, None].float(), torch.tensor(steps), torch.zeros(n, 5, 2)


def test_time_steps_are_spread_and_samples_stay_together_in_order():
    steps = [700.0, 20.0, 500.0, 120.0, 990.0, 300.0, 800.0, 410.0]
    latents, kept, text = spread(triples(steps), 4)
    assert kept.tolist() == [700.0, 120.0, 990.0, 410.0]  # the second of each pair in rising order
    assert [steps[int(i)] for i in latents[:, 0]] == kept.tolist() and text.shape == (4, 5, 2)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 20])
def test_as_many_as_asked_for_each_from_its_own_part_of_the_schedule(count):
    generator = torch.Generator().manual_seed(count)
    steps = torch.randperm(16, generator=generator).float().tolist()
    (_, kept, _) = spread(triples(steps), count)
    assert len(kept) == min(count, 16)
    parts = [int(step * count // 16) for step in kept.tolist()] if count < 16 else range(16)
    assert len(set(parts)) == len(kept)


def test_without_time_steps_the_first_are_taken():
    x = torch.arange(6.0)[:, None]
    assert torch.equal(spread((x,), 2)[0], x[:2]) and torch.equal(spread((x,), 9)[0], x)
