"""What names in a forward stand for: attributes of modules, and nothing that would have to be called."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sparseinfer._source import is_path, resolved


def plain() -> None:
    """A global name."""


class Held(nn.Module):
    function = F.gelu

    def __init__(self) -> None:
        super().__init__()
        self.act, self.layers = nn.ReLU(), nn.ModuleList([nn.ReLU(), nn.SiLU()])
        self.named, self.own = nn.ModuleDict({"a": nn.GELU()}), [nn.Tanh()]
        self.inner = nn.Sequential(nn.Sigmoid())
        self.plain, self.number = F.silu, 3
        self.missing = None

    @property
    def computed(self) -> nn.Module:
        raise AssertionError("expected that nothing runs")

    def forward(self, x: Any, given: Any) -> Any:
        local = self.act
        return local  # noqa: RET504


class TestResolved:
    @pytest.mark.parametrize(
        ("path", "wanted"),
        [
            ("self", lambda held: held),
            ("self.act", lambda held: held.act),
            ("self.layers[1]", lambda held: held.layers[1]),
            ("self.named['a']", lambda held: held.named["a"]),
            ("self.own[0]", lambda held: held.own[0]),
            ("self.inner[0]", lambda held: held.inner[0]),
            ("self.plain", lambda held: F.silu),
            ("F.relu", lambda held: F.relu),
            ("torch.nn.functional.relu", lambda held: F.relu),
            ("torch.relu", lambda held: torch.relu),
            ("plain", lambda held: plain),
            ("self.number", lambda held: 3),
        ],
    )
    def test_paths(self, path: str, wanted: Callable[[Held], Any]) -> None:
        held = Held()
        assert resolved(ast.parse(path, mode="eval").body, held, Held.forward) is wanted(held)

    @pytest.mark.parametrize(
        "path",
        [
            "self.computed",
            "self.function",  # a method, once it is bound
            "self.nothing",
            "self.missing",
            "self.layers[7]",
            "self.named['b']",
            "self.named[0]",
            "self.number.real",
            "x",
            "x.act",
            "given",
            "local",
            "local.act",
            "nowhere",
            "nowhere.act",
            "len",
            "F.nothing",
            "self.act()",
            "self.layers[given]",
        ],
    )
    def test_what_cannot_be_told(self, path: str) -> None:
        assert resolved(ast.parse(path, mode="eval").body, Held(), Held.forward) is None

    def test_is_path(self) -> None:
        for path, expected in (
            ("self", True),
            ("self.a.b[0].c", True),
            ("f", True),
            ("f()", False),
            ("f().a", False),
            ("a[i]", False),
            ("(lambda: 0)", False),
            ("(a or b).c", False),
        ):
            assert is_path(ast.parse(path, mode="eval").body) is expected, path
