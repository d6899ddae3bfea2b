"""The interface of a product's candidates, used by `plan` and `Timer`, and their common base class."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeAlias

import torch
from torch import Tensor

from sparseinfer import ops
from sparseinfer._timing import Call
from sparseinfer.convert.candidates.cost_model import Case, predict_dense, predict_sparse
from sparseinfer.convert.survey.weights import Weights
from sparseinfer.formats import BSR, CSR
from sparseinfer.ops import Layout
from sparseinfer.ops.names import STORAGES

if TYPE_CHECKING:
    from typing_extensions import Self

# Makes a call that holds weights of its own, so that several of them take turns in memory.
Maker = Callable[[], Call]

# A dense way by its name, or the layout of a sparse one.
Candidate: TypeAlias = "str | Layout"


class Timed(Protocol):
    """Everything that could compute one product, ready to be timed.

    dense_weights   as they are now; x and y have their dtype
    weights         the weights to make sparse, perhaps rounded to 16 or 8 bits
    """

    @property
    def dense_weights(self) -> Weights: ...

    @property
    def weights(self) -> Weights: ...

    @property
    def variants(self) -> Sequence[Candidates]:
        """Those of each dtype of the weights; this one itself, if there is only one."""

    @property
    def kind(self) -> str:
        """Names the operator and the dtypes of dense layer, sparse weight and rounded x."""

    @property
    def shape(self) -> tuple[object, ...]:
        """Names all else that times depend on, except the number of tokens and the weight's zeros."""

    @property
    def title(self) -> str:
        """For a progress bar."""

    @property
    def dense_names(self) -> tuple[str, ...]:
        """Keys of `dense`, without making the implementations."""

    def dense(self, tokens: int) -> Mapping[str, Maker]:
        """The dense implementations, by name."""

    def sparse(self, layout: Layout, tokens: int) -> Maker:
        """A module that multiplies by the weight in this layout."""

    def nbytes(self, candidate: Candidate) -> int:
        """Bytes of its weights."""

    def predict(self, candidate: Candidate, tokens: int, *, cold: bool = False) -> float:
        """Predicted microseconds, without running it; infinity if unknown. `cold`: weights from memory."""


class Candidates(Timed, Protocol):
    """The same with weights in one dtype, from whose layouts a plan can be made."""

    @property
    def limits(self) -> tuple[int | None, ...]:
        """Upper ends of the token buckets a layer may have, ascending; None = no limit."""

    @property
    def min_sparsity(self) -> float:
        """Below it no layout is tried."""

    def layouts(self, tokens: int) -> tuple[Layout, ...]:
        """The layouts that may be fastest for this number of tokens."""

    def compact_layout(self) -> Layout:
        """The layout of fewest bytes that has kernels for any number of tokens."""

    def holds(self, layout: Layout) -> bool:
        """Whether the layout holds these weights without rounding them."""

    def packed(self, layout: Layout) -> tuple[Tensor, ...]:
        """The weight in a layout: one packing, or one per group of channels. Made at most once."""

    def kernel(self, layout: Layout, tokens: int) -> str:
        """Base name of the kernel that reads this layout."""

    def buckets(self, layout: Layout) -> tuple[ops.Bucket, ...]:
        """A plan for any number of tokens with this layout alone, as packing number 0."""


@dataclass(eq=False)
class BaseCandidates(ABC):
    """Common base of all Candidates; the defaults are for a CPU."""

    device: ClassVar[str] = "cpu"

    dense_weights: Weights
    weights: Weights
    _packings: dict[Layout, tuple[Tensor, ...]] = field(default_factory=dict, init=False)

    @property
    @abstractmethod
    def kind(self) -> str: ...

    @property
    def variants(self) -> Sequence[Self]:
        return (self,)

    @property
    def limits(self) -> tuple[int | None, ...]:
        return ops.token_limits(self.device)

    @property
    def min_sparsity(self) -> float:
        return ops.min_sparsity(self.device, self.weights.weight.dtype)

    def holds(self, layout: Layout) -> bool:
        dtype = self.weights.weight.dtype
        return layout.device != "cpu" or dtype in STORAGES[layout.storage].holds

    def packed(self, layout: Layout) -> tuple[Tensor, ...]:
        if layout not in self._packings:
            self._packings[layout] = self._pack(layout)
        return self._packings[layout]

    def nbytes(self, candidate: Candidate) -> int:
        if isinstance(candidate, str):
            return self.dense_weights.nbytes
        return sum(packed.nbytes for packed in self.packed(candidate))

    @abstractmethod
    def kernel(self, layout: Layout, tokens: int) -> str: ...

    @abstractmethod
    def _pack(self, layout: Layout) -> tuple[Tensor, ...]: ...

    def _format(self, layout: Layout) -> CSR | BSR:
        """The weight in the format that a layout is made from, for all layouts the same."""
        return self._bsr if layout.format == "bsr" else self._csr

    @cached_property
    def _csr(self) -> CSR:
        return CSR.from_dense(self.weights.weight, self._scales)

    @cached_property
    def _bsr(self) -> BSR:
        assert self.weights.block is not None
        return BSR.from_dense(self.weights.weight, self.weights.block, self._scales)

    @property
    def _scales(self) -> Tensor | None:
        return self.weights.scales if self.weights.weight.dtype == torch.int8 else None

    def predict(self, candidate: Candidate, tokens: int, *, cold: bool = False) -> float:
        """Microseconds by the cost model, for this instruction set and number of threads."""
        case = self._case(tokens, cold)
        if isinstance(candidate, str):
            return predict_dense(candidate, dtype_text(self.dense_weights.weight.dtype), case)
        kernel = ops.kernel_info(self.kernel(candidate, tokens))
        return predict_sparse(kernel.base_name, candidate.panel, kernel.unit, case, ops.active_isa())

    def _case(self, tokens: int, cold: bool) -> Case:
        n, k = self.weights.weight.shape
        return Case(n, k, self.weights.sparsity, tokens, torch.get_num_threads(), cold)


def kind_text(operator: str, *dtypes: torch.dtype) -> str:
    return " ".join([operator, *map(dtype_text, dtypes)])


def dtype_text(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
