"""Second moments of layers' inputs against X^T X written out, whatever the strips and batches."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from calibration import hessian as rooms
from calibration.errors import DataError
from calibration.hessian import collect_hessians, hessian


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def patches_by_loop(conv, x):
    """Rows [group][row, column] of every output pixel, by loops over everything, in float64."""
    (kh, kw), (sh, sw), (dh, dw) = conv.kernel_size, conv.stride, conv.dilation
    ph, pw = conv.padding
    size, rows = conv.in_channels // conv.groups, [[] for _ in range(conv.groups)]
    n, _, height, width = x.shape
    for b in range(n):
        for top in range(-ph, height + ph - dh * (kh - 1), sh):
            for left in range(-pw, width + pw - dw * (kw - 1), sw):
                for g in range(conv.groups):
                    row = []
                    for c in range(g * size, (g + 1) * size):
                        for i in range(kh):
                            for j in range(kw):
                                y, z = top + i * dh, left + j * dw
                                inside = 0 <= y < height and 0 <= z < width
                                row.append(float(x[b, c, y, z]) if inside else 0.0)
                    rows[g].append(row)
    return torch.tensor(rows, dtype=torch.float64)


CONVOLUTIONS = [
    nn.Conv2d(2, 3, 3, padding=1),
    nn.Conv2d(4, 4, 3, stride=2, padding=(1, 0), groups=2),
    nn.Conv2d(3, 3, (3, 1), dilation=(2, 1), padding=(2, 0), groups=3),
    nn.Conv2d(2, 5, 1),
    nn.Conv2d(2, 2, (2, 3), stride=(2, 1)),
]


@pytest.mark.parametrize("conv", CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("strip", [1, 1 << 22])
def test_a_convolution_gives_the_moments_of_its_patches(conv, strip, monkeypatch):
    monkeypatch.setattr(rooms, "STRIP", strip)
    x = randn(2, conv.in_channels, 7, 6)
    rows = patches_by_loop(conv, x)
    found = hessian(conv, x)
    assert found.rows == rows.shape[1] == conv(x).shape[0] * conv(x)[0, 0].numel()
    torch.testing.assert_close(found.matrix.double(), rows.transpose(1, 2) @ rows, rtol=1e-5, atol=1e-5)


def test_padding_same_and_padding_of_other_modes():
    x = randn(1, 2, 5, 6)
    same, by_hand = nn.Conv2d(2, 3, 3, padding="same"), nn.Conv2d(2, 3, 3, padding=1)
    torch.testing.assert_close(hessian(same, x).matrix, hessian(by_hand, x).matrix)
    circular, none = nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), nn.Conv2d(2, 3, 3)
    wrapped = torch.nn.functional.pad(x, (1, 1, 1, 1), mode="circular")
    torch.testing.assert_close(hessian(circular, x).matrix, hessian(none, wrapped).matrix)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 99))
def test_a_linear_layer_gives_x_transposed_x_whatever_the_batches(sizes, seed):
    module = nn.Sequential(nn.Linear(3, 2))
    x = randn(sum(sizes), 4, 3, seed=seed)
    found = collect_hessians(module, lambda: [module(part) for part in x.split(sizes)], ["0"])["0"]
    rows = x.double().reshape(-1, 3)
    assert found.rows == len(rows)
    torch.testing.assert_close(found.matrix[0].double(), rows.T @ rows, rtol=1e-5, atol=1e-5)


def test_the_module_is_left_as_it_was_also_when_something_fails():
    module = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))

    def fail():
        raise ValueError("in the middle")

    for run, names, message in (
        (fail, ["0"], "in the middle"),
        (lambda: module(torch.full((1, 3), float("nan"))), ["0"], "input of '0' holds NaN"),
        (lambda: module[0](torch.ones(1, 3)), ["0", "2"], "never called while the inputs ran: '2'"),
        (lambda: None, ["1", "nothing"], "no Linear or Conv2d named '1', 'nothing'"),
    ):
        with pytest.raises((DataError, ValueError), match=message):
            collect_hessians(module, run, names)
        assert not any(part._forward_pre_hooks for part in module.modules())
