"""Each importance against its definition: loops over weights, real removals, brute force over subsets."""

import itertools

import pytest
import tiny
import torch
from torch import nn
from torch.nn import functional

from compress.components import kind_of
from compress.prune import _importance, width
from compress.prune._elimination import Consumer, eliminate

ALL = ("magnitude", "activation", "taylor", "reconstruction")


def watched(variant, inputs, seed=0):
    batches = list(zip(*(x.split(1) for x in inputs), strict=True))
    return _importance.Watched(
        module=variant.module, batches=batches, positions=10**6, seed=seed, progress=lambda *_: None
    )


def groups_of(variant):
    return kind_of(variant.arch.kind).channel_groups(variant.arch.config)


def group_of(variant, name):
    return next(g for g in groups_of(variant) if g.name == name)


def seeded(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_activation_is_weight_times_input_norm():
    """Wanda's |W| * ||X||, squared and summed over a channel's weights, by loops."""
    variant, block = tiny.decoder(), "levels.1.resnets.0"
    group = group_of(variant, f"{block}.hidden")
    seen = []
    layer = variant.module.get_submodule(f"{block}.conv2")
    handle = layer.register_forward_pre_hook(lambda part, args: seen.append(args[0]))
    variant.module(tiny.latents())
    handle.remove()
    expected = []
    for channel in range(group.width):
        energy = sum(float(v) ** 2 for v in seen[0][:, channel].flatten())
        expected.append(sum(float(w) ** 2 * energy for w in layer.weight[:, channel].flatten()) ** 0.5)
    got = _importance.activation(watched(variant, (tiny.latents(),)), [group])[group.name]
    mean = sum(expected) / len(expected)
    assert got.tolist() == pytest.approx([value / mean for value in expected], rel=1e-4)


def without_readers(variant, group, channel):
    """The network in which nobody reads one channel of a group."""
    module = type(variant.module)(variant.arch.config).eval()
    module.load_state_dict(variant.module.state_dict())
    for part in group.slices:
        if part.role == "reads":
            first = part.offset + channel * part.span
            module.state_dict()[part.tensor].narrow(part.axis, first, part.span).zero_()
    return module.requires_grad_(False)


@pytest.mark.parametrize(
    "build, inputs, name",
    [
        (tiny.decoder, lambda: (tiny.latents(16, 4),), "levels.0.resnets.1.hidden"),
        (tiny.decoder, lambda: (tiny.latents(16, 4),), "levels.1.stream"),
        (tiny.small_unet, lambda: tiny.unet_inputs(12, 4), "down_blocks.1.resnets.0.hidden"),
        (tiny.small_unet, lambda: tiny.unet_inputs(12, 4), "up_blocks.0.attentions.1.transformer_blocks.0.ff.inner"),
        (tiny.text, lambda: tiny.text_inputs(24), "encoder.layers.0.mlp.inner"),
        (tiny.text, lambda: tiny.text_inputs(24), "encoder.layers.1.self_attn.heads"),
    ],
)
def test_gradients_and_reconstruction_tell_the_change_of_the_output(build, inputs, name):
    """Squared change of the output, channel by channel, by really removing it; both in the unit and roughly right."""
    variant, given = build(), inputs()
    group, whole = group_of(variant, name), variant.module(*given)
    real = torch.tensor(
        [
            float((without_readers(variant, group, c)(*given) - whole).square().sum()) / len(given[0])
            for c in range(group.width)
        ]
    )
    # a few probes of the output are a noisy estimate of what many of them agree on
    drawn = [_importance.taylor(watched(variant, given, seed), [group])[group.name] for seed in range(8)]
    slopes = torch.stack(drawn).mean(dim=0)
    here = watched(variant, given)
    missed = _importance.reconstruction(here, [group], compensated=False)[group.name]
    assert 0.4 < float(slopes.sum() / real.sum()) < 2.5
    if group.width > 4:
        assert torch.corrcoef(torch.stack([slopes, real]))[0, 1] > 0.5
        # The first to go is judged alone; those after it with what is missing already.
        assert float(real[missed.argmin()]) <= float(real.quantile(0.35))


def test_sensitivity_is_the_squared_change_of_the_output_per_unit():
    """A network that is linear behind the layer: its Jacobian is known."""
    first, last = nn.Linear(3, 4).double(), nn.Linear(4, 2).double()
    net = nn.Sequential(first, last).requires_grad_(False)
    batches = [(x,) for x in seeded(4000, 1, 3)]
    here = _importance.Watched(module=net, batches=batches, positions=9, seed=0, progress=lambda *_: None)
    got = _importance.sensitivities(here, ["0"])["0"]
    torch.testing.assert_close(got, last.weight.square().sum(0), rtol=0.1, atol=0.0)


# ------------------------------------------------------------------------------------------------------- elimination


def problem(channels=6, elements=2, outputs=3, seed=0, extra=0):
    size = channels * elements + extra
    mixed = torch.eye(size, dtype=torch.float64) + 0.3 * seeded(size, size, seed=seed + 1)
    x = seeded(200, size, seed=seed) @ mixed
    weight = seeded(outputs, channels * elements + extra, seed=seed + 2)
    consumer = Consumer(weight=weight, gram=x.T @ x / len(x), first=extra, size=channels * elements)
    return x, weight, consumer


def damage(x, weight, columns, *, compensated):
    """The squared error without some columns, by least squares on the others, or by leaving these as they are."""
    stay = [c for c in range(x.shape[1]) if c not in columns]
    if not compensated:
        return float((x[:, columns] @ weight[:, columns].T).square().sum(1).mean())
    found = torch.linalg.lstsq(x[:, stay], x @ weight.T, driver="gelsd").solution
    return float((x @ weight.T - x[:, stay] @ found).square().sum(1).mean())


def columns_of(channels, elements, extra):
    return [extra + c * elements + e for c in channels for e in range(elements)]


@pytest.mark.parametrize("compensated", [True, False])
@pytest.mark.parametrize("extra", [0, 3])
@pytest.mark.parametrize("seed", range(4))
def test_every_step_of_the_search_is_the_best_step(compensated, extra, seed):
    """Against least squares with every other channel removed as the next: same choice, same total error."""
    x, weight, consumer = problem(seed=10 * seed, extra=extra)
    scores = eliminate([consumer], 6, 1, compensated=compensated)
    order, gone, before = scores.argsort().tolist(), [], 0.0
    for channel in order[:-1]:
        tried = {
            c: damage(x, weight, columns_of([*gone, c], 2, extra), compensated=compensated)
            for c in range(6)
            if c not in gone
        }
        assert tried[channel] == pytest.approx(min(tried.values()), rel=1e-3)
        if tried[channel] - before > float(scores[gone].max() if gone else 0):
            assert float(scores[channel]) == pytest.approx(tried[channel] - before, rel=1e-3)
        gone.append(channel)
        before = tried[channel]


@pytest.mark.parametrize("compensated", [True, False])
def test_the_search_is_close_to_the_best_of_all_subsets(compensated):
    for seed in range(0, 50, 5):
        x, weight, consumer = problem(seed=seed)
        kept = width.keep_evenly(eliminate([consumer], 6, 1, compensated=compensated).float(), 3, 1).tolist()
        mine = damage(x, weight, columns_of([c for c in range(6) if c not in kept], 2, 0), compensated=compensated)
        every = [
            damage(x, weight, columns_of(subset, 2, 0), compensated=compensated)
            for subset in itertools.combinations(range(6), 3)
        ]
        assert mine <= 1.5 * min(every) and mine < sorted(every)[len(every) // 4]


def test_several_readers_are_weighed_together_and_norm_groups_pace_each_other():
    (_, _, one), (_, _, other) = problem(channels=8, seed=0), problem(channels=8, seed=50)
    both = eliminate([one, other], 8, 1, compensated=True)
    blocks = []
    for c in (one, other):
        inverse = torch.linalg.inv(c.gram)
        blocks.append(
            [
                float(
                    (
                        c.weight[:, [2 * k, 2 * k + 1]]
                        @ torch.linalg.inv(inverse[2 * k : 2 * k + 2, 2 * k : 2 * k + 2])
                        * c.weight[:, [2 * k, 2 * k + 1]]
                    ).sum()
                )
                for k in range(8)
            ]
        )
    together = [a + b for a, b in zip(*blocks, strict=True)]
    assert int(both.argmin()) == min(range(8), key=lambda k: together[k])
    paced = eliminate([one, other], 8, 4, compensated=True)
    for keep in (4, 8):
        kept = width.keep_evenly(paced.float(), keep, 4)
        assert [int((kept // 2 == group).sum()) for group in range(4)] == [keep // 4] * 4


@pytest.mark.parametrize("compensated", [True, False])
def test_a_copy_and_a_dead_channel_go_first(compensated):
    x = seeded(300, 5)
    x[:, 1] = 0.0
    x[:, 3] = x[:, 2] if compensated else 1e-3 * x[:, 3]
    consumer = Consumer(weight=seeded(2, 5, seed=1), gram=x.T @ x / 300, first=0, size=5)
    scores = eliminate([consumer], 5, 1, compensated=compensated)
    assert scores.isfinite().all() and set(scores.argsort()[:2].tolist()) in ({1, 2}, {1, 3})
    assert scores.float().unique().numel() == 5, "the order survives float32"


@pytest.mark.parametrize(
    "build, inputs",
    [
        (tiny.decoder, lambda: (tiny.latents(2),)),
        (tiny.encoder, lambda: (torch.rand(2, 3, 32, 32),)),
        (tiny.small_unet, lambda: tiny.unet_inputs(2)),
        (tiny.text, lambda: tiny.text_inputs(2)),
    ],
    ids=["decoder", "encoder", "unet", "text"],
)
@pytest.mark.parametrize("importance", ALL)
def test_every_importance_cuts_every_component(tmp_path, build, inputs, importance):
    variant, given = build(), inputs()
    config = width.Config(ratio=0.5, round_to=4, importance=importance, reconstruct=False)
    result = width.apply(tiny.stage_input(tmp_path, variant, inputs=given), config)
    (achieved,) = result.achieved
    assert achieved.met and result.module(*given).isfinite().all()
    assert result.module(*given).shape == variant.module(*given).shape


@pytest.mark.parametrize("importance", ["activation", "taylor", "reconstruction"])
def test_a_channel_that_says_nothing_goes_first(tmp_path, importance):
    """Its consumers' weights are large, but it is always 0: magnitude would keep it."""
    variant, block = tiny.decoder(), "levels.0.resnets.0"
    dead = torch.tensor([1, 6, 8, 13])  # one in each norm group
    state = variant.module.state_dict()
    state[f"{block}.norm2.weight"][dead] = 0.0
    state[f"{block}.norm2.bias"][dead] = 0.0
    state[f"{block}.conv2.weight"][:, dead] *= 10
    config = width.Config(ratio=0.25, round_to=4, importance=importance, reconstruct=False)
    result = width.apply(tiny.stage_input(tmp_path, variant), config)
    alive = [c for c in range(16) if c not in dead.tolist()]
    assert torch.equal(result.module.state_dict()[f"{block}.norm2.bias"], state[f"{block}.norm2.bias"][alive])


def test_attention_keys_are_scored_by_gradients():
    from dataclasses import replace as changed

    from compress.components import vae
    from compress.components._vae_config import Attention, Mid

    config = changed(
        tiny.DECODER, mid=Mid(before=(16,), attention=Attention(keys=16, values=16, scale_width=16), after=())
    )
    variant = tiny.decoder(config=config)
    groups = [g for g in vae.channel_groups(config) if g.name.startswith("mid.attention")]
    here = watched(variant, (tiny.latents(3, 4),))
    found = _importance.reconstruction(here, groups, compensated=True)
    assert torch.equal(found["mid.attention.keys"], _importance.taylor(here, [groups[0]])["mid.attention.keys"])
    assert all((scores > 0).all() for scores in found.values())
    assert functional.relu(found["mid.attention.values"]).sum() > 0
