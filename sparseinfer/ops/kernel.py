"""What the row of a kernel says on every device: planner, benchmark and layouts read these and no other list."""

from __future__ import annotations


class Kernel:
    """A row of csrc/cpu/kernels.inc or csrc/cuda/kernels.inc, without what only one device has.

    name                          of one kernel: op, packing, storage or dtype, tile, then "__" and its level
    op                            "spmm", or "decompress": the weight is written out densely
    format                        "csr" or "bsr": what its packing is made from
    storage                       how the packing holds its weights
    min_tokens, max_tokens        the calls that it is meant for; max_tokens 0: no limit
    bucket_tokens                 up to here another choice may be best, so plans may change here; 0: nowhere
    min_sparsity, max_sparsity    the weights it is meant for; where the first is larger it is not planned for
                                  speed: a baseline, or for memory="compact"
    """

    name: str
    op: str
    packing: str
    tile_tokens: int
    min_tokens: int
    max_tokens: int
    min_sparsity: float
    max_sparsity: float

    @property
    def base_name(self) -> str:
        """The name without the level or architecture, as plans write it: the same on every machine."""
        return self.name.rsplit("__", 1)[0]

    @property
    def is_planned(self) -> bool:
        """Whether it is meant for weights of any sparsity at all."""
        return self.min_sparsity <= self.max_sparsity

    def serves(self, tokens: int) -> bool:
        """Whether it is meant for so many tokens."""
        return self.min_tokens <= tokens and (not self.max_tokens or tokens <= self.max_tokens)

    def suits(self, sparsity: float) -> bool:
        """Whether it is meant for weights of this sparsity."""
        return self.min_sparsity <= sparsity <= self.max_sparsity
