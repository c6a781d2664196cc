"""Classifier-free guidance: away from what the network predicts without text.

Source: Ho and Salimans 2022 (arXiv:2207.12598), eq. (6), as `unconditional + scale * difference` (scale 1: none);
`rescale` of Lin et al. 2023 (arXiv:2305.08891), section 3.4, against colours that a strong guidance burns out.
"""

from typing import Any


def guided(conditional: Any, unconditional: Any, scale: float, *, rescale: float = 0.0) -> Any:
    """The prediction to take a step with; arrays [n, z, h, w] of any kind.

    Args:
        conditional: Prediction with the text.
        unconditional: Prediction with the empty text.
        scale: 1 gives the conditional prediction back.
        rescale: 0 leaves the size as it is, 1 gives each picture the standard deviation it has without guidance.
    """
    strong = unconditional + scale * (conditional - unconditional)
    if rescale == 0.0:
        return strong
    factor = _deviation(conditional) / _deviation(strong)
    return strong * (rescale * factor + (1 - rescale))


def _deviation(x: Any) -> Any:
    centred = x - x.mean((1, 2, 3), keepdims=True)
    return (centred * centred).mean((1, 2, 3), keepdims=True) ** 0.5
