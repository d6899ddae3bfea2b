"""sparseinfer: a pruned PyTorch model in, a faster model out.

import sparseinfer as si

si.prune_(model, si.Magnitude(sparsity=0.9))
fast = si.convert(model, example_inputs=(x,))
print(si.explain(fast))
"""

from __future__ import annotations

from importlib.metadata import version as _version

from sparseinfer import formats
from sparseinfer.bench.compare import Comparison, benchmark
from sparseinfer.convert import Explanation, convert, convert_, densify_, explain
from sparseinfer.modules import SparseConv1d, SparseConv2d, SparseLinear, SparseMultiheadAttention
from sparseinfer.prune import Magnitude, prune_

__version__ = _version("sparseinfer")

__all__ = [
    "Comparison",
    "Explanation",
    "Magnitude",
    "SparseConv1d",
    "SparseConv2d",
    "SparseLinear",
    "SparseMultiheadAttention",
    "__version__",
    "benchmark",
    "convert",
    "convert_",
    "densify_",
    "explain",
    "formats",
    "prune_",
]
