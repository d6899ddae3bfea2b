"""Draws models as programs: statements that make layers and write forward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from hypothesis import strategies as st

T = TypeVar("T")
Shape = tuple[Any, ...]  # sizes; "b", "t" and others where a run says them

# As modules, and as expressions of v.
MODULES = (
    "nn.ReLU()", "nn.GELU()", "nn.SiLU()", "nn.ReLU(inplace=True)", "FATReLU()", "nn.ELU()",
    "nn.Hardswish()", "nn.GELU('tanh')", "MyReLU()", "InPlaceReLU()", "SizedReLU()", "nn.LeakyReLU()",
    "nn.Tanh()", "nn.ReLU6()", "nn.SiLU(inplace=True)", "nn.Dropout(0.5)", "nn.Identity()", "nn.Softplus()",
)  # fmt: skip
FUNCTIONS = (
    "F.relu({v})", "F.gelu({v})", "F.gelu({v}, approximate='tanh')", "F.silu({v})", "torch.tanh({v})",
    "{v}.relu()", "F.relu({v}, inplace=True)", "{v}.relu_()", "{v}.clamp(min=0)", "torch.relu_({v})",
    "F.hardswish({v})", "{v} * torch.sigmoid({v})", "torch.where({v} > 0, {v}, 0 * {v})",
    "F.dropout({v}, 0.5, self.training)",
)  # fmt: skip
CALLS = (
    "self.{n}({v})", "self.{n}({v})", "self.{n}({v})", "getattr(self, '{n}')({v})", "self.{n}.forward({v})",
    "self.{n}_in[0]({v})", "self.{n}_too({v})", "F.linear({v}, self.{n}.weight, self.{n}.bias)",
    "self.{n}(input={v})", "[m({v}) for m in (self.{n}, self.{n}_too)][1]",
    "self.{n}({v}.to(next(self.parameters()).device))",
)  # fmt: skip
VIEWS = (
    "{v}[:]", "{v}.detach()", "{v}.clone()", "{v}.contiguous()", "{v} * 1.5", "{v}.view({v}.shape)",
    "{v}.reshape(-1)", "{v}.reshape({v}.shape)", "{v}.masked_fill({v} > 1, 0.0)", "{v}.view_as({v})",
    "{v}.squeeze()", "{v}.float()",
)  # fmt: skip
# The logarithm of the sign gives NaN and infinity; that of small numbers would only measure their rounding.
LAST = (
    "{v}.masked_fill({v} > 1, float('-inf'))", "{v}.sign().log()", "{v} > 0", "{v}.argmax(-1)", "{v}.shape",
)  # fmt: skip
BINARY = (
    "{v} + {w}", "{w} + {v}", "{v} * torch.sigmoid({w})", "{v} += {w}", "{v}.add_({w})", "{w} - 0.5 * {v}",
)  # fmt: skip
CHANGES = (
    "{v}.mul_(2)", "{v} += 1", "{v}[..., :1] = 0", "{v}.data.mul_(2)", "{v}.copy_(0.5 * {v})", "{v}.neg_()",
)  # fmt: skip
SIZES = (16, 8, 32, 64)


class Program:
    """What has been written so far. `values` are the tensors that later statements may use."""

    def __init__(self, draw: Callable[[st.SearchStrategy[Any]], Any], x: str, d: int) -> None:
        self.draw, self.x = draw, x
        self.init: list[str] = []
        self.body: list[str] = []
        self.layers: list[tuple[str, Shape, int]] = []  # Linears: name, shape of the input, n
        self.names: list[str] = []
        self.flags: dict[str, tuple[Any, ...]] = {}
        self.takes: list[str] = []
        self.shared = ""
        self.values: dict[str, Shape] = {}
        self.count = 0
        shapes: dict[str, Shape] = {
            "flat": ("b", d), "tokens": ("b", "t", d), "seq": ("b", d, "t"), "image": ("b", d, "t", "t"),
            "grid": ("b", 8, d), "ids": ("b", "t"),
        }  # fmt: skip
        self.values["x"] = shapes[x]

    def pick(self, options: Sequence[T]) -> T:
        return self.draw(st.sampled_from(options))

    def maybe(self, one_in: int) -> bool:
        return bool(self.draw(st.integers(0, one_in - 1)) == one_in - 1)

    def fresh(self, prefix: str) -> str:
        self.count += 1
        return f"{prefix}{self.count}"

    def make(self, text: str, prefix: str = "l") -> str:
        name = self.fresh(prefix)
        self.init.append(f"self.{name} = {text}")
        self.names.append(name)
        return name

    def let(self, text: str, shape: Shape) -> str:
        name = self.fresh("v")
        self.body.append(f"{name} = {text}")
        self.values[name] = shape
        return name

    def value(self, fits: Callable[[Shape], bool] = lambda shape: True) -> str | None:
        """One of the values that fit, often the latest."""
        found = [name for name, shape in reversed(self.values.items()) if fits(shape)]
        return self.pick([found[0], found[0], found[0], *found[:4]]) if found else None

    # Statements. Each does nothing where no value fits it.

    def linear(self) -> None:
        v = self.value(lambda s: len(s) > 1 and isinstance(s[-1], int))
        if v is None:
            return
        shape = self.values[v]
        if self.maybe(4) and (same := [each for each in self.layers if each[1][-1] == shape[-1]]):
            name, _, n = self.pick(same)
        else:
            n = self.pick((shape[-1], *SIZES))
            kind = self.pick(("nn.Linear",) * 8 + ("Conv1D",))
            text = f"nn.Linear({shape[-1]}, {n}{self.pick(('', '', ', bias=False'))})"
            name = self.make(f"Conv1D({n}, {shape[-1]})" if kind == "Conv1D" else text)
            if kind == "nn.Linear":
                self.layers.append((name, shape, n))
            else:
                self.let(f"self.{name}({v})", (*shape[:-1], n))
                return
        self.let(self.called(self.pick(CALLS), name, v), (*shape[:-1], n))
        if after := self.pick(("", "", "activation", "activation", "norm")):
            getattr(self, after)()

    def container(self) -> None:
        """Modules that are reached through others."""
        v = self.value(lambda s: len(s) > 1 and isinstance(s[-1], int))
        if v is None:
            return
        shape, act = self.values[v], self.pick(MODULES)
        d = shape[-1]
        inside = f"nn.Linear({d}, {d}), {act}, nn.Linear({d}, {d}, bias=False)"
        how = self.pick(("self.{n}({v})", "self.{n}[1](self.{n}[0]({v}))", "loop", "self.{n}['a']({v})"))
        if how == "loop":
            name = self.make(f"nn.ModuleList([{inside}])", "ms")
            self.body.append(f"{(w := self.fresh('v'))} = {v}")
            self.body.append(f"for m in self.{name}: {w} = m({w})")
            self.values[w] = shape
            return
        if "'a'" in how:
            name = self.make(f"nn.ModuleDict({{'a': nn.Linear({d}, {d}), 'b': {act}}})", "ms")
            w = self.let(how.format(n=name, v=v), shape)
            self.let(f"self.{name}['b']({w})", shape)
            return
        name = self.make(f"nn.Sequential({inside})", "ms")
        self.let(how.format(n=name, v=v), shape)

    def called(self, call: str, name: str, v: str) -> str:
        for alias, text in ((f"{name}_too", f"self.{name}"), (f"{name}_in", f"[self.{name}]")):
            if alias in call.format(n=name, v=v) and f"self.{alias} = {text}" not in self.init:
                self.init.append(f"self.{alias} = {text}")
        return call.format(n=name, v=v)

    def activation(self) -> None:
        v = self.value(lambda s: len(s) > 1)
        if v is None:
            return
        how = self.pick(("module", "module", "function", "shared", "stored", "listed", "again"))
        if how == "function":
            text = self.pick(FUNCTIONS).format(v=v)
        elif how == "stored":
            name = self.fresh("f")
            self.init.append(f"self.{name} = {self.pick(('F.relu', 'F.gelu', 'F.silu', 'torch.relu'))}")
            text = f"self.{name}({v})"
        elif how == "shared":
            self.shared = self.shared or self.make(self.pick(MODULES), "act")
            text = f"self.{self.shared}({v})"
        else:
            name = self.make(self.pick(MODULES), "act")
            text = self.called("self.{n}_in[0]({v})" if how == "listed" else "self.{n}({v})", name, v)
            if how == "again":
                self.let(text, self.values[v])
        self.let(text, self.values[v])

    def norm(self) -> None:
        v = self.value(lambda s: len(s) in (2, 3, 4))
        if v is None:
            return None
        shape = self.values[v]
        options = self.pick(("", "", ", affine=False", ", track_running_stats=False"))
        if isinstance(shape[-1], int) and self.maybe(3):
            name = self.make(f"nn.LayerNorm({shape[-1]})", "n")
        elif isinstance(shape[1], int):
            name = self.make(f"nn.BatchNorm{2 if len(shape) == 4 else 1}d({shape[1]}{options})", "n")
        elif len(shape) == 3 and isinstance(shape[2], int):
            self.let(f"{v}.transpose(1, 2)", (shape[0], shape[2], shape[1]))
            return self.norm()
        else:
            return None
        self.let(f"self.{name}({v})", shape)
        return None

    def convolution(self) -> None:
        v = self.value(lambda s: len(s) in (3, 4) and isinstance(s[1], int) and s[1] >= 8)
        if v is None:
            return
        shape = self.values[v]
        n, dims, mode = (
            self.pick((shape[1], 8, 16)),
            len(shape) - 2,
            self.pick(("zeros", "zeros", "circular")),
        )
        size = self.pick((3, 1))
        groups = self.pick((1, 1, 2))
        stride = self.pick((1, 1, 2))
        text = (
            f"nn.Conv{dims}d({shape[1]}, {n}, {size}, stride={stride}, padding={size // 2}, groups={groups}"
        )
        name = self.make(f"{text}, padding_mode='{mode}')", "c")
        kept = stride == 1
        sizes = (
            shape[2:]
            if kept
            else tuple(self.fresh("s") if isinstance(s, str) else (s + 1) // 2 for s in shape[2:])
        )
        v = self.let(self.called(self.pick(CALLS[:7]), name, v), (shape[0], n, *sizes))
        if self.maybe(2):
            norm = self.make(f"nn.BatchNorm{dims}d({n})", "n")
            v = self.let(f"self.{norm}({v})", self.values[v])
        if self.maybe(2):
            self.activation()

    def block(self) -> None:
        if (v := self.value(lambda s: len(s) == 4 and isinstance(s[1], int))) is not None:
            kind = self.pick(("BasicBlock", "Bottleneck", "SqueezeExcite"))
            self.let(f"self.{self.make(f'{kind}({self.values[v][1]})', 'k')}({v})", self.values[v])
        elif (v := self.value(lambda s: len(s) == 3 and isinstance(s[2], int))) is not None:
            kinds = ("BertBlock({n})", "LlamaBlock({n})", "Attention({n})", "Mlp({n})", "Mlp({n}, nn.ReLU)")
            encoder = "nn.TransformerEncoderLayer({n}, 2, 2 * {n}, batch_first=True, activation='gelu')"
            text = self.pick((*kinds, encoder)).format(n=self.values[v][2])
            self.let(f"self.{self.make(text, 'k')}({v})", self.values[v])

    def recurrent(self) -> None:
        v = self.value(lambda s: len(s) == 3 and isinstance(s[2], int))
        if v is None:
            return
        shape, n, kind = self.values[v], self.pick(SIZES[:3]), self.pick(("LSTM", "GRU", "RNN"))
        more = self.pick((", batch_first=True", "", ", bidirectional=True", ", num_layers=2"))
        name = self.make(f"nn.{kind}({shape[2]}, {n}{more})", "r")
        if self.maybe(3):
            self.body.append(f"self.{name}.flatten_parameters()")
        self.let(f"self.{name}({v})[0]", (*shape[:2], n * (2 if "bi" in more else 1)))

    def attention(self) -> None:
        v = self.value(lambda s: len(s) == 3 and isinstance(s[2], int))
        if v is None:
            return
        shape = self.values[v]
        other = self.pick([name for name, each in self.values.items() if each == shape])
        name = self.make(f"nn.MultiheadAttention({shape[2]}, 2, batch_first={self.pick((True, False))})", "m")
        weights = self.pick((", need_weights=False", ""))
        self.let(f"self.{name}({v}, {other}, {other}{weights})[0]", shape)

    def group(self) -> None:
        """Several Linears of one input, in one of the ways that people write it."""
        v = self.value(lambda s: len(s) in (2, 3) and isinstance(s[-1], int))
        if v is None:
            return
        shape = self.values[v]
        n = self.pick(SIZES)
        q, k, w = (self.make(f"nn.Linear({shape[-1]}, {n})", name) for name in ("q", "k", "w"))
        self.layers += [(each, shape, n) for each in (q, k, w)]
        changed = self.pick(CHANGES).format(v=v) if self.maybe(3) else ""
        rows = f"{self.pick(('view', 'reshape'))}({v}.shape[0], -1, 8).transpose(0, 1)"
        after = self.pick(("", "", f".{rows}")) if len(shape) == 3 else ""
        made = tuple(self.fresh("v") for _ in range(3))
        if changed:
            self.body.append(f"{made[0]} = self.{q}({v}){after}")
            self.body.append(changed)
            self.body.append(f"{made[1]}, {made[2]} = self.{k}({v}){after}, self.{w}({v}){after}")
        else:
            self.body.append(f"{', '.join(made)} = (p({v}){after} for p in (self.{q}, self.{k}, self.{w}))")
        result = (self.fresh("s"), shape[0], 8) if after else (*shape[:-1], n)
        end = self.pick(("attend", "gate", "each"))
        if end == "attend":
            self.let(f"({made[0]} @ {made[1]}.mT / 4).softmax(-1) @ {made[2]}", result)
        elif end == "gate":
            self.let(f"F.silu({made[0]}) * {made[1]} + {made[2]}", result)
        else:
            self.values.update(dict.fromkeys(made, result))

    def view(self) -> None:
        v = self.value(lambda s: len(s) > 1)
        if v is None:
            return
        shape = self.values[v]
        how = self.pick(("plain", "turn", "turn", "half", "cut", "expand", "mean", "heads"))
        if how == "turn" and len(shape) == 3:
            tail = self.pick((".contiguous()", ""))
            axes = self.pick(((0, 2, 1), (1, 0, 2)))
            self.let(f"{v}.permute{axes}{tail}", tuple(shape[i] for i in axes))
            if self.maybe(2):
                self.activation()
        elif how == "half" and isinstance(shape[-1], int) and shape[-1] >= 16:
            text = self.pick(
                ("{v}.chunk(2, -1)[1]", "{v}[..., ::2]", "{v}.split({n}, -1)[0]", "{v}[..., :{n}]")
            )
            self.let(text.format(v=v, n=shape[-1] // 2), (*shape[:-1], shape[-1] // 2))
        elif how == "cut" and shape[0] == "b" and len(shape) > 1:
            self.let(f"{v}[:1]", (1, *shape[1:]))
        elif how == "expand" and len(shape) == 2:
            self.let(f"{v}[:, None].expand(-1, 4, -1)", (shape[0], 4, shape[1]))
        elif how == "mean" and len(shape) == 3:
            self.let(self.pick((f"{v}.mean(1)", f"{v}[:, -1]")), (shape[0], shape[2]))
        elif how == "heads" and len(shape) == 3 and isinstance(shape[2], int):
            self.let(f"{v}.flatten(0, 1)", (self.fresh("s"), shape[2]))
        elif how == "plain":
            text = self.pick(VIEWS)
            known = not text.endswith(("reshape(-1)", "squeeze()", "float()"))
            name = self.let(text.format(v=v), shape)
            if not known:
                del self.values[name]
                self.values[name] = ()  # only to be returned

    def join(self) -> None:
        v = self.value(lambda s: len(s) > 1)
        if v is None:
            return
        shape = self.values[v]
        w = self.pick([name for name, each in self.values.items() if each == shape])
        text = self.pick((*BINARY, "torch.cat([{v}, {w}], -1)", "torch.stack([{v}, {w}])"))
        if text.startswith("torch.cat"):
            twice = 2 * shape[-1] if isinstance(shape[-1], int) else self.fresh("s")
            self.let(text.format(v=v, w=w), (*shape[:-1], twice))
        elif text.startswith("torch.stack"):
            self.let(text.format(v=v, w=w), (2, *shape) if len(shape) < 3 else ())
        elif "+=" in text:
            self.body.append(text.format(v=v, w=w))
        else:
            self.let(text.format(v=v, w=w), shape)

    def change(self) -> None:
        if (v := self.value(lambda s: len(s) > 1)) is not None:
            self.body.append(self.pick(CHANGES).format(v=v))

    def other(self) -> None:
        """What is more than a tensor's way through layers."""
        v = self.value(lambda s: len(s) > 1)
        if v is None:
            return
        shape = self.values[v]
        how = self.pick(
            (
                "features",
                "head",
                "features",
                "head",
                "keep",
                "count",
                "cache",
                "unused",
                "second",
                "tied",
                "queries",
            )
        )
        if how == "features" and "features" not in self.flags:
            self.flags["features"] = (False, True)
            self.body.append(f"early = ({v},) if features else ()")
            self.activation()
        elif how == "head" and isinstance(d := (self.values["x"] or ("",))[-1], int):
            for _ in range(2):
                name = self.make(f"nn.Linear({d}, {self.pick(SIZES)})")
                n = int(self.init[-1].rsplit(" ", 1)[1][:-1])
                self.let(f"self.{name}(x)", (*self.values["x"][:-1], n))
                self.layers.append((name, self.values["x"], n))
            heads = [name for name, shape, _ in self.layers if shape == self.values["x"]]
            self.flags["head"] = (None, *heads)
        elif how == "keep":
            self.init.append("self.last = None")
            self.body.append(f"self.last = {v}")
        elif how == "count" and "self.register_buffer('mean', torch.zeros(()))" not in self.init:
            self.init.append("self.register_buffer('mean', torch.zeros(()))")
            text = self.pick(
                ("self.mean = 0.9 * self.mean + 0.1 * {v}.mean()", "self.mean.add_({v}.detach().mean())")
            )
            when = self.pick(("if self.training: ", ""))
            self.body.append(f"{when}{text.format(v=v)}")
        elif how == "cache" and self.x in ("flat", "tokens"):
            v, shape = "x", self.values["x"]
            if "cache" not in self.takes:
                self.takes.append("cache")
            self.let(f"({v} @ cache.append({v}, -2).mT / 4).softmax(-1) @ cache.keys", shape)
        elif how == "unused":
            self.make(self.pick(("nn.Linear(8, 8)", "nn.LSTM(8, 8)", "nn.Conv2d(8, 8, 3)")))
        elif how == "second" and "y" not in self.takes:
            self.takes.append("y")
            self.values["y"] = self.values["x"]
        elif how == "queries":
            d = self.pick(SIZES)
            name = self.fresh("p")
            self.init.append(f"self.{name} = nn.Parameter(torch.randn(1, 4, {d}))")
            act = self.make(self.pick(MODULES), "act")
            self.let(f"self.{act}((self.{name} * 2).expand(len(x), -1, -1))", ("b", 4, d))
        elif how == "tied" and self.layers:
            name, s, n = self.pick(self.layers)
            tied = self.make(f"nn.Linear({s[-1]}, {n})")
            self.init.append(f"self.{tied}.weight = self.{name}.weight")


STATEMENTS = (
    ("linear", 6), ("activation", 4), ("container", 1), ("norm", 2), ("convolution", 2), ("block", 1),
    ("recurrent", 1), ("attention", 1), ("group", 2), ("view", 3), ("join", 3), ("change", 1), ("other", 3),
)  # fmt: skip
