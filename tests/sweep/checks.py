"""Everything that is asked of the conversions of one model."""

from __future__ import annotations

import copy
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from case import Case, has_batch_norm
from compare import SENSITIVE, TOLERANCE, call, distance, mapped, rounding, same_bits
from torch import Tensor, nn

import sparseinfer as si


@dataclass(frozen=True)
class Way:
    """A way to convert.

    example   "first", "last" or none: which of the case's examples is shown
    rounded   activations are rounded too: the limit is derived from what that does to the dense model
    images    the model and its inputs are laid out as channels_last
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    example: str | None = "first"
    in_place: bool = False
    training: bool = False
    rounded: bool = False
    images: bool = False


COMPACT: Mapping[str, Any] = {"memory": "compact"}
# Nothing is measured: times are predicted, and a compact layer is sparse wherever that saves bytes.
WAYS: Mapping[str, Way] = {
    "compact": Way(COMPACT),
    "other example": Way(COMPACT, "last"),
    "unfused": Way({**COMPACT, "fuse": False}),
    "folded": Way({**COMPACT, "fold_batch_norm": True}),
    "memory 1.0": Way(),
    "bf16 weights": Way({**COMPACT, "weights": torch.bfloat16}),
    "f16 weights": Way({**COMPACT, "weights": torch.float16}),
    "bf16": Way({**COMPACT, "weights": torch.bfloat16, "activations": torch.bfloat16}, rounded=True),
    "tokens": Way({**COMPACT, "tokens": (1, 16)}, None),
    "in place": Way({"memory": "speed"}, in_place=True),
    "in training": Way(COMPACT, training=True),
    "channels_last": Way(COMPACT, in_place=True, images=True),
}
# Those whose text is generated; the others differ from these by what one forward shows.
GENERATING = ("compact", "other example", "memory 1.0", "in place")


@dataclass
class Found:
    """What was found.

    largest  the largest relative error, but for rounded activations; `where` it was
    ties     tokens that differ because their logits are equal but for rounding
    ways     how many were tried
    """

    failures: list[str] = field(default_factory=list)
    largest: float = 0.0
    where: str = ""
    layers: int = 0
    sparse: int = 0
    ties: int = 0
    ways: int = 0
    seconds: float = 0.0


class Checks:
    """The dense model's results, and one conversion after the other held against them."""

    def __init__(self, case: Case) -> None:
        self.case, self.dense = case, case.model
        self.found = Found()
        self.examples = {name: case.example(name) for name in case.inputs}
        self.before = mapped(self.examples, Tensor.clone)
        self.wanted = {name: call(self.dense, example) for name, example in self.examples.items()}
        results = [t for found in self.wanted.values() for t in found]
        if not any(t.any() for t in results) or any(t.isnan().any() for t in results):
            raise ValueError("the dense model returns nan, or nothing that could be compared")
        self.texts = {name: _generated(self.dense, given) for name, given in case.generate.items()}
        self.state = {name: t.clone() for name, t in self.dense.state_dict().items()}
        self.modules = [(type(module), module.training) for module in self.dense.modules()]
        self._rounding: dict[str, float] = {}

    def run(self, only: str | None = None) -> Found:
        start = time.perf_counter()
        for name, way in WAYS.items():
            if (only and name != only) or not self._applies(way):
                continue
            self.found.ways += 1
            try:
                self._try(name, way)
            except Exception as error:
                self._fail(name, f"{type(error).__name__}: {str(error)[:300]}")
                self.dense.eval()
            if not self._unchanged():
                self._fail(name, "the original model was changed")
                break
        self.found.seconds = time.perf_counter() - start
        return self.found

    def _applies(self, way: Way) -> bool:
        if way.example == "last" and len(self.case.examples) < 2:
            return False
        if way.images:
            return any("channels_last" in name for name in self.examples)
        return not way.options.get("fold_batch_norm") or has_batch_norm(self.dense)

    def _fail(self, way: str, text: str) -> None:
        self.found.failures.append(f"{way}: {text}")

    def _try(self, name: str, way: Way) -> None:
        fast = self._converted(name, way)
        rows = [row for row in si.explain(fast).rows if row.shape]
        if name == "compact":
            self.found.layers, self.found.sparse = len(rows), sum(row.decision == "sparse" for row in rows)
        reference = self._rounded(name, fast, way) if way.options.get("weights") else None
        self._forward(name, way, fast, reference)
        for attribute in ("dtype", "device"):
            if getattr(fast, attribute, None) != getattr(self.dense, attribute, None):
                self._fail(name, f"{attribute} is {getattr(fast, attribute, None)}")
        if name in GENERATING:
            for text, given in self.case.generate.items():
                self._generate(f"{name}, generate {text}", fast, given, self.texts[text])
        if name in ("compact", "in place"):
            self._copied(name, fast)
            self._restored(name, fast)

    def _converted(self, name: str, way: Way) -> nn.Module:
        chosen = self.case.examples[0 if way.example == "first" else -1]
        example = None if way.example is None else self.examples[chosen]
        arguments = {"example_inputs": example, "measure": False, **way.options}
        if way.in_place:
            model = copy.deepcopy(self.dense)
            if way.images:
                for parameter in model.parameters():
                    parameter.data = _channels_last(parameter.data)
                arguments["example_inputs"] = mapped(example, _channels_last)
            if si.convert_(model, **arguments) is not model:
                self._fail(name, "convert_ returned another model")
            return model
        if way.training:
            self.dense.train()
        fast = si.convert(self.dense, **arguments)
        if way.training:
            if not all(module.training for module in self.dense.modules()):
                self._fail(name, "the original left training mode")
            self.dense.eval()
        return fast.eval()

    def _forward(self, name: str, way: Way, fast: nn.Module, reference: nn.Module | None) -> None:
        errors, raised = {}, {}
        for inputs, example in self.examples.items():
            wanted = self.wanted[inputs] if reference is None else call(reference, example)
            try:
                error = distance(call(fast, example), wanted)
            except Exception as e:
                raised[inputs] = f"{type(e).__name__}: {str(e)[:300]}"
                continue
            pairs = zip(_flat(example), _flat(self.before[inputs]), strict=True)
            if not all(same_bits(a, b) for a, b in pairs):
                self._fail(name, f"{inputs}: an input was changed")
            errors[inputs] = error
        if raised:
            inputs, text = next(iter(raised.items()))
            self._fail(name, f"inputs {inputs}{_others(raised)}: {text}")
        if reference is not None and way.rounded:
            wrong = {n: e for n, e in errors.items() if not e <= self._limit_rounded(n, fast, reference)}
        else:
            wrong = {n: e for n, e in errors.items() if not e <= self._limit(n, e)}
        worst = max(errors.values(), default=0.0)
        if wrong:
            self._fail(
                name, f"inputs {max(wrong, key=wrong.__getitem__)}{_others(wrong)}: differs by {worst:.1e}"
            )
        if not way.rounded and worst > self.found.largest:
            self.found.largest, self.found.where = worst, name

    def _limit(self, inputs: str, error: float) -> float:
        """Where the model itself, in float32, lies further than that from float64: four times as far."""
        if error <= TOLERANCE or not error <= SENSITIVE:
            return TOLERANCE
        if inputs not in self._rounding:
            self._rounding[inputs] = rounding(self.dense, self.examples[inputs], self.wanted[inputs])
        return max(TOLERANCE, 4 * self._rounding[inputs])

    def _limit_rounded(self, inputs: str, fast: nn.Module, reference: nn.Module) -> float:
        """What rounding the inputs of all sparse Linears does to the dense model, and room for chance."""
        sparse = {row.layer.split(":")[0] for row in si.explain(fast).rows if row.decision == "sparse"}
        rounded = copy.deepcopy(reference)
        for name, module in rounded.named_modules():
            if name in sparse:
                module.register_forward_pre_hook(_round)
        example = self.examples[inputs]
        return max(0.01, 4 * distance(call(rounded, example), call(reference, example)))

    def _rounded(self, name: str, fast: nn.Module, way: Way) -> nn.Module:
        """The dense model whose weights are those of the fast one: each as it was, or rounded."""
        reference = si.densify_(copy.deepcopy(fast))
        other: dict[str, list[str]] = {}
        for key, t in reference.state_dict(keep_vars=True).items():
            old = self.state.get(key)
            if old is None:
                continue
            if t.dtype != old.dtype:
                other.setdefault(f"densify_ brings it back as {t.dtype}", []).append(key)
                t.data = t.data.to(old.dtype)
            if not same_bits(t, old) and not same_bits(t, old.to(way.options["weights"]).to(old.dtype)):
                other.setdefault("neither the weight nor the weight rounded", []).append(key)
        for text, keys in other.items():
            self._fail(name, f"{keys[0]}{_others(keys)}: {text}")
        return reference

    def _generate(self, name: str, fast: Any, given: Mapping[str, Any], wanted: Any) -> None:
        got = _generated(fast, given)
        same = torch.equal(got.sequences, wanted.sequences)
        start = got.sequences.shape[1] - len(got.logits)
        if given["num_beams"] > 1:
            if same:
                return
            # Beams of equal scores may come in any order.
            error = distance([got.sequences_scores], [wanted.sequences_scores])
            self.found.ties += 1
            if not error <= TOLERANCE:
                self._fail(name, f"other tokens, scores differ by {error:.1e}")
            return
        for step, (a, b) in enumerate(zip(got.logits, wanted.logits, strict=True)):
            error = distance([a], [b])
            if error > self._limit(self.case.examples[0], error):
                self._fail(name, f"logits differ by {error:.1e} at token {step}")
                return
            place = start + step
            if not torch.equal(got.sequences[:, place], wanted.sequences[:, place]):
                self.found.ties += 1  # the logits say the same, and later ones are of another text
                return

    def _copied(self, name: str, fast: nn.Module) -> None:
        first = self.case.examples[0]
        if distance(call(copy.deepcopy(fast), self.examples[first]), call(fast, self.examples[first])):
            self._fail(name, "a deepcopy returns something else")

    def _restored(self, name: str, fast: nn.Module) -> None:
        back = si.densify_(copy.deepcopy(fast))
        state = back.state_dict()
        # A parametrized weight comes back as a plain one.
        for key in state.keys() & self.state.keys():
            if not same_bits(state[key], self.state[key]):
                self._fail(name, f"densify_ does not bring back {key}")
                return
        first = self.case.examples[0]
        error = distance(call(back, self.examples[first]), self.wanted[first])
        if error > (0.0 if state.keys() == self.state.keys() else TOLERANCE):
            self._fail(name, f"densify_ brings back another model: differs by {error:.1e}")

    def _unchanged(self) -> bool:
        state = self.dense.state_dict()
        return (
            state.keys() == self.state.keys()
            and all(same_bits(t, self.state[name]) for name, t in state.items())
            and self.modules == [(type(module), module.training) for module in self.dense.modules()]
        )


def _channels_last(t: Tensor) -> Tensor:
    return t.to(memory_format=torch.channels_last) if t.dim() == 4 else t


def _round(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(
        a.bfloat16().to(a.dtype) if isinstance(a, Tensor) and a.is_floating_point() else a for a in args
    )


def _others(wrong: Collection[str]) -> str:
    return f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""


def _flat(example: Any) -> list[Tensor]:
    values = example.values() if isinstance(example, Mapping) else example
    return [t for t in values if isinstance(t, Tensor)]


def _generated(model: Any, given: Mapping[str, Any]) -> Any:
    torch.manual_seed(0)
    return model.generate(
        **given,
        do_sample=False,
        max_new_tokens=5,
        min_new_tokens=5,
        pad_token_id=0,
        use_cache=True,
        return_dict_in_generate=True,
        output_logits=True,
        output_scores=True,
    )
