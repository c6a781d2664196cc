"""What a layer read and made, and the summand behind it, in every shape of residual sum that the components have."""

import pytest
import tiny
import torch
from torch import nn

from calibration.errors import DataError
from calibration.watching import watch

CASES = {
    "decoder": (tiny.decoder, lambda: (tiny.latents(2),), "levels.1.resnets.0.conv2", "levels.1.resnets.0"),
    "unet block": (
        tiny.unet,
        lambda: tiny.unet_inputs(2),
        "down_blocks.1.resnets.1.conv2.pointwise",
        "down_blocks.1.resnets.1",
    ),
    "tokens to map": (
        tiny.unet,
        lambda: tiny.unet_inputs(2),
        "up_blocks.0.attentions.1.proj_out",
        "up_blocks.0.attentions.1",
    ),
}


def calls(module, inputs, names):
    found = {}
    watch(module, inputs, names, found.__setitem__)
    return found


@pytest.mark.parametrize("case", CASES)
def test_the_summand_completes_the_block(case):
    """Output plus summand is what the enclosing block returns."""
    build, inputs, layer, block = CASES[case]
    module, results = build().module, {}
    handle = module.get_submodule(block).register_forward_hook(lambda part, args, out: results.update(out=out))
    module(*inputs())
    handle.remove()
    call = calls(module, inputs(), [layer])[layer]
    total = (
        call.output.transpose(1, 2).unflatten(2, results["out"].shape[2:]) if call.output.dim() == 3 else call.output
    )
    torch.testing.assert_close(total + call.added, results["out"])
    torch.testing.assert_close(module.get_submodule(layer)(call.input), call.output)


def test_sums_inside_a_transformer_layer_are_seen_too():
    module, inputs = tiny.text().module, tiny.text_inputs()
    names = ["encoder.layers.0.self_attn.out_proj", "encoder.layers.0.mlp.fc2", "encoder.layers.1.mlp.fc2"]
    found = calls(module, inputs, names)
    between = found[names[0]].output + found[names[0]].added
    torch.testing.assert_close(found[names[1]].added, between)
    torch.testing.assert_close(module.final_layer_norm(found[names[2]].output + found[names[2]].added), module(*inputs))


def test_what_is_added_to_nothing_and_what_is_only_broadcast_has_no_summand():
    found = calls(tiny.unet().module, tiny.unet_inputs(), ["down_blocks.0.resnets.0.conv1", "conv_in"])
    assert [call.added for call in found.values()] == [None, None]
    assert list(found) == ["conv_in", "down_blocks.0.resnets.0.conv1"], "in order of execution"


class Split(nn.Module):
    """The output's half, not the output, is added to something; and one layer never runs."""

    def __init__(self):
        super().__init__()
        self.first, self.idle = nn.Linear(4, 4), nn.Linear(4, 4)
        self.after = nn.ReLU()
        self.ran = 0

    def forward(self, x):
        half = self.first(x).chunk(2, dim=1)[0]
        half = half + x[:, :2]
        self.ran += 1
        return self.after(half)


def test_a_part_of_an_output_is_not_the_output():
    assert calls(Split(), (torch.ones(3, 4),), ["first"])["first"].added is None


def test_a_layer_that_never_ran_is_an_error_and_the_module_is_left_alone():
    module = Split()
    with pytest.raises(DataError, match="never called in Split: idle"):
        calls(module, (torch.ones(3, 4),), ["first", "idle"])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


@pytest.mark.parametrize("case", CASES)
def test_what_is_written_into_an_output_is_what_the_rest_of_the_pass_sees(case):
    """Twice the output, whether the next to see it is a sum, a norm or a view: as with twice the weights."""
    build, inputs, layer, block = CASES[case]
    module, twice = build().module, build().module
    for name in (layer, f"{block}.conv1", f"{block}.proj_in"):
        if isinstance(dict(module.named_modules()).get(name), nn.Conv2d | nn.Linear):
            results = {}
            for tensor in twice.get_submodule(name).parameters():
                tensor.mul_(2)
            handle = module.register_forward_hook(lambda part, args, out, results=results: results.update(out=out))
            watch(module, inputs(), [name, last_of(module)], lambda n, call, name=name: double(n == name, call.output))
            handle.remove()
            torch.testing.assert_close(results["out"], twice(*inputs()), msg=name)
            for tensor in twice.get_submodule(name).parameters():
                tensor.div_(2)


def last_of(module):
    """A layer behind all others, without anything after it."""
    return "linear" if hasattr(module, "linear") else "conv_out"


def double(doit, output):
    if doit:
        output.mul_(2)


def test_every_function_between_two_layers_comes_after_the_telling():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.two(torch.relu(self.one(x).unsqueeze(0).transpose(1, 2).squeeze(0).T))

    module = Plain()
    results = {}
    module.register_forward_hook(lambda part, args, out: results.update(out=out))
    watch(module, (torch.ones(2, 3),), ["one", "two"], lambda name, call: double(name == "one", call.output.zero_()))
    torch.testing.assert_close(results["out"], module.two.bias.expand(2, 3) * 0)
