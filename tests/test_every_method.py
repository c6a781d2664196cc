"""What every stage method promises, whichever it is: found through the registry, so a new file is tested at once."""

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import tiny
import torch

from compress import registry
from compress.components import build, load_variant, save_variant
from compress.errors import MissingExtra
from compress.nn import cost
from compress.nn.qmodules import quantized
from compress.records import Held, Needs, Prediction, StageInput, StageResult

SAMPLES = {  # small, quick configurations; a method without an entry is tested with its defaults
    "prune.depth": {"blocks": 2, "samples": 1, "latent_size": 4},
    "prune.width": {"ratio": 0.5, "round_to": 4},
    "distill.output": {"steps": 3, "batch": 1, "pixels": 32, "precision": "float32"},
    "distill.feature": {"steps": 3, "batch": 1, "pixels": 32, "precision": "float32"},
    "distill.progressive": {"steps": 2, "batch": 1, "pixels": 32, "precision": "float32", "first": 2, "last": 1},
    "distill.consistency": {"steps": 2, "batch": 1, "pixels": 32, "precision": "float32", "grid": 4},
    "distill.diffusion_gan": {"steps": 2, "batch": 1, "pixels": 32, "precision": "float32"},
    "distill.adversarial": {"steps": 2, "batch": 1, "pixels": 32, "precision": "float32"},
    "distill.qat": {"steps": 3, "batch": 1, "pixels": 32, "precision": "float32"},
    "quantize.half": {"dtype": "bfloat16"},
    "quantize.adaround": {"steps": 3, "samples": 2, "latent_size": 4, "clip": False},
    "quantize.gptq": {"samples": 2, "latent_size": 4, "sweeps": 1, "clip": False},
    "quantize.mixed": {"bytes_per_weight": 0.7, "lpips": False, "clip": False, "samples": 1, "latent_size": 4},
    "quantize.palette": {"bits": 5, "channels": 4, "weighted": True},
    "quantize.rtn": {"bits": 4, "clip": False},
    "quantize.smooth": {"observer": "min_max", "clip": False},
    "quantize.static": {"observer": "min_max", "clip": False},
}
BEFORE = {"distill.qat": ("quantize.rtn",)}  # what a method must find done
ON_TOKENS = {"quantize.mixed": {"bytes_per_weight": 0.8}}  # scales weigh more in so narrow layers
OF_UNETS = ("distill.progressive", "distill.consistency", "distill.diffusion_gan", "distill.adversarial")
METHODS = registry.methods()
every_method = pytest.mark.parametrize("name", METHODS)


def config_of(name, **other):
    return registry.load(name).Config(**SAMPLES.get(name, {}) | other)


def component_of(name, seed=0):
    """What a method is tried on: the tiny decoder, or the UNet for methods of diffusion."""
    return tiny.unet(seed) if name in OF_UNETS else tiny.decoder(seed)


def example_of(name, count=4, size=8):
    return tiny.unet_inputs(count, size, seed=9) if name in OF_UNETS else (tiny.latents(count, size, seed=9),)


def start_of(name):
    """The variant and the prediction that a method is given: the tiny component, after what the method needs before."""
    variant = component_of(name)
    prediction = Prediction(ends=(variant.arch,))
    for before in BEFORE.get(name, ()):
        result = registry.load(before).apply(tiny.stage_input(Path(), variant), config_of(before))
        variant = replace(variant, arch=result.arch, module=result.module)
        prediction = registry.load(before).predict(prediction, config_of(before))
    return variant, prediction


def stage_of(name, folder):
    folder.mkdir(parents=True, exist_ok=True)
    given = {"inputs": tiny.unet_inputs(), "diffusion": tiny.diffusion()} if name in OF_UNETS else {}
    return tiny.stage_input(folder, start_of(name)[0], teacher=component_of(name, 1).module, **given)


def apply_to(name, stage, **other):
    try:
        return registry.load(name).apply(stage, config_of(name, **other))
    except MissingExtra as error:
        pytest.skip(str(error))


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A stage, what came of it, and the modules that it was given as they were before."""

    stage: StageInput
    result: StageResult
    variant: Any
    teacher: Any
    inputs: torch.Tensor


@cache
def run_of(name, seed=1):
    """One run for all that is asked of it, after `seed` was given to torch; nothing below writes into it."""
    with TemporaryDirectory() as folder, torch.random.fork_rng():
        stage = stage_of(name, Path(folder))
        before = {"variant": state_of(stage.variant.module), "teacher": state_of(stage.teacher)}
        inputs = stage.inputs[0].clone()
        torch.manual_seed(seed)
        return Run(stage=stage, result=apply_to(name, stage), inputs=inputs, **before)


def applied(name):
    return run_of(name).result


def state_of(module):
    modules = {n: (id(m), type(m), m.training, len(m._forward_hooks)) for n, m in module.named_modules()}
    tensors = module.state_dict(keep_vars=True)
    return modules, {n: (id(t), t.clone(), t.requires_grad) for n, t in tensors.items()}


def same_state(one, other):
    modules, tensors = one
    return (
        modules == other[0]
        and tensors.keys() == other[1].keys()
        and all(tensors[n][::2] == other[1][n][::2] and torch.equal(tensors[n][1], other[1][n][1]) for n in tensors)
    )


def test_there_are_methods_and_every_sample_is_of_one():
    assert METHODS and set(SAMPLES) <= set(METHODS)


@every_method
def test_its_defaults_validate_or_a_sample_stands_in(name):
    config = registry.load(name).Config
    required = {key for key, field in config.model_fields.items() if field.is_required()}
    assert required <= set(SAMPLES.get(name, {})), f"{name} has required keys: give SAMPLES an entry"
    assert config(**{key: SAMPLES[name][key] for key in required}) if required else config_of(name)
    sample = config_of(name)
    assert config.model_validate_json(sample.model_dump_json()) == sample


@every_method
def test_its_file_says_source_difference_and_cost(name):
    described = registry.describe(name)
    assert described.source and described.differs and described.cost and described.needs in set(Needs)
    assert all(option.help for option in described.options), "every key needs a description"


@every_method
def test_it_has_a_test_file(name):
    kind, _, method = name.partition(".")
    assert (Path(__file__).parent / "compress" / kind / f"test_{method}.py").exists()


@every_method
def test_it_leaves_its_argument_and_the_teacher_alone(name):
    run = run_of(name)
    stage, result = run.stage, run.result
    assert same_state(run.variant, state_of(stage.variant.module)) and same_state(run.teacher, state_of(stage.teacher))
    assert torch.equal(stage.inputs[0], run.inputs)
    assert result.module is not stage.variant.module
    if registry.load(name).NEEDS == Needs.TRAINING:  # what was trained in place must be a copy
        old = {t.data_ptr() for t in stage.variant.module.state_dict().values()}
        assert not any(t.data_ptr() in old for t in result.module.state_dict().values())


@every_method
def test_the_same_seed_gives_the_same_bits_whatever_torch_drew_before(name):
    one, two = run_of(name).result, run_of(name, seed=2).result
    first, second = one.module.state_dict(), two.module.state_dict()
    assert first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)
    assert all(getattr(one, n) == getattr(two, n) for n in ("arch", "achieved", "skipped", "notes", "tables"))


@every_method
def test_the_result_is_ready_to_use_and_makes_finite_pictures_of_the_same_shape(name):
    module = applied(name).module
    assert not any(m.training for m in module.modules())
    assert not any(p.requires_grad for p in module.parameters())
    for size in (4, 8) if name in OF_UNETS else (4, 9):
        inputs = example_of(name, 2, size)
        made = module(*inputs)
        assert made.shape == component_of(name).module(*inputs).shape and made.dtype == torch.float32
        assert made.isfinite().all()
        assert name in OF_UNETS or (made.min() >= 0 and made.max() <= 1)


@every_method
def test_it_says_what_was_asked_and_met_it(name):
    result = applied(name)
    assert result.achieved and all(item.met and item.what and item.unit for item in result.achieved)
    assert all(item.name and item.reason for item in result.skipped)


@every_method
def test_the_result_rebuilds_from_its_files(name, tmp_path):
    result = applied(name)
    save_variant(replace(component_of(name), arch=result.arch, module=result.module), tmp_path / "saved")
    back = load_variant(tmp_path / "saved")
    inputs = example_of(name)
    assert back.arch == result.arch
    assert torch.equal(back.module(*inputs), result.module(*inputs))
    if not quantized(result.module):
        plain = build(result.arch)
        plain.load_state_dict(result.module.state_dict())
        assert torch.equal(plain(*inputs), result.module(*inputs))


@every_method
def test_what_was_planned_is_what_came(name):
    ends = registry.load(name).predict(start_of(name)[1], config_of(name))
    result = applied(name)
    example = example_of(name, 1, 4)
    done = cost.measure(result.module, example)
    bounds = [cost.measure(build(end), example) for end in ends.ends]
    for figure in ("macs", "parameters"):
        values = [getattr(bound, figure) for bound in bounds]
        assert min(values) <= getattr(done, figure) <= max(values)
    if len(ends.ends) == 1:
        assert result.arch == ends.ends[0]
    bits = {layer.layer.bits for layer in quantized(result.module).values()}
    first = Held(bits=ends.weight_bits, granularity=ends.granularity, activation_bits=ends.activation_bits)
    allowed = {h.bits for h in (first, *ends.others)} - {32}
    assert bits <= allowed if ends.others else bits == allowed
    ranges = {layer.layer.input.bits for layer in quantized(result.module).values() if layer.layer.input}
    assert ranges == ({ends.activation_bits} if ends.activation_bits < 32 else set())
    forms = {(h.bits, h.granularity) for h in (first, *ends.others)}
    assert all((layer.layer.bits, layer.layer.granularity) in forms for layer in quantized(result.module).values())


@pytest.mark.parametrize("name", registry.names("quantize"))
def test_dead_channels_and_constants_stay_finite(name, tmp_path):
    """A channel of zero weights, an activation that never changes, a layer whose ReLU-like outputs are all nothing."""
    variant = start_of(name)[0]
    module = variant.module
    module.conv_in.weight[3] = 0.0  # a channel that is its bias
    module.levels[1].resnets[0].conv1.weight.zero_()  # a constant
    module.levels[1].resnets[0].conv1.bias.fill_(0.3)
    module.levels[2].resnets[0].norm2.weight.zero_()  # what its activation lets through is nothing
    module.levels[2].resnets[0].norm2.bias.fill_(-200.0)
    result = apply_to(name, tiny.stage_input(tmp_path, variant))
    assert all(item.met for item in result.achieved)
    hold_to_finite(result)
    x = tiny.latents(2, seed=5)
    made, expected = result.module(x), module(x)
    assert made.isfinite().all()
    assert float((made - expected).square().mean()) < 0.05 * float(expected.var())


@pytest.mark.parametrize("name", registry.names("quantize"))
def test_dead_rows_of_layers_on_tokens_stay_finite(name, tmp_path):
    """The same for linear layers and embeddings; what a backend leaves in float there is for its own tests to say."""
    variant = tiny.text()
    first, second = variant.module.encoder.layers
    variant.module.embeddings.token_embedding.weight[7] = 0.0
    first.self_attn.v_proj.weight[3] = 0.0  # a channel without even a bias
    first.self_attn.v_proj.bias[3] = 0.0
    first.mlp.fc1.weight.zero_()  # nothing passes its activation
    first.mlp.fc1.bias.fill_(-200.0)
    second.self_attn.out_proj.weight.zero_()  # a constant
    second.self_attn.out_proj.bias.fill_(0.3)
    result = apply_to(name, tiny.stage_input(tmp_path, variant, inputs=tiny.text_inputs()), **ON_TOKENS.get(name, {}))
    hold_to_finite(result)
    ids = tiny.text_inputs(4, seed=5)
    made, expected = result.module(*ids), variant.module(*ids)
    assert made.isfinite().all()
    assert float((made - expected).square().mean()) < 0.05 * float(expected.var())


def hold_to_finite(result):
    for layer in quantized(result.module).values():
        assert layer.scale.isfinite().all() and layer.qdata.float().isfinite().all()
        ranges = [grid for grid in (layer.layer.input, layer.layer.output) if grid is not None]
        assert all(0 < grid.scale < float("inf") for grid in ranges)
