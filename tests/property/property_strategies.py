"""Draws cases: a program, its options, and what it is run with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st
from property_cases import Case, Run
from property_programs import LAST, SIZES, Program
from property_sublayers import STATEMENTS, EncoderProgram

_WEIGHTED = [name for name, times in STATEMENTS for _ in range(times)]
# What works on its input as it comes.
_IMAGES = [name for name in _WEIGHTED if name != "linear"] + ["convolution"] * 6 + ["block"] * 2
_DECORATIONS = ("weight_norm", "spectral_norm", "drop_connect", "halved", "prune")


@st.composite
def cases(draw: Callable[[st.SearchStrategy[Any]], Any]) -> Case:
    x = draw(st.sampled_from(("flat", "tokens", "tokens", "image", "seq", "ids", "grid")))
    program = EncoderProgram(draw, x, draw(st.sampled_from(SIZES)))
    d = int(next((size for size in reversed(program.values["x"]) if isinstance(size, int)), 32))
    if x == "ids":
        name = program.make(f"nn.Embedding({d}, {program.pick(SIZES)})", "e")
        width = int(program.init[-1].rsplit(" ", 1)[1][:-1])
        program.let(f"self.{name}(x)", ("b", "t", width))
        program.values.pop("x")
        program.values["x"] = ()
    for _ in range(draw(st.integers(1, 7))):
        getattr(program, program.pick(_IMAGES if x in ("image", "seq") else _WEIGHTED))()
    plain = program.maybe(4) and _sequential(program)
    source = plain or _source(program)
    return _case(program, source, x, d, bool(plain))


def _source(program: Program) -> str:
    results = [name for name in program.values if name.startswith("v")][-3:] or ["x"]
    last = results[-1]
    pieces = [last]
    if program.maybe(3):
        pieces.append(program.pick((*results, "x")))
    if program.maybe(6):
        pieces.append(program.pick(LAST).format(v=last))
    form = (
        program.pick(("plain", "plain", "tuple", "dict", "list", "output")) if len(pieces) == 1 else "tuple"
    )
    forms = {
        "plain": ", ".join(pieces), "tuple": f"({', '.join(pieces)},)", "list": f"[{last}, {pieces[-1]}]",
        "dict": f"{{'y': {last}, 'all': [{pieces[-1]}]}}", "output": f"Output({last}, ({pieces[-1]},))",
    }  # fmt: skip
    result = forms[form]
    body = list(program.body)
    if "features" in program.flags:
        result = f"({result}, *early)"
    if "head" in program.flags:
        body.insert(0, "if head is not None: return getattr(self, head)(x)")
    args = ", ".join(["self", "x", *program.takes, *(f"{flag}=None" for flag in program.flags)])
    init = "\n        ".join(["super().__init__()", *program.init])
    text = "\n        ".join([*body, f"return {result}"])
    head = "from transformers.pytorch_utils import Conv1D\n" if "Conv1D(" in init else ""
    return f"""{head}
class Net(nn.Module):
    def __init__(self):
        {init}

    def forward({args}):
        {text}

def build(): return Net()
"""


def _sequential(program: Program) -> str:
    """The modules alone, one after the other, if they form a chain."""
    made = dict(line.removeprefix("self.").split(" = ", 1) for line in program.init if " = " in line)
    calls, before = [], "x"
    for line in program.body:
        value, _, text = line.partition(" = ")
        name = text.removeprefix("self.").removesuffix(f"({before})")
        if name not in made or text != f"self.{name}({before})":
            break
        calls.append(made[name])
        before = value
    if len(calls) < 2 or any("(" not in call or "Conv1D(" in call for call in calls):
        return ""
    program.takes, program.flags = [], {}
    program.names = [str(i) for i in range(len(calls))]
    program.layers = [(str(i), (), 0) for i, call in enumerate(calls) if call.startswith("nn.Linear")]
    inside = "".join(f"        {call},\n" for call in calls)
    return f"\ndef build():\n    return nn.Sequential(\n{inside}    )\n"


def _case(program: Program, source: str, x: str, d: int, plain: bool) -> Case:
    draw, pick, maybe = program.draw, program.pick, program.maybe
    dtype = pick(("float32",) * 8 + ("bfloat16", "float64"))
    traceable = not program.flags and "training" not in source and "parameters()" not in source
    wraps = ("fx", "dual") if traceable and x != "ids" else ()
    wrap = pick(("", "", "", "", *(() if program.flags else ("sequential",)), *wraps))
    prefix = "0." if wrap == "sequential" else ""
    names = [name for name in program.names if not wrap.startswith(("fx", "dual")) or name in source]
    linears = [name for name, *_ in program.layers]
    watched = [prefix + pick(names)] if names and maybe(4) else []
    decorate = [(pick(linears), pick(_DECORATIONS))] if linears and not wrap and maybe(6) else []
    if "_too" in source or "+= " in "".join(name for name, _ in decorate):
        decorate = []
    training = maybe(6)
    options: dict[str, Any] = {}
    if not maybe(5):
        options["memory"] = "compact"
    if maybe(6):
        options["fuse"] = False
    if maybe(3):
        options["fold_batch_norm"] = True
    if maybe(10):
        options["weights"] = "bfloat16"
        if maybe(3):
            options["activations"] = "bfloat16"
    if maybe(10):
        options["tokens"] = (1, 64)
    if maybe(12) and linears:
        options[pick(("targets", "ignore"))] = [prefix + pick(linears)]
    example = None if maybe(6) else _run(program, x, 0)
    kept = watched or "self.last" in source or "self.mean" in source  # a transformed tensor must not be
    simple = not program.flags and not program.takes and not kept
    runs = [_run(program, x, i, simple=simple and x != "ids") for i in range(draw(st.integers(1, 3)))]
    return Case(
        source,
        x,
        d,
        tuple(program.takes),
        seed=draw(st.integers(0, 3)),
        sparsity=pick((0.8, 0.5, 0.95, 0.0)),
        scale=pick((1.0, 1.0, 0.1)),
        dtype=dtype,
        place=pick(("file", "file", "exec")),
        wrap=wrap,
        decorate=tuple(decorate),
        training=training,
        stays=training and not decorate and maybe(3),
        trained=maybe(8),
        hooked=(prefix + pick(names),) if names and maybe(10) else (),
        watched=tuple(watched),
        altering=bool(watched) and maybe(3),
        copied=maybe(6),
        merged=prefix + pick(linears) if linears and maybe(10) else "",
        default_dtype=pick(("float32",) * 12 + ("float64", "bfloat16")),
        default_device="meta" if maybe(16) else "",
        threads=2 if maybe(8) else 1,
        in_place=maybe(3),
        options=options,
        example=example,
        by_name=not plain and wrap != "sequential" and maybe(5),
        runs=tuple(runs),
    )


def _run(program: Program, x: str, number: int, *, simple: bool = False) -> Run:
    pick, maybe = program.pick, program.maybe
    usual, rare = (
        ("no_grad", "no_grad", "inference_mode", "inference_mode", "thread"),
        ("vmap", "jvp", "trace"),
    )
    modes = rare if simple and maybe(8) else usual
    return Run(
        b=pick((2, 1, 3, 7)),
        t=pick((3, 1, 5, 8)),
        layout=pick(("plain", "plain", "transposed", "expanded", "sliced", "channels_last"))
        if x != "ids"
        else "plain",
        x=pick(("new", "same", "numpy")) if number else "new",
        mode=pick(modes),
        flags={flag: value for flag, values in program.flags.items() if (value := pick(values))},
    )
