"""Wrong types and shapes are found in the rooms that hold tensors, and nowhere is a right one refused."""

import pytest
import torch
import typecheck
from beartype.roar import BeartypeCallHintViolation

SOURCE = """
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from calibration import Heavy

def light(x: "Sequence[Heavy]", name: "str") -> "Heavy | None":
    return x[0]

def half(x: float) -> float:
    return x / 2 if x else "nothing"

def summed(xs: Sequence[Float[Tensor, "n c"]], weights: Float[Tensor, "c"]) -> Float[Tensor, "n"]:
    return sum(xs) @ weights if len(weights) < 4 else sum(xs)[:, 0][1:]

def counted(n: int) -> Iterator[int]:
    yield from range(n)

def outer(x: object) -> object:
    def inner(x: int) -> int:
        return x
    return inner(x)

@dataclass(frozen=True)
class Size:
    width: int

    @property
    def name(self) -> str:
        return self.width if self.width < 0 else str(self.width)
"""


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """A module that lies in a room."""
    path = tmp_path_factory.mktemp("room") / "calibration_like.py"
    path.write_text(SOURCE)
    loader = typecheck._Loader("calibration.like", str(path))
    module = type(pytest)("calibration.like")
    loader.exec_module(module)
    assert not list(path.parent.rglob("*.pyc"))
    return module


def ones(*shape):
    return torch.ones(shape)


def test_what_is_right_passes(room):
    assert room.half(3) == 1.5 and list(room.counted(2)) == [0, 1] and room.outer(1) == 1
    assert room.summed([ones(2, 3), ones(2, 3)], ones(3)).tolist() == [6.0, 6.0]
    assert room.Size(width=2).name == "2" and room.light([3], "three") == 3


@pytest.mark.parametrize(
    "call",
    [
        lambda room: room.half("3"),
        lambda room: room.light([3], 3),
        lambda room: room.half(0),
        lambda room: room.summed([ones(2, 3)], ones(2)),  # c is 3 and 2
        lambda room: room.summed([ones(3)], ones(3)),
        lambda room: room.summed([ones(2, 3).int()], ones(3)),
        lambda room: room.summed([ones(2, 4)], ones(4)),  # gives n - 1
        lambda room: room.outer("1"),
        lambda room: room.Size(width="2"),
        lambda room: room.Size(width=-1).name,
    ],
)
def test_what_is_wrong_is_found(room, call):
    with pytest.raises(BeartypeCallHintViolation):
        call(room)


def test_the_rooms_are_checked():
    from calibration import observers
    from compress.nn import affine

    for module in (observers, affine):
        assert isinstance(module.__spec__.loader, typecheck._Loader)
