"""Cases of test_property.py that were wrong once: each as it could be drawn."""

from __future__ import annotations

from property_cases import Case, Run

COMPACT = {"memory": "compact"}
FOLDED = {"memory": "compact", "fold_batch_norm": True}


def net(init: str, forward: str, args: str = "self, x") -> str:
    def indented(text: str) -> str:
        return "\n        ".join(line.strip() for line in text.strip().split("\n"))

    return f"""
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        {indented(init)}

    def forward({args}):
        {indented(forward)}

def build(): return Net()
"""


def sequential(*modules: str) -> str:
    return f"\ndef build(): return nn.Sequential({', '.join(modules)})\n"


KNOWN: dict[str, Case] = {
    "batch norm over the first dimension of tokens": Case(
        sequential("nn.Linear(16, 32)", "nn.BatchNorm1d(32)"), "seq", 32, options=FOLDED,
        example=Run(t=16), runs=(Run(3, 16),)
    ),
    "batch norm of another size": Case(
        sequential("nn.Linear(16, 32)", "nn.BatchNorm1d(8)"), "seq", 8, options=FOLDED,
        example=Run(t=16), runs=(Run(3, 16),)
    ),
    "contiguous is a copy but for one token": Case(
        net(
            "self.act, self.proj = nn.ELU(), nn.Linear(64, 64)",
            """h = self.act(x.transpose(1, 2).contiguous())
            return x + self.proj(h).transpose(1, 2)""",
        ),
        "seq", 64, sparsity=0, example=Run(1, 40), runs=(Run(1, 1),),
    ),
    "a graph module that starts to train when it is copied": Case(
        sequential("nn.Conv2d(8, 16, 3)", "nn.BatchNorm2d(16)", "nn.ReLU()"), "image", 8, wrap="dual",
        sparsity=0, example=Run(2, 9), runs=(Run(2, 9),),
    ),
    "a weight that is added to": Case(sequential("nn.Linear(64, 64)"), d=64, options=COMPACT, merged="0"),
    "forward derivatives": Case(
        sequential("nn.Linear(64, 64)", "nn.Tanh()"), d=64, options=COMPACT, runs=(Run(mode="jvp"),)
    ),
    "vmap": Case(
        sequential("nn.Linear(64, 64)", "nn.Tanh()"), d=64, options=COMPACT, runs=(Run(mode="vmap"),)
    ),
    "saved with another default device": Case(
        sequential("nn.Linear(64, 64)"), d=64, options=COMPACT, default_device="meta"
    ),
    "a layer in a plain list, folded into": Case(
        net(
            """self.c, self.b = nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16)
            self.convs = [self.c]""",
            "return self.b(self.convs[0](x))",
        ),
        "image", 16, in_place=True, options=FOLDED, example=Run(1, 9), runs=(Run(1, 9),),
    ),
    "a parametrization that draws": Case(
        sequential("nn.Linear(64, 64)", "nn.Tanh()", "nn.Linear(64, 8)"), d=64, training=True,
        decorate=(("0", "drop_connect"),), options=COMPACT, example=Run(6),
    ),
    "a parametrization that iterates": Case(
        sequential("nn.Linear(64, 64)"), d=64, training=True, decorate=(("0", "spectral_norm"),)
    ),
    "a weight that forward reads": Case(
        net(
            "self.qkv, self.proj = nn.Linear(64, 192), nn.Linear(192, 64)",
            "return self.proj(F.linear(x, self.qkv.weight, self.qkv.bias))",
        ),
        d=64, options={**COMPACT, "weights": "bfloat16"}, example=Run(4), runs=(Run(4),),
    ),
    "flatten_parameters": Case(
        net(
            "self.rnn = nn.LSTM(64, 128, batch_first=True)",
            """self.rnn.flatten_parameters()
            return self.rnn(x)[0]""",
        ),
        "tokens", 64, sparsity=0.9, options=COMPACT, example=Run(2, 7),
    ),
    "the first parameter": Case(
        net(
            "self.a, self.b = nn.Linear(64, 128), nn.Linear(128, 64)",
            "return self.b(torch.relu(self.a(x.to(next(self.parameters()).device))))",
        ),
        d=64, options=COMPACT, example=Run(),
    ),
    "views of q, k and v for a larger batch": Case(
        net(
            "self.q, self.k, self.v = (nn.Linear(64, 64) for _ in range(3))",
            """t, b, e = x.shape
            q, k, v = (p(x).view(t, b * 4, 16).transpose(0, 1) for p in (self.q, self.k, self.v))
            return ((q @ k.mT / 4).softmax(-1) @ v).transpose(0, 1).reshape(t, b, e)""",
        ),
        "tokens", 64, options=COMPACT, example=Run(10, 1), runs=(Run(10, 1), Run(10, 3)),
    ),
    "expanded for a larger batch": Case(
        net(
            """self.tokens, self.act = nn.Parameter(torch.randn(1, 4, 64)), nn.Hardswish()
            self.out = nn.Linear(64, 64)""",
            "return self.out(self.act((self.tokens * 2).expand(len(x), -1, -1))) + x[:, None]",
        ),
        d=64, options=COMPACT, example=Run(1), runs=(Run(1), Run(3)),
    ),
    "another default dtype": Case(
        sequential("nn.Linear(64, 64)", "nn.ReLU()"), d=64, default_dtype="float64", example=Run(3)
    ),
    "traced": Case(
        sequential("nn.Linear(64, 64)"), d=64, sparsity=0, runs=(Run(mode="trace"),)
    ),
    "a buffer that is a result": Case(
        net(
            """self.l = nn.Linear(64, 64)
            self.register_buffer("mean", torch.zeros(()))""",
            """if self.training: self.mean = .9 * self.mean + .1 * self.l(x).mean()
            return self.l(x) - self.mean""",
        ),
        d=64, trained=True,
    ),
    "a cache that grows": Case(
        net(
            "self.q, self.k, self.v = (nn.Linear(64, 64) for _ in range(3))",
            """keys = cache.append(self.k(x), 0)
            return (self.q(x) @ keys.T + torch.zeros(1, 4)).softmax(-1) @ keys + self.v(x)""",
            "self, x, cache",
        ),
        d=64, takes=("cache",), options=COMPACT, example=Run(1), runs=(Run(1),),
    ),
    "a flag for features": Case(
        net(
            "self.l, self.act, self.out = nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64)",
            """y = self.l(x)
            return (self.out(self.act(y)), y) if features else self.out(self.act(y))""",
            "self, x, features=False",
        ),
        d=64, options=COMPACT, example=Run(4), runs=(Run(4), Run(4, flags={"features": True})),
    ),
    "an activation that is nearly a ReLU": Case(
        sequential("nn.Linear(64, 256)", "FATReLU()", "nn.Linear(256, 8)"), d=64, scale=0.08, options=COMPACT,
        example=Run(16), runs=(Run(16),),
    ),
    "one buffer for all requests": Case(
        net(
            "self.value, self.policy = nn.Linear(64, 64), nn.Linear(64, 64)",
            "return (self.value(x), self.policy(x)) if head is None else getattr(self, head)(x)",
            "self, x, head=None",
        ),
        d=64, options=COMPACT, example=Run(),
        runs=(Run(flags={"head": "value"}), Run(x="numpy", flags={"head": "policy"})),
    ),
    "a first call under a transform": Case(
        net(
            "self.conv, self.norm = nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=2), nn.BatchNorm2d(16)",
            "return self.norm(self.conv(x))",
        ),
        x="image", d=8, options={"fold_batch_norm": True}, example=Run(), runs=(Run(mode="jvp"), Run()),
    ),
}  # fmt: skip
