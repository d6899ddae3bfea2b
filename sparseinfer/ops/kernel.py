"""What the row of a kernel says on every device. Planner, benchmark and layouts read no other list."""

from __future__ import annotations

from typing import TYPE_CHECKING


class Kernel:
    """A row of csrc/cpu/kernels.inc or csrc/cuda/kernels.inc, without what only one device has.

    name            op, packing, storage and tile, then "__" and the level or architecture
    op              "spmm", or "decompress": the weight is written out densely
    packing         what it reads; `storage`: how that holds the weights; `format`: what it is made from
    conv            whether it computes convolutions
    tile_tokens     tokens that are computed together; 0: no fixed number
    min_tokens to max_tokens      the calls that it is meant for; max_tokens 0: no limit
    bucket_tokens                 up to here another choice may be best, so plans may change here; 0: nowhere
    min_sparsity to max_sparsity  the weights that it is meant for
    wide_panel                    a second panel worth trying up to bucket_tokens; 0: none
    """

    name: str
    op: str
    packing: str
    tile_tokens: int
    min_tokens: int
    max_tokens: int
    min_sparsity: float
    max_sparsity: float

    if TYPE_CHECKING:  # fields of one device, properties or constants of another

        @property
        def storage(self) -> str: ...
        @property
        def format(self) -> str: ...
        @property
        def conv(self) -> bool: ...
        @property
        def bucket_tokens(self) -> int: ...
        @property
        def wide_panel(self) -> int: ...

    @property
    def base_name(self) -> str:
        """The name without the level or architecture, as plans write it: the same on every machine."""
        return self.name.rsplit("__", 1)[0]

    @property
    def is_planned(self) -> bool:
        """Whether plans name it for speed. Others are baselines, or there for memory="compact"."""
        return self.min_sparsity <= self.max_sparsity

    def serves(self, tokens: int) -> bool:
        """Whether it is meant for so many tokens."""
        return self.min_tokens <= tokens and (not self.max_tokens or tokens <= self.max_tokens)

    def suits(self, sparsity: float) -> bool:
        """Whether it is meant for weights of this sparsity."""
        return self.min_sparsity <= sparsity <= self.max_sparsity
