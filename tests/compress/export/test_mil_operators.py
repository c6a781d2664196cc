"""Each MIL operator against coremltools' own NumPy evaluation of constants, or against plain loops where it has none."""

import numpy as np
import pytest
import torch

pytest.importorskip("coremltools", reason="extra coreml is not installed")

from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import Function

from compress.export._mil_operators import OPERATORS

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 3, 4, 6)).astype(np.float32)
Y = RNG.standard_normal((1, 3, 1, 6)).astype(np.float32)
P = np.abs(X) + 0.1

CASES = [  # operators that coremltools works out itself on constants
    ("add", {"x": X, "y": Y}),
    ("sub", {"x": X, "y": Y}),
    ("mul", {"x": X, "y": Y}),
    ("real_div", {"x": X, "y": P[:, :, :, :]}),
    ("floor_div", {"x": X, "y": P}),
    ("pow", {"x": P, "y": Y}),
    ("maximum", {"x": X, "y": Y}),
    ("minimum", {"x": X, "y": Y}),
    ("greater", {"x": X, "y": Y}),
    ("less_equal", {"x": X, "y": Y}),
    ("equal", {"x": X, "y": X}),
    ("relu", {"x": X}),
    ("sigmoid", {"x": X}),
    ("tanh", {"x": X}),
    ("exp", {"x": X}),
    ("erf", {"x": X}),
    ("sin", {"x": X}),
    ("cos", {"x": X}),
    ("abs", {"x": X}),
    ("floor", {"x": X}),
    ("sqrt", {"x": P}),
    ("square", {"x": X}),
    ("log", {"x": P, "epsilon": np.float32(0.5)}),
    ("rsqrt", {"x": P, "epsilon": np.float32(0.5)}),
    ("inverse", {"x": P, "epsilon": np.float32(0.5)}),
    ("leaky_relu", {"x": X, "alpha": np.float32(0.2)}),
    ("clip", {"x": X, "alpha": np.float32(-0.5), "beta": np.float32(0.25)}),
    ("softmax", {"x": X, "axis": 1}),
    ("gelu", {"x": X, "mode": "EXACT"}),
    ("gelu", {"x": X, "mode": "SIGMOID_APPROXIMATION"}),
    ("transpose", {"x": X, "perm": np.array([2, 0, 3, 1], np.int32)}),
    ("reshape", {"x": X, "shape": np.array([6, -1], np.int32)}),
    ("expand_dims", {"x": X, "axes": np.array([0, 3], np.int32)}),
    ("squeeze", {"x": Y, "axes": np.array([0, 2], np.int32)}),
    ("tile", {"x": X, "reps": np.array([1, 2, 1, 3], np.int32)}),
    ("reduce_mean", {"x": X, "axes": np.array([1, 3], np.int32), "keep_dims": True}),
    ("reduce_sum", {"x": X, "axes": np.array([-1], np.int32), "keep_dims": False}),
    ("reduce_max", {"x": X, "axes": np.array([2], np.int32), "keep_dims": False}),
    ("layer_norm", {"x": X, "axes": np.array([3], np.int32), "gamma": Y[0, 0, 0], "beta": Y[0, 1, 0]}),
    ("linear", {"x": X[0, 0], "weight": X[1, 2], "bias": Y[0, :, 0, :4].reshape(-1)[:4]}),
    ("matmul", {"x": X, "y": X, "transpose_x": False, "transpose_y": True}),
    ("gather", {"x": X, "indices": np.array([[2, 0], [1, -1]], np.int32), "axis": 1}),
    ("slice_by_size", {"x": X, "begin": np.array([0, 1, 0, 2], np.int32), "size": np.array([2, 2, -1, 3], np.int32)}),
    ("cast", {"x": 3 * X, "dtype": "int32"}),
    ("select", {"cond": X > 0, "a": X, "b": X * 2}),
    ("logical_not", {"x": X > 0}),
    ("band_part", {"x": X, "lower": 1, "upper": 0}),
    ("fill", {"shape": np.array([2, 3], np.int32), "value": np.float32(1.5)}),
    ("range_1d", {"start": 2, "end": 11, "step": 3}),
    ("quantize", {"input": X, "scale": np.float32(0.03), "zero_point": np.uint8(100), "output_dtype": "uint8"}),
    ("quantize", {"input": X, "scale": P[0, :, 0, 0], "output_dtype": "int8", "axis": 1}),
    (
        "slice_by_index",
        {
            "x": X,
            "begin": np.array([0, -1, 0, 4], np.int32),
            "end": np.array([1, 0, 3, -6], np.int32),
            "stride": np.array([1, 1, 2, -2], np.int32),
            "end_mask": np.array([True, False, False, False]),
            "squeeze_mask": np.array([False, True, False, False]),
        },
    ),
    ("pad", {"x": X, "pad": np.array([1, 0, 2, 1], np.int32), "mode": "constant", "constant_val": np.float32(0.5)}),
    ("pad", {"x": X, "pad": np.array([1, 0, 2, 1], np.int32), "mode": "reflect"}),
]


def as_torch(value):
    return torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value


@pytest.mark.parametrize(("name", "inputs"), CASES, ids=[f"{i}-{name}" for i, (name, _) in enumerate(CASES)])
def test_as_coremltools_works_it_out(name, inputs):
    from coremltools.converters.mil._deployment_compatibility import AvailableTarget

    with Function({"unused": mb.placeholder((1,))}, opset_version=AvailableTarget.iOS18):
        expected = getattr(mb, name)(**inputs).val
    assert expected is not None
    found = OPERATORS[name](**{key: as_torch(value) for key, value in inputs.items()})
    assert tuple(found.shape) == expected.shape
    np.testing.assert_allclose(found.numpy().astype(np.float64), expected.astype(np.float64), atol=2e-6, rtol=2e-6)


def loops(x, weight, strides, pad, dilations, groups):
    """A convolution by its definition."""
    n, _, h, w = x.shape
    o, per, kh, kw = weight.shape
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (pad[0], pad[1]), (pad[2], pad[3])))
    oh = (h + pad[0] + pad[1] - (kh - 1) * dilations[0] - 1) // strides[0] + 1
    ow = (w + pad[2] + pad[3] - (kw - 1) * dilations[1] - 1) // strides[1] + 1
    y = np.zeros((n, o, oh, ow))
    for f in range(o):
        base = f // (o // groups) * per
        for c, i, j in np.ndindex(per, kh, kw):
            rows = slice(i * dilations[0], i * dilations[0] + (oh - 1) * strides[0] + 1, strides[0])
            columns = slice(j * dilations[1], j * dilations[1] + (ow - 1) * strides[1] + 1, strides[1])
            y[:, f] += weight[f, c, i, j] * padded[:, base + c, rows, columns]
    return y


@pytest.mark.parametrize(
    ("kind", "pad", "strides", "dilations", "groups"),
    [
        ("custom", (1, 0, 2, 1), (2, 1), (1, 2), 1),
        ("valid", (0, 0, 0, 0), (1, 1), (1, 1), 3),
        ("same", (0, 1, 0, 1), (2, 2), (1, 1), 1),
        ("same_lower", (1, 0, 1, 0), (2, 2), (1, 1), 1),
    ],
)
def test_convolution(kind, pad, strides, dilations, groups):
    weight = RNG.standard_normal((6, 3 // groups, 3, 3)).astype(np.float32)
    expected = loops(X, weight, strides, pad, dilations, groups) + 0.5
    found = OPERATORS["conv"](
        x=torch.from_numpy(X),
        weight=torch.from_numpy(weight),
        bias=torch.full((6,), 0.5),
        strides=torch.tensor(strides),
        pad_type=kind,
        pad=torch.tensor(pad),
        dilations=torch.tensor(dilations),
        groups=groups,
    )
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_transposed_convolution_scatters():
    weight = RNG.standard_normal((3, 2, 2, 3)).astype(np.float32)
    full = np.zeros((2, 2, 4 * 2, 6 + 2))
    for c, o, i, j in np.ndindex(*weight.shape):
        full[:, o, i : i + 8 : 2, j : j + 6] += weight[c, o, i, j] * X[:, c]
    found = OPERATORS["conv_transpose"](
        x=torch.from_numpy(X), weight=torch.from_numpy(weight), strides=[2, 1], pad=[1, 0, 0, 2], pad_type="custom"
    )
    np.testing.assert_allclose(found.numpy(), full[:, :, 1:, :-2], atol=1e-5)


def test_norms_with_statistics_by_hand():
    gamma, beta = (torch.tensor(v) for v in ([1.0, 2.0, 3.0], [0.1, 0.2, 0.3]))
    found = OPERATORS["instance_norm"](x=torch.from_numpy(X), gamma=gamma, beta=beta, epsilon=0.25)
    stored = OPERATORS["batch_norm"](
        torch.from_numpy(X), mean=beta, variance=gamma, gamma=beta, beta=gamma, epsilon=0.25
    )
    for c in range(3):
        x = X[1, c].astype(np.float64)
        normal = (x - x.mean()) / np.sqrt(x.var() + 0.25)
        np.testing.assert_allclose(found[1, c].numpy(), (c + 1) * normal + 0.1 * (c + 1), atol=1e-5)
        scaled = (x - 0.1 * (c + 1)) / np.sqrt(c + 1 + 0.25) * 0.1 * (c + 1) + c + 1
        np.testing.assert_allclose(stored[1, c].numpy(), scaled, atol=1e-5)


def test_attention_by_hand():
    q, k, v = X[:, :, :, :4], X[:, :, :3, 1:5], X[:, :, 1:, :5]
    mask = np.array([[True, False, True]] * 4)
    scores = np.einsum("bhid,bhjd->bhij", q, k) / 2.0
    for given, added in ((mask, np.where(mask, 0, -np.inf)), (scores[0, 0], scores[0, 0])):
        weights = np.exp(scores + added)
        expected = weights / weights.sum(-1, keepdims=True) @ v
        tensors = (torch.from_numpy(np.ascontiguousarray(a)) for a in (q, k, v, given))
        found = OPERATORS["scaled_dot_product_attention"](*tensors)
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_pictures_are_enlarged_shuffled_and_pooled():
    x = torch.from_numpy(X)
    bigger = OPERATORS["upsample_nearest_neighbor"](x, scale_factor_height=2, scale_factor_width=3)
    np.testing.assert_array_equal(bigger.numpy(), X.repeat(2, 2).repeat(3, 3))
    channels = torch.arange(8.0).reshape(1, 8, 1, 1)
    assert OPERATORS["pixel_shuffle"](channels, 2).tolist() == [[[[0, 1], [2, 3]], [[4, 5], [6, 7]]]]
    pads = {"kernel_sizes": [2, 2], "strides": [2, 2], "pad_type": "custom", "pad": [1, 1, 0, 0]}
    padded = np.pad(X, ((0, 0), (0, 0), (1, 1), (0, 0)), constant_values=np.nan)
    windows = padded.reshape(2, 3, 3, 2, 3, 2)
    largest = OPERATORS["max_pool"](x, **pads)
    np.testing.assert_array_equal(largest.numpy(), np.nanmax(windows, axis=(3, 5)))
    means = OPERATORS["avg_pool"](x, exclude_padding_from_average=True, **pads)
    np.testing.assert_allclose(means.numpy(), np.nanmean(windows, axis=(3, 5)), atol=1e-6)


def test_parts_and_joins():
    x = torch.from_numpy(X)
    parts = OPERATORS["split"](x, axis=3, split_sizes=[1, 2, 3])
    assert [tuple(p.shape) for p in parts] == [(2, 3, 4, 1), (2, 3, 4, 2), (2, 3, 4, 3)]
    assert torch.equal(OPERATORS["concat"](parts, axis=3), x)
    assert torch.equal(OPERATORS["stack"](OPERATORS["split"](x, num_splits=3, axis=1), axis=0)[1], x[:, 1:2])
    assert OPERATORS["shape"](x).tolist() == [2, 3, 4, 6]


def test_dequantize_is_the_inverse_on_the_grid():
    integers = torch.arange(0, 256).to(torch.int32)
    real = OPERATORS["dequantize"](integers, scale=torch.tensor(0.25), zero_point=torch.tensor(10))
    assert real.tolist() == [(i - 10) * 0.25 for i in range(256)]
    again = OPERATORS["quantize"](real, scale=torch.tensor(0.25), zero_point=torch.tensor(10), output_dtype="uint8")
    assert torch.equal(again, integers)
