import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eval.metrics import cosine


@given(seed=st.integers(0, 10_000))
def test_equals_torch_vector_by_vector(seed):
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, 3, 5, 8, generator=generator)
    expected = torch.nn.functional.cosine_similarity(x.double(), y.double(), dim=-1).mean(1)
    assert cosine.cosine(x, y).tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    assert cosine.cosine(x, 7 * y).tolist() == pytest.approx(expected.tolist(), abs=1e-6)


def test_a_long_vector_does_not_speak_for_the_others():
    x = torch.zeros(1, 4, 2)
    x[..., 0] = 1.0
    x[:, 0, 0] = 800.0
    y = x.clone()
    y[:, 1:] = torch.tensor([0.0, 1.0])  # three of four turned by 90 degrees
    assert cosine.cosine(x, y).item() == pytest.approx(0.25)


def test_one_vector_per_sample_and_zeros():
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    y = torch.tensor([[4.0, 3.0], [0.0, 0.0], [1.0, 0.0], [-2.0, 0.0]])
    assert cosine.cosine(x, y).tolist() == pytest.approx([0.96, 1.0, 0.0, -1.0])
