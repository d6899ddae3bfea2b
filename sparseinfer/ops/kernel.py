"""The description of a kernel on any device, from which planner, benchmark and layouts derive everything."""

from __future__ import annotations

from typing import TYPE_CHECKING


class Kernel:
    """A row of csrc/cpu/kernels.inc or csrc/cuda/kernels.inc, without the fields of only one device.

    name            op, packing, storage and tile, then "__" and the level or architecture
    op              "spmm", or "decompress": writes the weight as a dense matrix
    packing         that it reads; `storage`: how it holds the weights; `format`: which it is made from
    conv            whether it computes convolutions
    tile_tokens     number of tokens computed together; 0: not fixed
    min_tokens to max_tokens      numbers of tokens that it is meant for; max_tokens 0: no limit
    bucket_tokens                 plans may switch to another layout above this number of tokens; 0: nowhere
    min_sparsity to max_sparsity  sparsities of the weight that it is meant for
    wide_panel                    second panel width worth trying up to bucket_tokens; 0: none
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
        """Whether plans use it for speed. Others are baselines, or only for memory="compact"."""
        return self.min_sparsity <= self.max_sparsity

    def serves(self, tokens: int) -> bool:
        """Whether it is meant for this number of tokens."""
        return self.min_tokens <= tokens and (not self.max_tokens or tokens <= self.max_tokens)

    def suits(self, sparsity: float) -> bool:
        """Whether it is meant for weights of this sparsity."""
        return self.min_sparsity <= sparsity <= self.max_sparsity
