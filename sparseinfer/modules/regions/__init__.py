"""Parts of networks of convolutions that run as one native call, with the results of their modules."""

from sparseinfer.modules.regions.captured import Captured, Holder, is_layer
from sparseinfer.modules.regions.trace import Refused

__all__ = ["Captured", "Holder", "Refused", "is_layer"]
