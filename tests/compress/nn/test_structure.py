"""Channels are taken along the right axis of the right tensors, and nothing else changes."""

import torch

from compress.nn.structure import ChannelGroup, ChannelSlice, take_channels


def test_takes_rows_of_writers_and_columns_of_readers():
    state = {
        "a.weight": torch.arange(12.0).reshape(4, 3),
        "a.bias": torch.arange(4.0),
        "b.weight": torch.arange(8.0).reshape(2, 4),
        "other": torch.ones(5),
    }
    before = {name: tensor.clone() for name, tensor in state.items()}
    group = ChannelGroup(
        name="a",
        kind="inner",
        width=4,
        norm_groups=1,
        slices=(
            ChannelSlice(tensor="a.weight", axis=0, role="writes"),
            ChannelSlice(tensor="a.bias", axis=0, role="writes"),
            ChannelSlice(tensor="b.weight", axis=1, role="reads"),
        ),
    )
    cut = take_channels(state, [group], {"a": torch.tensor([1, 3])})
    assert cut["a.weight"].tolist() == [[3, 4, 5], [9, 10, 11]]
    assert cut["a.bias"].tolist() == [1, 3]
    assert cut["b.weight"].tolist() == [[1, 3], [5, 7]] and cut["b.weight"].is_contiguous()
    assert torch.equal(cut["other"], state["other"])
    assert all(torch.equal(state[name], tensor) for name, tensor in before.items())


def test_a_group_that_is_not_named_is_left_alone():
    group = ChannelGroup(
        name="a", kind="inner", width=2, norm_groups=1, slices=(ChannelSlice(tensor="w", axis=0, role="writes"),)
    )
    assert take_channels({"w": torch.ones(2, 2)}, [group], {})["w"].shape == (2, 2)
