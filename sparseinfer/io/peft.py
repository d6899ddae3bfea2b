"""LoRA adapters of PEFT on converted layers.

PEFT knows the layers of torch only; a configuration can name others. So that users keep PEFT's own calls,
`with_sparse_layers` adds ours to a configuration:

    config = with_sparse_layers(PeftConfig.from_pretrained("adapter"))
    model = PeftModel.from_pretrained(fast, "adapter", config=config)
"""

from __future__ import annotations

from functools import cache
from typing import Any, NoReturn, TypeVar

from sparseinfer import _packages
from sparseinfer.modules.stand_in import StandIn

Config = TypeVar("Config")


def with_sparse_layers(config: Config) -> Config:
    """The LoraConfig, which now also takes the Linears that `convert` inserted; returns the same object.

    The adapter runs beside the layer, for inference: sparse layers pass no gradients on. It can be unloaded;
    to merge it, make the layers dense first, with `densify_(peft_model)`. TypeError: not a LoraConfig.
    RuntimeError: PEFT is not installed.
    """
    try:
        from peft import LoraConfig
    except ImportError:
        raise _packages.missing("with_sparse_layers", "peft", "peft") from None
    if not isinstance(config, LoraConfig):
        raise TypeError(f"config: expected a LoraConfig of PEFT, got {type(config).__name__}")
    registered: Any = config
    registered._register_custom_module({StandIn: _lora_class()})
    return config


@cache
def _lora_class() -> type[Any]:
    """PEFT's LoRA of a Linear, which does not write to a weight that is not there."""
    from peft.tuners.lora import Linear

    class SparseLoraLinear(Linear):
        def __init__(self, base_layer: Any, *args: Any, **kwargs: Any) -> None:
            if not hasattr(base_layer, "out_features"):
                got = type(base_layer).__name__
                raise ValueError(f"target_modules: expected Linears, got {got} (leave it out)")
            super().__init__(base_layer, *args, **kwargs)

        def _get_in_out_features(self, module: Any) -> tuple[int, int]:
            return module.in_features, module.out_features

        def merge(self, *args: Any, **kwargs: Any) -> None:
            if isinstance(self.get_base_layer(), StandIn):
                self._refuse()
            super().merge(*args, **kwargs)

        def _refuse(self) -> NoReturn:
            got = type(self.get_base_layer()).__name__
            hint = "call sparseinfer.densify_ with the PEFT model, merge, then convert again"
            raise RuntimeError(f"merge: expected a dense layer, got {got} ({hint})")

    return SparseLoraLinear
