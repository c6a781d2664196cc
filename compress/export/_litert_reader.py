"""Reading a .tflite file of this exporter: its note, its weights, and running it.

Source: TensorFlow Lite's schema, version 3.
Differs: LiteRT's interpreter trusts what it is given, and a flipped bit may end the process; every file therefore holds
its own SHA-256, which is checked before anything else reads it.
"""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from compress.errors import UserError, require
from compress.export._hushed import lines_without
from compress.nn.affine import Granularity, Half, PerChannel, PerTensor, QuantizedWeight
from compress.nn.batches import split
from compress.nn.pack import unpack

NOTE = "mdcompress"  # the metadata entry with what the file says of itself, JSON
SEAL = "mdcompress.sha256"  # the metadata entry with the digest
FOURS = "int4_in_bytes"  # of the note: the layers with weights of 4 bits that have a byte each
MARK = b"mdcompress sha256 "  # what it begins with
BLANK = MARK + b"0" * 64
PURPOSE = "reading a .tflite file"
GREETING = r"INFO: Created TensorFlow Lite XNNPACK delegate"  # on standard error, of every interpreter
AXES = {"DEPTHWISE_CONV_2D": (3, 0, 1, 2), "CONV_2D": (0, 3, 1, 2)}  # from the operator's weight back to torch's


def package(part: str, purpose: str) -> Any:
    """A module of ai-edge-litert.

    Raises:
        MissingExtra: it is not installed.
    """
    require("ai_edge_litert", extra="litert", purpose=purpose)
    return require(f"ai_edge_litert.{part}", extra="litert", purpose=purpose)


def sealed(content: bytes) -> bytes:
    """The file with its digest in the place that was left blank for it."""
    return content.replace(BLANK, MARK + hashlib.sha256(content).hexdigest().encode(), 1)


def checked(path: Path) -> bytes:
    """The file's bytes, if they are those that were written.

    Raises:
        UserError: the file is missing, damaged, or not one of this exporter.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); export the variant again") from error
    if content[4:8] != b"TFL3":
        raise UserError(f"{path}: not a .tflite file; export the variant again")
    at = content.find(MARK)
    if at < 0:
        raise UserError(f"{path}: damaged, or not written by mdcompress: it has no digest; export the variant again")
    end = at + len(BLANK)
    if sealed(content[:at] + BLANK + content[end:]) != content:
        raise UserError(f"{path}: damaged: its content is not what its digest says; export or fetch it again")
    return content


class Model:
    """A checked file, taken apart."""

    def __init__(self, path: Path) -> None:
        schema = package("schema_py_generated", PURPOSE)
        self.path, self.content = path, checked(path)
        self.model = schema.Model.GetRootAs(self.content, 0)
        self.graph = self.model.Subgraphs(0)
        kinds = {number: name for name, number in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
        self.types = {number: name for name, number in vars(schema.TensorType).items() if not name.startswith("_")}
        codes = [self.model.OperatorCodes(i) for i in range(self.model.OperatorCodesLength())]
        self.codes = [kinds[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())] for code in codes]

    def note(self) -> dict[str, str]:
        """What the file says of itself."""
        entries = [self.model.Metadata(i) for i in range(self.model.MetadataLength())]
        numbers = {entry.Name().decode(): entry.Buffer() for entry in entries}
        return json.loads(self.model.Buffers(numbers[NOTE]).DataAsNumpy().tobytes())

    def operators(self) -> list[tuple[str, list[int], list[int]]]:
        """Name, inputs and outputs of every operator, in the order in which they run."""
        found = [self.graph.Operators(i) for i in range(self.graph.OperatorsLength())]
        return [(self.codes[op.OpcodeIndex()], list(op.InputsAsNumpy()), list(op.OutputsAsNumpy())) for op in found]

    def weight(self, tensor: Any, code: str) -> QuantizedWeight | None:
        """A stored weight in torch's axes; None for a float32 one."""
        kind, shape = self.types[tensor.Type()], tuple(tensor.ShapeAsNumpy().tolist())
        data = self.model.Buffers(tensor.Buffer()).DataAsNumpy()
        if kind not in ("INT8", "INT4", "FLOAT16"):
            return None
        axes = AXES.get(code, tuple(range(len(shape))))
        if kind == "FLOAT16":
            half = torch.from_numpy(data.view(np.float16).reshape(shape).copy()).permute(*axes).contiguous()
            return QuantizedWeight(qdata=half, scale=torch.zeros(0), bits=16, granularity=Half("float16"))
        count = int(np.prod(shape))
        bits = 4 if kind == "INT4" else 8
        held = torch.from_numpy(data.copy())
        flat = unpack(held, 4, count) if bits == 4 else held.view(torch.int8)
        qdata = flat.reshape(shape).permute(*axes).contiguous()
        scale = torch.from_numpy(tensor.Quantization().ScaleAsNumpy().astype(np.float32))
        granularity: Granularity = PerTensor() if len(scale) == 1 and qdata.shape[0] != 1 else PerChannel()
        return QuantizedWeight(qdata=qdata, scale=scale, bits=bits, granularity=granularity)


def stored_weights(path: Path) -> dict[str, QuantizedWeight]:
    """The quantized weights of a file, by layer."""
    model, found = Model(path), {}
    operators, fours = model.operators(), set(model.note().get(FOURS, "").split())
    behind = {inputs[0]: outputs[0] for code, inputs, outputs in operators if code == "DEQUANTIZE"}
    readers = {tensor: code for code, inputs, _ in operators for tensor in inputs}
    for number in range(model.graph.TensorsLength()):
        tensor = model.graph.Tensors(number)
        name = tensor.Name().decode()
        if tensor.Buffer() and name.endswith(".weight"):
            weight = model.weight(tensor, readers[behind.get(number, number)])
            if weight is not None:
                layer = name.removesuffix(".weight")
                found[layer] = replace(weight, bits=4) if layer in fours else weight
    return found


class Runner:
    """A file in LiteRT's interpreter, called as the component is: NCHW and float32, whatever the file has."""

    def __init__(self, path: Path, *, threads: int) -> None:
        litert = package("interpreter", f"running {path.name}")
        model = Model(path)
        self.path, self.note = path, model.note()
        try:
            with lines_without(GREETING):
                self.interpreter = litert.Interpreter(model_content=model.content, num_threads=threads)
                self.interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise UserError(f"{path}: LiteRT cannot load it ({error}); export the variant again") from error
        self.inputs = self.interpreter.get_input_details()
        (self.output,) = self.interpreter.get_output_details()

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """The component's inputs to its output, sample by sample."""
        return torch.cat([self._one(one) for one in split(inputs, 1)])

    def _one(self, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        swapped = self.note["layout"] == "nhwc"
        for x, held in zip(inputs, self.inputs, strict=True):
            laid = x.detach().permute(0, 2, 3, 1) if swapped and x.dim() == 4 else x.detach()
            if tuple(laid.shape) != tuple(held["shape"]):
                raise UserError(
                    f"{self.path}: {held['name']} is {held['shape'].tolist()} in the file, not {list(laid.shape)}; "
                    "a .tflite file has the size of the inputs that it was exported with"
                )
            self.interpreter.set_tensor(held["index"], laid.contiguous().numpy().astype(held["dtype"], copy=False))
        self.interpreter.invoke()
        made = torch.from_numpy(self.interpreter.get_tensor(self.output["index"]))
        made = made.float() / 255 if made.dtype == torch.uint8 else made
        return made.permute(0, 3, 1, 2).contiguous() if swapped and made.dim() == 4 else made

    def pieces(self) -> int:
        """Runs of operators: each partition of a delegate, and each operator that none took, counts one."""
        return len(executed(self.interpreter))


def executed(interpreter: Any) -> list[str]:
    """What an interpreter really runs: DELEGATE for each partition, and the names of the operators left out."""
    operators = interpreter._get_ops_details()
    makers: dict[int, dict[str, Any]] = {}
    for op in sorted(operators, key=lambda op: op["op_name"] == "DELEGATE"):  # a delegate's outputs are its own
        makers |= {int(tensor): op for tensor in op["outputs"]}
    wanted = [int(detail["index"]) for detail in interpreter.get_output_details()]
    ran: dict[int, str] = {}
    while wanted:
        op = makers.get(wanted.pop())
        if op is not None and op["index"] not in ran:
            ran[op["index"]] = op["op_name"]
            wanted += [int(tensor) for tensor in op["inputs"] if tensor >= 0]
    return [ran[index] for index in sorted(ran)]
