"""A module with other sizes runs, says its sizes, and leaves the original alone."""

import networks
import pytest
import torch
from torch import nn

from compress.nn.stand_in import stand_in


@pytest.mark.parametrize(
    ("layer", "sizes", "attributes"),
    [
        (
            nn.Conv2d(8, 6, 3),
            {"weight": (4, 2, 3, 3), "bias": (4,)},
            {"in_channels": 2, "out_channels": 4, "groups": 1},
        ),
        (
            nn.Conv2d(8, 16, 3, groups=8, bias=False),
            {"weight": (6, 1, 3, 3)},
            {"in_channels": 3, "out_channels": 6, "groups": 3},
        ),
        (
            nn.ConvTranspose2d(8, 6, 2),
            {"weight": (3, 4, 2, 2), "bias": (4,)},
            {"in_channels": 3, "out_channels": 4, "groups": 1},
        ),
        (nn.Linear(8, 6), {"weight": (5, 3), "bias": (5,)}, {"in_features": 3, "out_features": 5}),
        (nn.GroupNorm(2, 8), {"weight": (4,), "bias": (4,)}, {"num_channels": 4, "num_groups": 2}),
        (nn.LayerNorm(8), {"weight": (4,), "bias": (4,)}, {"normalized_shape": (4,)}),
        (nn.PReLU(8), {"weight": (4,)}, {"num_parameters": 4}),
    ],
)
def test_attributes_follow_the_tensors(layer, sizes, attributes):
    before = {name: tensor.shape for name, tensor in layer.state_dict().items()}
    made = stand_in(layer, sizes, ())
    assert {name: getattr(made, name) for name in attributes} == attributes
    assert {name: tuple(tensor.shape) for name, tensor in made.state_dict().items()} == sizes
    assert {name: tensor.shape for name, tensor in layer.state_dict().items()} == before
    width = attributes.get("in_channels") or attributes.get("in_features") or 4
    x = torch.ones(2, width) if isinstance(made, nn.Linear | nn.LayerNorm) else torch.ones(2, width, 5, 5)
    assert made(x).isfinite().all()


def test_without_changes_it_is_the_same_function_on_its_own_tensors():
    whole = networks.network(["residual", "gated", "batch norm"])
    made = stand_in(whole, {}, ())
    made.load_state_dict(whole.state_dict())
    x = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(made(x), whole(x)) and not made.training
    ours, theirs = ({t.data_ptr() for t in m.state_dict().values() if t.numel()} for m in (made, whole))
    assert not ours & theirs


def test_a_removed_block_hands_its_input_on():
    made = stand_in(networks.network(["residual"]), {}, ["1"])
    x = torch.ones(1, 8, 2, 2)
    assert made[1](x, None, scale=2) is x
    assert not [name for name in made.state_dict() if name.startswith("1.")]


def test_on_the_meta_device_it_takes_no_memory():
    with torch.device("meta"):
        made = stand_in(networks.network(["residual", "batch norm"]), {}, ())
    assert {t.device.type for t in (*made.parameters(), *made.buffers())} == {"meta"}
