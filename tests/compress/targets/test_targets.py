import pytest
import torch

from compress import registry, targets
from compress.components import load_variant
from compress.errors import UserError
from compress.targets import Request, chosen
from eval.metrics.latency import Sampling

SHORT = Sampling(seconds=0.1, min_pairs=2, max_pairs=3, max_warmup=2)


@pytest.fixture(scope="module")
def decoder(checkpoint):
    return checkpoint / "decoder"


@pytest.fixture(scope="module")
def inputs(decoder):
    channels = load_variant(decoder).arch.config.latent_channels
    return (torch.zeros(1, channels, 4, 4),)


@pytest.fixture(scope="module")
def file(decoder, inputs, tmp_path_factory):
    """Exports the decoder in a format, once each."""
    folder, made = tmp_path_factory.mktemp("files"), {}

    def export(name):
        exporter = registry.load(f"export.{name}")
        path = folder / f"decoder{exporter.SUFFIX}"
        if name not in made:
            exporter.export(load_variant(decoder).module, inputs, path, exporter.Config(), metadata={})
            made[name] = path
        return path

    return export


def test_every_target_says_what_it_times_and_how():
    assert set(targets.DEFAULT) | {"android"} == set(targets.names())
    for name in targets.names():
        module = targets.get(name)
        assert module.__doc__
        assert module.SUFFIXES
        assert callable(module.measure)
    with pytest.raises(UserError, match="did you mean 'onnxruntime'"):
        targets.get("onnxruntim")


def test_the_target_follows_from_the_files(decoder, tmp_path):
    paths = {}
    for suffix in (".onnx", ".tflite", ".pte", ".xml", ".safetensors"):
        paths[suffix] = tmp_path / f"m{suffix}"
        paths[suffix].write_bytes(b"")
    assert chosen(decoder, decoder, None) == "torch"
    assert chosen(paths[".onnx"], paths[".onnx"], None) == "onnxruntime"
    assert chosen(paths[".onnx"], paths[".xml"], None) == "openvino"
    assert chosen(paths[".tflite"], paths[".tflite"], "android") == "android"
    with pytest.raises(UserError, match="no runtime in common, and two runtimes are not compared"):
        chosen(paths[".onnx"], paths[".tflite"], None)
    with pytest.raises(UserError, match="onnxruntime times .onnx, .ort"):
        chosen(paths[".onnx"], paths[".pte"], "onnxruntime")
    with pytest.raises(UserError, match="no such file"):
        chosen(tmp_path / "absent.onnx", paths[".onnx"], None)


def measured(name, path, inputs, **more):
    request = Request(reference=path, candidate=path, inputs=inputs, threads=1, sampling=SHORT, **more)
    return targets.get(name).measure(request)


def test_folders_are_timed_in_torch_and_its_threads_left_as_they_were(decoder, inputs):
    before = torch.get_num_threads()
    found = measured("torch", decoder, inputs)
    assert torch.get_num_threads() == before
    assert (found.runtime, found.threads) == ("torch float32", 1)
    assert found.ratio > 0


@pytest.mark.parametrize(
    ("name", "form", "package"),
    [
        ("onnxruntime", "onnx", "onnxruntime"),
        ("openvino", "onnx", "openvino"),
        ("litert", "litert", "ai_edge_litert"),
        ("executorch", "executorch", "executorch"),
    ],
)
def test_files_are_timed_in_the_runtime_asked_for(name, form, package, file, inputs):
    pytest.importorskip(package, reason=f"needs the extra '{name}'")
    if f"export.{form}" not in registry.names("export"):
        pytest.skip(f"there is no exporter {form}")
    path = file(form)
    found = measured(name, path, inputs)
    assert (found.runtime, found.threads) == (name, 1)
    assert found.pairs >= 2
    assert chosen(path, path, None) == ("onnxruntime" if form == "onnx" else name)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_file_that_a_runtime_cannot_load_is_named(name, inputs, tmp_path):
    pytest.importorskip(name, reason=f"needs the extra '{name}'")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    with pytest.raises(UserError, match="cannot load it"):
        measured(name, broken, inputs)
