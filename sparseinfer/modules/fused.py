"""What is left of a module whose work another one does now."""

from __future__ import annotations

from torch import Tensor, nn


class Fused(nn.Module):
    """Passes its input on: the layer before it applies the activation or batch norm that was here by itself.

    The module itself is kept to be put back, but is not part of the model: not in `modules()`, nor in
    `state_dict()`.
    """

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        object.__setattr__(self, "original", original)

    def forward(self, x: Tensor) -> Tensor:
        return x

    def dense(self) -> nn.Module:
        """The module whose place this one took."""
        original: nn.Module = self.__dict__["original"]
        return original

    def extra_repr(self) -> str:
        return type(self.dense()).__name__
