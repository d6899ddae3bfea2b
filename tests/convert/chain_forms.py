"""Plain ways to write calls one after another in a forward, for test_chains.py, and what layers then do.

A form has no decorator: there is none in its source.
"""

# ruff: noqa: RET504  (statements are what this is about)

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from fusion_helpers import square
from torch import Tensor, nn
from torch.nn import functional as F

silu = F.silu


class Base(nn.Module):
    """What the forms below call."""

    fn: Callable[[Tensor], Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.other, self.act, self.relu = square(), square(3), nn.SiLU(), nn.ReLU()
        self.layers = nn.ModuleList([square(5), nn.SiLU()])
        self.named = nn.ModuleDict({"fc": square(6), "act": nn.GELU()})
        self.inner = nn.Sequential(square(7), nn.SiLU(), nn.Dropout())
        self.acts = [nn.SiLU(), nn.ReLU()]
        self.tanh = functools.partial(F.gelu, approximate="tanh")
        self.fn = F.silu

    @property
    def computed(self) -> nn.Module:
        return self.act

    def turned(self, x: Tensor) -> Tensor:
        """May put another activation into the place of the one there is."""
        if len(x) > 3:  # not for the example
            self.act = nn.ReLU()  # type: ignore[assignment]
        return x


def nested(self: Any, x: Tensor) -> Tensor:
    return self.act(self.fc(x))


def adjacent(self: Any, x: Tensor) -> Tensor:
    x = self.fc(x)
    x = self.act(x)
    return x


def returned(self: Any, x: Tensor) -> Tensor:
    y = self.fc(x)
    return self.act(y)


def under_another_name(self: Any, x: Tensor) -> Tensor:
    y = self.fc(x)
    z = self.act(y)
    return z


def in_a_longer_expression(self: Any, x: Tensor) -> Tensor:
    return self.other(self.act(self.fc(x))) + x


def then_more(self: Any, x: Tensor) -> Tensor:
    y = self.fc(x)
    return self.other(self.act(y))


def four_statements(self: Any, x: Tensor) -> Tensor:
    x = self.fc(x)
    x = self.act(x)
    x = self.other(x)
    x = self.act(x)
    return x


def written_again_later(self: Any, x: Tensor) -> Tensor:
    y = self.fc(x)
    y = self.act(y)
    y += 1
    y = y * 2
    return y


def an_activation_of_two(self: Any, x: Tensor) -> Tensor:
    return self.act(self.fc(x)) + self.act(self.other(x + 1))


def a_layer_with_two_followers(self: Any, x: Tensor) -> Tensor:
    return self.act(self.fc(x)) + self.relu(self.fc(x)) + self.fc(x)


def in_a_loop(self: Any, x: Tensor) -> Tensor:
    for layer in range(2):
        x = self.fc(x) if layer else x
        x = self.fc(x)
        x = self.act(x)
        x = x.clamp(-8, 8).round()
    return x


def in_a_branch(self: Any, x: Tensor) -> Tensor:
    if x.shape[0] > 1000:
        y = self.other(x)
    else:
        y = self.fc(x)
        y = self.act(y)
    return y


def in_an_expression_that_chooses(self: Any, x: Tensor) -> Tensor:
    return self.act(self.fc(x)) if x.shape[0] < 1000 else self.other(x)


def under_with(self: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = self.fc(x)
        y = self.act(y)
    return y


def of_a_list(self: Any, x: Tensor) -> Tensor:
    return self.layers[1](self.layers[0](x))


def of_a_dict(self: Any, x: Tensor) -> Tensor:
    return self.named["act"](self.named["fc"](x))


def in_a_module_within(self: Any, x: Tensor) -> Tensor:
    return self.inner(x)


def of_a_plain_list(self: Any, x: Tensor) -> Tensor:
    return self.acts[0](self.fc(x))


def with_a_function(self: Any, x: Tensor) -> Tensor:
    return F.silu(self.fc(x))


def with_a_function_of_torch(self: Any, x: Tensor) -> Tensor:
    y = self.fc(x)
    return torch.relu(y)


def with_a_global_name(self: Any, x: Tensor) -> Tensor:
    return silu(self.fc(x))


def with_a_partial_function(self: Any, x: Tensor) -> Tensor:
    return self.tanh(self.fc(x))


def with_a_function_that_is_held(self: Any, x: Tensor) -> Tensor:
    return self.fn(self.fc(x))


def where_self_has_another_name(this: Any, x: Tensor) -> Tensor:
    return this.act(this.fc(x))


def starred(self: Any, x: Tensor) -> Tensor:
    return self.act(self.fc(*[x]))


def keyword_only_and_defaults(self: Any, x: Tensor, /, scale: float = 2.0, *, shift: int = 1) -> Tensor:
    return self.act(self.fc(x)) * scale + shift


JOINED: dict[Any, list[str]] = {
    nested: ["silu"],
    adjacent: ["silu"],
    returned: ["silu"],
    under_another_name: ["silu"],
    in_a_longer_expression: ["silu"],
    then_more: ["silu"],
    four_statements: ["silu", "silu"],
    written_again_later: ["silu"],
    an_activation_of_two: ["silu", "silu"],
    a_layer_with_two_followers: ["silu", "relu"],
    in_a_loop: ["silu", "silu"],
    in_a_branch: ["silu"],
    in_an_expression_that_chooses: ["silu"],
    under_with: [],
    of_a_list: ["silu"],
    of_a_dict: ["gelu"],
    in_a_module_within: ["silu"],
    of_a_plain_list: ["silu"],
    with_a_function: ["silu"],
    with_a_function_of_torch: ["relu"],
    with_a_global_name: ["silu"],
    with_a_partial_function: ["gelu_tanh"],
    with_a_function_that_is_held: ["silu"],
    where_self_has_another_name: ["silu"],
    starred: ["silu"],
    keyword_only_and_defaults: ["silu"],
}
