"""Statistics of submodules against the activations themselves, and the module left as it was."""

import pytest
import torch
from torch import nn

from calibration.collect import collect
from calibration.errors import DataError
from calibration.observers import start


def tiny() -> nn.Sequential:
    generator = torch.Generator().manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 1))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module


def batches(count: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, 3, 8, 8, generator=generator) for _ in range(count)]


def calls(count: int = 3) -> list[tuple[torch.Tensor, ...]]:
    return [(batch,) for batch in batches(count)]


def hook_count(module: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())


def test_histograms_are_those_of_the_activations():
    module = tiny()
    stats = collect(module, iter(calls()), ["0", "1", "2"])
    x = torch.cat(batches())
    with torch.no_grad():
        before = module[0](x)
        after = before.clamp(min=0)
        out = module[2](after)
    for found, values in [
        (stats["0"].input, x),
        (stats["0"].output, before),
        (stats["1"].input, before),  # the ReLU works in place: seen before it ran
        (stats["1"].output, after),
        (stats["2"].output, out),
    ]:
        expected = start(values)
        assert found.count == values.numel()
        assert found.minimum == pytest.approx(expected.minimum, rel=1e-5)
        assert found.maximum == pytest.approx(expected.maximum, rel=1e-5)
        assert (found.counts - expected.counts).abs().sum() <= 4  # batch size may round differently


def test_one_pass_serves_others_too_and_counts_as_many_values_of_each_sample():
    module, calls_seen = tiny(), []
    passes = []
    module.register_forward_pre_hook(lambda part, args: passes.append(len(args[0])))
    parts = [(batches()[0],), (batches()[1][:1],)]
    stats = collect(module, parts, ["0", "2"], most=30, also=[lambda *call: calls_seen.append(call[:2])])
    assert passes == [2, 1]
    assert calls_seen == [("0", "input"), ("0", "output"), ("2", "input"), ("2", "output")] * 2
    for found in (stats["0"].input, stats["0"].output, stats["2"].output):
        assert found.count in range(2 * 20 + 20, 2 * 30 + 30 + 1)


def test_order_of_batches_does_not_matter():
    module = tiny()
    forward = collect(module, calls(), ["2"])["2"].output
    backward = collect(module, reversed(calls()), ["2"])["2"].output
    assert torch.equal(forward.counts, backward.counts)


def test_the_module_is_left_as_it_was():
    module = tiny().train()
    module[2].eval()
    weights = {name: t.clone() for name, t in module.state_dict().items()}
    collect(module, calls(), ["0", "2"])
    assert hook_count(module) == 0
    assert [module.training, module[0].training, module[1].training, module[2].training] == [True, True, True, False]
    assert all(torch.equal(t, weights[name]) for name, t in module.state_dict().items())
    assert all(p.grad is None for p in module.parameters())


def test_batch_norm_and_dropout_are_run_in_eval_mode():
    module = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.9)).train()
    stats = collect(module, calls(1), ["1"])
    assert torch.equal(module[0].running_mean, torch.zeros(3))
    assert torch.equal(stats["1"].input.counts, stats["1"].output.counts)


def test_unknown_names_are_all_named():
    with pytest.raises(DataError, match=r"'convv_in', 'nowhere'.*did you mean 'conv_in'"):
        collect(nn.ModuleDict({"conv_in": nn.Identity()}), [], ["convv_in", "nowhere", "conv_in"])


def test_a_module_that_is_never_called_is_named():
    module = tiny()
    module.spare = nn.Identity()
    module.forward = lambda x: module[0](x)
    with pytest.raises(DataError, match=r"never called.*'spare'"):
        collect(module, calls(), ["0", "spare"])
    with pytest.raises(DataError, match="never called"):
        collect(module, [], ["0"])


def test_nan_is_named_and_hooks_are_gone():
    module = tiny().train()
    with torch.no_grad():
        module[2].bias[0] = float("nan")
    with pytest.raises(DataError, match="the output of '2' holds NaN"):
        collect(module, calls(), ["0", "2"])
    assert hook_count(module) == 0
    assert module.training


def test_outputs_that_are_not_one_tensor_are_refused_by_name():
    module = nn.Sequential(nn.LSTM(8, 4))
    with pytest.raises(DataError, match="the output of '0' is tuple"):
        collect(module, [(torch.zeros(2, 3, 8),)], ["0"])
    assert hook_count(module) == 0
