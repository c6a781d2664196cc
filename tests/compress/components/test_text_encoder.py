"""The text encoder's own statements: the published size, transformers' outputs, causality, what may be cut."""

import importlib.util
import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from compress import components
from compress.components import build, text_encoder
from compress.components.text_encoder import TextEncoderConfig, TextLayerConfig
from compress.nn.structure import example_inputs, take_channels
from compress.prune import depth
from compress.records import Arch

TINY = TextEncoderConfig(
    vocabulary=40,
    positions=9,
    width=12,
    head_dim=4,
    activation="quick_gelu",
    layers=(TextLayerConfig(heads=3, feed_forward=20), TextLayerConfig(heads=2, feed_forward=8)),
)
PRESETS = ["mobilediffusion/text_encoder", "stable-diffusion-1.5/text_encoder"]


def seeded(config=TINY, seed=0):
    module = build(Arch(kind="text_encoder.text_encoder", config=config)).requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for tensor in module.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.4)
    return module


def ids(count=2, length=9, seed=0):
    return torch.randint(0, 40, (count, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", PRESETS)
def test_the_published_size(name):
    arch = components.read_arch(components.find(name))
    kind = components.kind_of(arch.kind)
    with torch.device("meta"):
        module = kind.build(arch.config).eval()
    tokens = example_inputs(kind, arch.config, 512)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        states = module(*tokens)
    assert sum(p.numel() for p in module.parameters()) == 123_060_480
    assert components.component_cost(name, 512).parameters == 123_060_480
    assert tokens[0].dtype == torch.int64 and states.shape == (1, 77, 768)
    by_hand = 12 * (77 * (4 * 768**2 + 2 * 768 * 3072) + 2 * 77 * 77 * 768)
    assert counter.get_total_flops() == 2 * by_hand


@given(seed=st.integers(0, 2**31), place=st.integers(1, 8))
@settings(max_examples=20)
def test_later_tokens_cannot_change_earlier_states(seed, place):
    module, tokens = seeded(), ids(seed=seed)
    changed = tokens.clone()
    changed[:, place] = (changed[:, place] + 1) % 40
    before, after = module(tokens), module(changed)
    torch.testing.assert_close(after[:, :place], before[:, :place])
    assert (after[:, place:] - before[:, place:]).abs().amax(dim=(0, 2)).min() > 1e-6  # and every later one does change
    torch.testing.assert_close(module(tokens[:, :place]), before[:, :place], rtol=1e-4, atol=1e-5)


def test_one_layer_by_its_formula():
    config = replace(TINY, layers=TINY.layers[:1])
    module, tokens = seeded(config).double(), ids()
    state = module.state_dict()

    def norm(x, name):
        centred = x - x.mean(dim=-1, keepdim=True)
        deviation = (centred.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()
        return centred / deviation * state[f"{name}.weight"] + state[f"{name}.bias"]

    def linear(x, name):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    x = state["embeddings.token_embedding.weight"][tokens] + state["embeddings.position_embedding.weight"]
    layer = "encoder.layers.0"
    q, k, v = (linear(norm(x, f"{layer}.layer_norm1"), f"{layer}.self_attn.{p}_proj") for p in "qkv")
    mixed = torch.zeros_like(q)
    for head in range(3):
        part = slice(4 * head, 4 * head + 4)
        for i in range(9):
            scores = (q[:, i : i + 1, part] * k[:, : i + 1, part]).sum(dim=-1) / 2
            weights = scores.exp() / scores.exp().sum(dim=1, keepdim=True)
            mixed[:, i, part] = (weights[:, :, None] * v[:, : i + 1, part]).sum(dim=1)
    x = x + linear(mixed, f"{layer}.self_attn.out_proj")
    inner = linear(norm(x, f"{layer}.layer_norm2"), f"{layer}.mlp.fc1")
    x = x + linear(inner / (1 + torch.exp(-1.702 * inner)), f"{layer}.mlp.fc2")
    torch.testing.assert_close(module(tokens), norm(x, "final_layer_norm"))


def test_ids_of_32_bits_and_short_texts_are_welcome_and_long_ones_refused():
    module = seeded()
    assert torch.equal(module(ids().int()), module(ids()))
    assert module(ids(length=1)).shape == (2, 1, 12)
    with pytest.raises(ValueError, match="10 tokens; this encoder has 9 positions"):
        module(torch.zeros(1, 10, dtype=torch.int64))


@pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="transformers, the oracle, is not installed"
)
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_outputs_and_names_are_those_of_transformers(activation):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import CLIPTextConfig, CLIPTextModel

        theirs = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=40,
                hidden_size=12,
                intermediate_size=20,
                num_hidden_layers=2,
                num_attention_heads=3,
                max_position_embeddings=9,
                hidden_act=activation,
                bos_token_id=0,
                eos_token_id=1,
                pad_token_id=1,
            )
        ).eval()
    ours = seeded(replace(TINY, activation=activation, layers=TINY.layers[:1] * 2))
    state = {name.removeprefix("text_model."): tensor for name, tensor in theirs.state_dict().items()}
    state.pop("embeddings.position_ids", None)
    assert {n: t.shape for n, t in state.items()} == {n: t.shape for n, t in ours.state_dict().items()}
    theirs.load_state_dict({n: ours.state_dict()[n.removeprefix("text_model.")] for n in theirs.state_dict()})
    with torch.no_grad():
        expected = theirs(ids()).last_hidden_state
    torch.testing.assert_close(ours(ids()), expected, rtol=1e-5, atol=1e-5)


@given(seed=st.integers(0, 2**31))
@settings(max_examples=15)
def test_cutting_what_nobody_reads_changes_nothing(seed):
    module, groups = seeded(), text_encoder.channel_groups(TINY)
    generator = torch.Generator().manual_seed(seed)
    state, kept = module.state_dict(), {}
    for group in groups:
        many = int(torch.randint(1, group.width + 1, (1,), generator=generator))
        kept[group.name] = torch.randperm(group.width, generator=generator)[:many].sort().values
        gone = torch.ones(group.width, dtype=torch.bool)
        gone[kept[group.name]] = False
        for part in group.slices:
            assert state[part.tensor].shape[part.axis] == group.width * part.span
            if part.role == "reads":
                state[part.tensor].movedim(part.axis, 0)[gone.repeat_interleave(part.span)] = 0
    config = text_encoder.with_widths(TINY, {name: len(index) for name, index in kept.items()})
    cut = build(Arch(kind="text_encoder.text_encoder", config=config)).requires_grad_(False)
    cut.load_state_dict(take_channels(state, groups, kept))
    module.load_state_dict(state)
    torch.testing.assert_close(cut(ids()), module(ids()), rtol=1e-4, atol=1e-5)


def test_a_layer_that_adds_nothing_can_be_taken_out():
    for index, block in enumerate(text_encoder.blocks(TINY)):
        module = seeded()
        layer = module.encoder.layers[index]
        for linear in (layer.self_attn.out_proj, layer.mlp.fc2):
            linear.weight.zero_()
            linear.bias.zero_()
        removal = text_encoder.without_blocks(TINY, [block.name])
        without = build(Arch(kind="text_encoder.text_encoder", config=removal.config)).requires_grad_(False)
        without.load_state_dict(depth.rename(module.state_dict(), removal, block.name))
        torch.testing.assert_close(without(ids()), module(ids()))


@pytest.mark.parametrize(
    "change, words",
    [
        ({"width": 0}, "width must be positive"),
        ({"layers": (TextLayerConfig(heads=0, feed_forward=8),)}, "layers.0: 0 heads and 8 inner channels"),
    ],
)
def test_what_could_not_be_built_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        replace(TINY, **change)
