"""The arguments of `sparseinfer prune`, each with its default, check and help text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field, fields
from pathlib import Path
from typing import Any

from sparseinfer._arguments import argument, arguments, positive
from sparseinfer.prune import NM, Pattern, SparseMethod, registry
from sparseinfer.prune.checks import check_fraction, check_int
from sparseinfer.prune.methods.threshold import Scope
from sparseinfer.prune.structured import Importance
from sparseinfer.prune.structured.importance import importance_of
from sparseinfer.quantize.registry import quantizers


@dataclass(frozen=True)
class Job:
    """The model folder to prune, the method and the output folder. The `help` of each field describes it.

    TypeError or ValueError if an argument is not as described.
    """

    model: Path = field(
        metadata=argument(
            "config.json, weights and tokenizer", positional=True, read=Path, metavar="MODEL_DIR"
        )
    )
    out: Path = field(metadata=argument("new or empty folder to write", read=Path, metavar="DIR"))
    _: KW_ONLY
    method: str = field(default="sparsegpt", metadata=argument(", ".join(registry.methods())))
    sparsity: float | None = field(
        default=None,
        metadata=argument(
            "sparsity of all layers together, in [0, 1); not with N:M, which sets it",
            read=float,
            metavar="S",
        ),
    )
    budget: str = field(
        default=registry.UNIFORM,
        metadata=argument(f"how the sparsity is spread over the layers: {', '.join(registry.budgets())}"),
    )
    pattern: Pattern | None = field(
        default=None,
        metadata=argument(
            f"pattern of the zeros: {', '.join(registry.patterns())}, with numbers for the capital letters",
            read=registry.pattern,
            metavar="P",
        ),
    )
    scope: Scope | None = field(
        default=None,
        metadata=argument(f"what one count covers: {', '.join(registry.SCOPES)}; default: the method's own"),
    )
    structured: float | None = field(
        default=None,
        metadata=argument(
            "first remove this part of all heads and neurons, in [0, 1); without --sparsity that is all",
            read=float,
            metavar="R",
        ),
    )
    importance: str = field(
        default="magnitude",
        metadata=argument(f"by which heads and neurons are chosen: {', '.join(Importance.by_name())}"),
    )
    update: bool = field(
        default=False,
        metadata=argument("fit the weights that read what is left by least squares; needs --calibration"),
    )
    calibration: Path | None = field(
        default=None,
        metadata=argument(
            "text for methods and budgets that need a model's inputs, and for the layers' errors",
            read=Path,
            metavar="FILE",
        ),
    )
    evaluation: Path | None = field(
        default=None,
        metadata=argument(
            "text to measure the quality on; default: the last fifth of the calibration text",
            flag="eval",
            read=Path,
            metavar="FILE",
        ),
    )
    quantize: str | None = field(
        default=None,
        metadata=argument(
            f"round the weights to int8 afterwards, keeping the zeros: {', '.join(quantizers())}",
            metavar="METHOD",
        ),
    )
    # Both are chosen, not measured.
    samples: int = field(
        default=16,
        metadata=argument("maximum number of sequences of each text, drawn at random", read=positive),
    )
    length: int = field(
        default=512,
        metadata=argument(
            "maximum tokens of a sequence; for a model that predicts tokens the exact number", read=positive
        ),
    )
    sequential: bool = field(
        default=False,
        metadata=argument("calibrate each block with the outputs of the pruned blocks before it"),
    )
    ignore: Sequence[str] | None = field(
        default=None,
        metadata=argument(
            "layers that stay dense; default: the output embeddings", several=True, metavar="NAME"
        ),
    )
    compress: bool = field(
        default=False,
        metadata=argument("store weights in the smallest formats, which sparseinfer.load reads"),
    )
    seed: int = field(default=0, metadata=argument("seed of the random numbers", read=int))

    def __post_init__(self) -> None:
        for name, asked in arguments(Job).items():
            if asked.read is positive:
                check_int(name, getattr(self, name), 1)
        if self.structured is not None:
            check_fraction("structured", self.structured)
            importance_of(self.importance)
        self.pruning_method()
        if self.quantize is not None and self.quantize not in quantizers():
            raise ValueError(f"quantize: expected one of {', '.join(quantizers())}, got {self.quantize!r}")

    def pruning_method(self) -> SparseMethod | None:
        """The pruning method with its sparsity, scope, pattern and budget; None: only units are removed."""
        if self.structured is not None and self.sparsity is None and self.pattern is None:
            return None
        methods, budgets = registry.methods(), registry.budgets()
        if self.method not in methods:
            raise ValueError(f"method: expected one of {', '.join(methods)}, got {self.method!r}")
        if self.budget not in budgets:
            raise ValueError(f"budget: expected one of {', '.join(budgets)}, got {self.budget!r}")
        method = methods[self.method]
        given = {"pattern": self.pattern, "scope": self.scope}
        options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if "seed" in {option.name for option in fields(method)}:
            options["seed"] = self.seed
        if self.sparsity is not None:
            return method(budgets[self.budget](self.sparsity), **options)
        if not isinstance(self.pattern, NM):
            raise ValueError("sparsity: expected a fraction, got none (only a pattern of N:M says it)")
        if self.budget != registry.UNIFORM:
            raise ValueError(
                f"budget: expected {registry.UNIFORM} with {self.pattern!r}, got {self.budget!r}"
            )
        return method(None, **options)
