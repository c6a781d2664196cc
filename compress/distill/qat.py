"""Quantization-aware training: train through the rounding of an already quantized variant, towards the float teacher.

Source: straight-through estimator, Jacob et al. 2018 (arXiv:1712.05877, section 3); learned weight scales with LSQ's
gradient, Esser et al. 2020 (arXiv:1902.08153), eqs. (2) and (3).
Differs: it starts from whatever integers and ranges a quantize stage left (any bits, granularity, convolutions
included), keeps their form and trains towards the float teacher's output; activation ranges stay as they were measured.
Cost: as distill.output, plus one rounding of every weight and activation per pass.
"""

import torch
from pydantic import Field
from torch import nn

from compress.distill import _lesson, _terms
from compress.distill._loop import Player, train
from compress.errors import UserError
from compress.nn import affine
from compress.nn.qmodules import QConv2d, QLinear, QuantizedLayer, quantized
from compress.nn.surgery import replaced, twin
from compress.records import Achieved, Needs, Prediction, StageInput, StageResult

NEEDS = Needs.TRAINING


class Config(_lesson.Lesson):
    """How long to train, on what, and what may move."""

    lr: float = Field(1e-4, gt=0, lt=1, description="Largest learning rate (Adam, warm-up then cosine).")
    error: _terms.Error = Field("log_mse", description="The output's error.")
    learn_scales: bool = Field(True, description="Train the weights' scales along with the weights.")


NO_GRID = (
    "distill.qat trains through the rounding to a grid; palettes and half precision have none: "
    "quantize with quantize.rtn or quantize.static before it, or distil before quantizing"
)


class Trainee(nn.Module):
    """A quantized layer whose weight, scale and bias can be trained; computes what the integers will compute."""

    def __init__(self, layer: QConv2d | QLinear, *, learn_scale: bool) -> None:
        super().__init__()
        self.layer = layer.layer
        self.operation = layer.operation
        weight = layer.quantized_weight
        self.weight = nn.Parameter(affine.dequantize(weight))
        self.log_scale = nn.Parameter(weight.scale.log(), requires_grad=learn_scale)
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        spec = self.layer
        scale = self.log_scale.exp()
        if spec.input is not None:
            x = through_grid(x.float(), spec.input)
        y = self.operation(x, through_rounding(self.weight, scale, spec), self.bias)
        return y if spec.output is None else through_grid(y.float(), spec.output)

    def integers(self) -> affine.QuantizedWeight:
        """The trained weight on its grid."""
        spec = self.layer
        scale = self.log_scale.detach().exp()
        return affine.round_to_scale(self.weight.detach(), scale, bits=spec.bits, granularity=spec.granularity)


def predict(prediction: Prediction, config: Config) -> Prediction:
    """Training changes neither shapes nor bits.

    Raises:
        UserError: nothing is quantized by then.
    """
    if prediction.weight_bits == 32:
        raise UserError(
            "distill.qat trains through the rounding of a quantized variant: put it after a quantize stage, "
            "with out_of_order: trains through the rounding"
        )
    if isinstance(prediction.granularity, affine.Palette | affine.Half):
        raise UserError(NO_GRID)
    return prediction


def apply(stage: StageInput, config: Config) -> StageResult:
    """Train a copy of the quantized variant towards the float teacher."""
    layers = {n: q for n, q in quantized(stage.variant.module).items() if isinstance(q, QConv2d | QLinear)}
    if not layers:
        raise UserError("distill.qat: this variant has no quantized layer; put it after a quantize stage")
    if any(isinstance(q.layer.granularity, affine.Palette | affine.Half) for q in layers.values()):
        raise UserError(NO_GRID)
    _refuse_training(config)
    swaps = {name: Trainee(layer, learn_scale=config.learn_scales) for name, layer in layers.items()}
    student = _own_tensors(replaced(stage.variant.module, swaps)).to(config.device)
    teacher = _lesson.teacher_of(stage, config)

    def loss(step: int) -> torch.Tensor:
        inputs = _lesson.inputs_at(stage, config, step)
        with _lesson.precision(config):
            with torch.no_grad():
                target = teacher(*inputs)
            made = student(*inputs)
        return _terms.error(made.float(), target.float(), config.error)

    state = train(
        [Player(name="student", module=student, loss=loss)],
        config.schedule(),
        scratch=stage.scratch,
        progress=stage.progress,
        validate=_lesson.validation(stage, config, teacher),
    )
    module = _with_integers(student.cpu(), layers)
    done = quantized(module)
    moved = sum(int((done[name].qdata != layer.qdata).sum()) for name, layer in layers.items())
    total = sum(layer.qdata.numel() for layer in layers.values())
    kept = sum(done[name].layer == layer.layer for name, layer in layers.items())
    return StageResult(
        arch=stage.variant.arch,
        module=module,
        achieved=(
            _lesson.steps_done(state, config.steps, stopped=state.spent(config.patience)),
            Achieved(
                what="quantized layers kept",
                requested=len(layers),
                achieved=kept,
                unit="layers",
                met=kept == len(layers),
            ),
        ),
        notes=(*_lesson.notes_of(state, config), f"{moved} of {total} integers ({moved / total:.2%}) moved"),
    )


def through_grid(x: torch.Tensor, grid: affine.ActivationRange) -> torch.Tensor:
    """Round an activation to its grid; gradients pass where it lies inside the range and stop where it is clipped."""
    low = -grid.zero_point * grid.scale
    high = (2**grid.bits - 1 - grid.zero_point) * grid.scale
    inside = x.clamp(low, high)
    return inside + (affine.fake_quantize(x, grid) - inside).detach()


def through_rounding(weight: torch.Tensor, scale: torch.Tensor, spec: QuantizedLayer) -> torch.Tensor:
    """A weight on its grid; the gradient to the scale is LSQ's: rounding error inside the range, the bound outside."""
    qmax = affine.signed_qmax(spec.bits)
    ones = affine.QuantizedWeight(
        qdata=torch.ones_like(weight), scale=scale, bits=spec.bits, granularity=spec.granularity
    )
    each = affine.dequantize(ones)  # the scale of every single weight
    ratio = weight / each
    clipped = ratio.clamp(-qmax, qmax)
    return (clipped + (clipped.round() - clipped).detach()) * each


def _refuse_training(config: Config) -> None:
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("distill.qat: device: cuda, but this machine has no usable GPU; leave device out")
    if config.patience and not config.validate_every:
        raise UserError("distill.qat: patience counts validations; give validate_every as well")


def _own_tensors(module: nn.Module) -> nn.Module:
    """The module itself, every tensor a copy of its own, so that training writes into none of the variant's."""
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            wanted = name != "log_scale" or parameter.requires_grad
            setattr(part, name, nn.Parameter(parameter.detach().clone(), requires_grad=wanted))
    return module


def _with_integers(student: nn.Module, layers: dict[str, QConv2d | QLinear]) -> nn.Module:
    """The student with its trainees as quantized layers again."""
    swaps: dict[str, nn.Module] = {}
    for name, layer in layers.items():
        trainee = student.get_submodule(name)
        assert isinstance(trainee, Trainee)
        swaps[name] = _requantized(layer, trainee)
    return replaced(student, swaps).requires_grad_(False).eval()


def _requantized(layer: QConv2d | QLinear, trainee: Trainee) -> nn.Module:
    copied = twin(layer)
    found = trainee.integers()
    copied.register_buffer("qdata", found.qdata)
    copied.register_buffer("scale", found.scale)
    copied.register_buffer("bias", None if trainee.bias is None else trainee.bias.detach())
    return copied
