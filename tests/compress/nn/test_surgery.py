"""New trees, shared tensors, and an old tree that stays as it was."""

import pytest
import tiny
import torch
from torch import nn

from compress.nn.affine import PerChannel, absmax_scale, activation_range, round_to_scale
from compress.nn.qmodules import QuantizedLayer, quantizable, quantize_layer, quantized
from compress.nn.surgery import float_twin, replaced, twin


def snapshot(module):
    return {name: (id(m), type(m)) for name, m in module.named_modules()}, {
        name: (id(t), t.clone()) for name, t in module.state_dict(keep_vars=True).items()
    }


def assert_untouched(module, before):
    modules, tensors = before
    assert {name: (id(m), type(m)) for name, m in module.named_modules()} == modules
    after = module.state_dict(keep_vars=True)
    assert after.keys() == tensors.keys()
    assert all(id(after[n]) == i and torch.equal(after[n], t) for n, (i, t) in tensors.items())


def quantized_twin(layer, given=None):
    scale = absmax_scale(layer.weight, bits=8, granularity=PerChannel())
    weight = round_to_scale(layer.weight.detach(), scale, bits=8, granularity=PerChannel())
    return quantize_layer(layer, QuantizedLayer(bits=8, granularity=PerChannel(), input=given), weight)


def test_a_twin_has_new_modules_and_the_same_tensors():
    module = tiny.decoder().module
    before = snapshot(module)
    new = twin(module)
    assert_untouched(module, before)
    old_modules = {id(m) for m in module.modules()}
    assert not any(id(m) in old_modules for m in new.modules())
    assert all(a is b for a, b in zip(module.parameters(), new.parameters(), strict=True))


def test_tied_weights_stay_tied():
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    new = twin(nn.Sequential(first, second))
    assert new[0].weight is new[1].weight is first.weight


def test_replacing_changes_the_twin_alone():
    module = tiny.decoder().module
    before = snapshot(module)
    swap = nn.Identity()
    new = replaced(module, {"levels.0.resnets.1": swap, "conv_out": nn.Identity()})
    assert new.levels[0].resnets[1] is swap
    assert_untouched(module, before)


def test_a_name_that_is_no_submodule_is_an_error():
    with pytest.raises(KeyError, match="levels.9"):
        replaced(tiny.decoder().module, {"levels.9": nn.Identity()})


def test_a_float_twin_computes_the_same_without_quantized_layers():
    module, x = tiny.decoder().module, tiny.latents(1)
    variant = replaced(module, {name: quantized_twin(layer) for name, layer in quantizable(module).items()})
    plain = float_twin(variant)
    assert not quantized(plain) and quantized(variant)
    assert set(quantizable(plain)) == set(quantized(variant))
    torch.testing.assert_close(plain(x), variant(x))


@pytest.mark.parametrize("bias", [True, False])
def test_a_float_twin_keeps_shapes_of_every_layer_and_the_bias_unrounded(bias):
    grid = activation_range(-2.0, 2.0)
    network = nn.Sequential(
        nn.Conv2d(4, 6, (3, 1), stride=(2, 1), padding=(1, 0), groups=2, bias=bias),
        nn.Flatten(),
        nn.Linear(48, 5, bias=bias),
    ).requires_grad_(False)
    variant = replaced(network, {name: quantized_twin(network.get_submodule(name), grid) for name in ("0", "2")})
    exact = float_twin(variant)
    assert [tuple(p.shape) for p in exact.parameters()] == [tuple(p.shape) for p in network.parameters()]
    if bias:
        assert torch.equal(exact[0].bias, network[0].bias)
        assert not torch.equal(exact[0].bias, variant[0].effective_bias())
    else:
        assert exact[0].bias is None and exact[2].bias is None
