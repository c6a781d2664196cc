import importlib
import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eval.errors import EvalError
from eval.metrics import lpips

SQUEEZE = Path(__file__).parents[3] / ".." / "shared" / "weights" / "lpips_squeeze"
needs_squeeze = pytest.mark.skipif(not SQUEEZE.is_dir(), reason="the SqueezeNet weights are not beside the repository")


@pytest.fixture(scope="module")
def st_alex():
    return lpips.load("st-alex")


def picture(name):
    pixels = np.array(Image.open(SQUEEZE / name).convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255


@pytest.fixture
def published_code(monkeypatch):
    """stlpips-pytorch itself, with empty modules for what its import asks for and its AlexNet does not use."""
    if importlib.util.find_spec("stlpips_pytorch") is None:
        pytest.skip("stlpips-pytorch is not installed")
    for name, attribute in (("torchvision", "models"), ("IPython", "embed"), ("torchsummary", "summary")):
        stub = types.ModuleType(name)
        setattr(stub, attribute, types.ModuleType(attribute))
        monkeypatch.setitem(sys.modules, name, stub)
    yield importlib.import_module("stlpips_pytorch.stlpips")
    for name in [name for name in sys.modules if name.startswith("stlpips_pytorch")]:
        del sys.modules[name]


@pytest.mark.parametrize("size", [(32, 32), (64, 48), (57, 71)])
def test_st_alex_equals_the_published_code(published_code, st_alex, photographs, noisy, size):
    theirs = published_code.LPIPS(net="alex", variant="shift_tolerant", verbose=False)
    images = photographs(2, 80)[..., : size[0], : size[1]]
    other = noisy(images, 0.1)
    with torch.no_grad():
        expected = theirs(images, other, normalize=True).flatten()
    assert expected.min() > 0.01
    assert torch.allclose(st_alex(images, other), expected, atol=1e-6)


@pytest.mark.parametrize("net", ["alex", "vgg", "squeeze"])
def test_standard_nets_equal_torchmetrics(net, tmp_path, photographs, noisy):
    """With random features under the real heads: torchvision's layer numbers and torchmetrics' taps, on any machine."""
    if importlib.util.find_spec("torchmetrics") is None:
        pytest.skip("torchmetrics is not installed")
    state = random_features(net)
    torch.save(state, tmp_path / "features.pth")
    images = photographs(1, 33)
    other = noisy(images, 0.2)
    found = lpips.load(net, backbone=tmp_path / "features.pth")(images, other)
    heads = torch.load(lpips._heads_file(net), map_location="cpu", weights_only=True)
    assert found.tolist() == pytest.approx(by_hand(net, state, list(heads.values()), images, other), rel=1e-4)


def random_features(net):
    generator = torch.Generator().manual_seed(0)
    shapes = {name[9:]: t.shape for name, t in lpips.Lpips(net).state_dict().items() if name.startswith("features.")}
    return {name: torch.randn(shape, generator=generator) * 0.05 for name, shape in shapes.items()}


def by_hand(net, state, heads, images, other):
    """The standard LPIPS in float64, from the layer tables of torchvision's three networks."""
    tables = {
        "alex": "c4,2r* p c1,2r* p c1,1r* c1,1r* c1,1r*",
        "vgg": "c1,1r c1,1r* m c1,1r c1,1r* m c1,1r c1,1r c1,1r* m c1,1r c1,1r c1,1r* m c1,1r c1,1r c1,1r*",
        "squeeze": "c2,0r* q f f* q f f* q f* f* f* f*",
    }
    shift = torch.tensor([-0.030, -0.088, -0.188]).double()[None, :, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450]).double()[None, :, None, None]
    state = {name: tensor.double() for name, tensor in state.items()}
    pool = torch.nn.functional.max_pool2d

    def conv(x, name, stride=1, padding=0):
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        return torch.nn.functional.conv2d(x, weight, bias, stride, padding).clamp(min=0)

    def features(x):
        x, layer, found = (x.double() * 2 - 1 - shift) / scale, 0, []
        for step in tables[net].split():
            if step[0] == "c":
                stride, padding = int(step[1]), int(step[3])
                x, layer = conv(x, str(layer), stride, padding), layer + 2
            elif step[0] == "f":
                thin = conv(x, f"{layer}.squeeze")
                wide = conv(thin, f"{layer}.expand1x1"), conv(thin, f"{layer}.expand3x3", padding=1)
                x, layer = torch.cat(wide, 1), layer + 1
            else:
                x = pool(x, 2, 2) if step == "m" else pool(x, 3, 2, ceil_mode=step == "q")
                layer += 1
            if step.endswith("*"):
                found.append(x / (x.norm(dim=1, keepdim=True) + 1e-10))
        return found

    total = 0
    for a, b, head in zip(features(images), features(other), heads, strict=True):
        total = total + (head.double() * (a - b) ** 2).sum(1).mean((1, 2))
    return total.tolist()


@needs_squeeze
def test_squeeze_gives_the_published_distances():
    module = lpips.load("squeeze", backbone=SQUEEZE / "squeeze.backbone.pth")
    reference = picture("ex_ref.png")
    assert module(reference, picture("ex_p0.png")).item() == pytest.approx(0.711048, abs=2e-6)
    assert module(reference, picture("ex_p1.png")).item() == pytest.approx(0.147902, abs=2e-6)


@needs_squeeze
def test_a_backbone_is_found_in_the_folder_of_the_environment(monkeypatch):
    monkeypatch.setenv("MDCOMPRESS_WEIGHTS", str(SQUEEZE))
    images = torch.rand(1, 3, 32, 32)
    assert lpips.measure(images, images, net="squeeze").tolist() == [0.0]


def test_full_and_features_only_files_give_the_same_digest(tmp_path):
    state = random_features("squeeze")
    torch.save(state, tmp_path / "features.pth")
    whole = {f"features.{name}": tensor for name, tensor in state.items()}
    torch.save(whole | {"classifier.1.weight": torch.ones(2)}, tmp_path / "whole.pth")
    digests = {lpips.digest("squeeze", backbone=tmp_path / name) for name in ("features.pth", "whole.pth")}
    assert len(digests) == 1
    assert digests != {lpips.digest("st-alex")}


def test_a_missing_backbone_says_where_it_was_looked_for_and_what_works(monkeypatch, tmp_path):
    monkeypatch.setenv("MDCOMPRESS_WEIGHTS", str(tmp_path / "mine"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    with pytest.raises(EvalError) as raised:
        lpips.load("vgg")
    text = str(raised.value)
    for part in ("vgg16-397923af.pth", str(tmp_path / "mine"), str(tmp_path / "hub"), "st-alex", "without a download"):
        assert part in text


def test_backbone_lookup_order(monkeypatch, tmp_path):
    monkeypatch.delenv("MDCOMPRESS_WEIGHTS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    hub = tmp_path / "torch" / "hub" / "checkpoints" / lpips.BACKBONES["alex"]
    own = tmp_path / "cache" / "mdcompress" / "weights" / lpips.BACKBONES["alex"]
    for path in (hub, own):
        path.parent.mkdir(parents=True)
        path.touch()
    assert lpips.find_backbone("alex") == own
    own.unlink()
    assert lpips.find_backbone("alex") == hub


def test_an_unknown_net_gets_a_suggestion_and_no_stand_in():
    with pytest.raises(EvalError, match="did you mean 'squeeze'"):
        lpips.load("squeezenet")
    with pytest.raises(EvalError, match="needs its net named"):
        lpips.measure(torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32))
    with pytest.raises(EvalError, match="carries its own weights"):
        lpips.load("st-alex", backbone=Path("x.pth"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a file of weights", "cannot read the weights"),
        ({"0.weight": torch.zeros(2, 2)}, "does not hold the weights of LPIPS net 'squeeze'"),
        ([1, 2], "is not a state dict"),
        ("nan", "holds NaN"),
        ("truncated", "cannot read the weights"),
    ],
)
def test_a_damaged_backbone_is_refused(tmp_path, content, message):
    path = tmp_path / "backbone.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "truncated":
        torch.save(random_features("squeeze"), path)
        path.write_bytes(path.read_bytes()[:5000])
    elif content == "nan":
        torch.save(random_features("squeeze") | {"0.bias": torch.full((64,), torch.nan)}, path)
    else:
        torch.save(content, path)
    with pytest.raises(EvalError, match=message):
        lpips.load("squeeze", backbone=path)


def test_laws(st_alex, photographs, noisy):
    images = photographs(2)
    assert st_alex(images, images).tolist() == [0.0, 0.0]
    values = torch.stack([st_alex(images, noisy(images, sigma)) for sigma in (0.01, 0.03, 0.1, 0.3)])
    assert (values.diff(dim=0) > 0).all()
    assert torch.allclose(st_alex(images, images.flip(3)), st_alex(images.flip(3), images), atol=1e-6)
    assert torch.allclose(lpips.measure(images, images.flip(3), net="st-alex"), st_alex(images, images.flip(3)))


def test_is_frozen_and_differentiable_in_both_images(st_alex, photographs, noisy):
    images = photographs(1, 32)
    first, second = images.clone().requires_grad_(), noisy(images, 0.1).requires_grad_()
    st_alex(first, second).sum().backward()
    for gradient in (first.grad, second.grad):
        assert gradient.isfinite().all()
        assert gradient.abs().sum() > 0
    assert not st_alex.training
    assert not any(parameter.requires_grad for parameter in st_alex.parameters())


def test_gradient_is_finite_for_identical_and_for_black_images(st_alex):
    for value in (0.0, 1.0):
        images = torch.full((1, 3, 32, 32), value)
        candidate = images.clone().requires_grad_()
        st_alex(images, candidate).sum().backward()
        assert candidate.grad.isfinite().all()


def test_a_gradient_step_brings_the_images_closer(st_alex, photographs, noisy):
    images = photographs(1, 32)
    candidate = noisy(images, 0.1).requires_grad_()
    before = st_alex(images, candidate)
    before.sum().backward()
    after = st_alex(images, (candidate - 1.0 * candidate.grad).detach().clamp(0, 1))
    assert after.item() < before.item()


def test_compiles_to_one_graph(st_alex, photographs):
    """Of the file loaded by its path: a copy whose calls the test run type-checks would not compile."""
    spec = importlib.util.spec_from_file_location("lpips_as_shipped", lpips.__file__)
    as_shipped = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(as_shipped)
    images = photographs(2, 32)
    compiled = torch.compile(as_shipped.load("st-alex"), backend="eager", fullgraph=True)
    assert torch.allclose(compiled(images, images.flip(2)), st_alex(images, images.flip(2)), atol=1e-6)


def test_neither_weights_package_is_imported(monkeypatch):
    packages = {"torchmetrics", "stlpips_pytorch", "torchvision"}
    for name in [name for name in sys.modules if name.split(".")[0] in packages]:
        monkeypatch.delitem(sys.modules, name)
    lpips.load("st-alex")
    lpips._heads_file("alex")
    assert not packages & set(sys.modules)
