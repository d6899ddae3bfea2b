"""Parts of a network of convolutions that run as one native call, where that returns what the modules return."""

from sparseinfer.modules.regions.captured import Captured, Holder, is_layer
from sparseinfer.modules.regions.trace import Refused

__all__ = ["Captured", "Holder", "Refused", "is_layer"]
