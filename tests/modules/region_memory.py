"""Run by test_region_memory.py: measures the dense or the converted network, and prints it as JSON."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import torch
from region_models import ResNet, converted

from sparseinfer.bench.memory import memory_of
from sparseinfer.convert.assembly.joining import region_of


def main(which: str, batch: int) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(2)
    with torch.inference_mode():
        model = ResNet(32)
        fast = converted(model, torch.randn(batch, 3, 32, 32))  # prunes `model`, too
        if which == "converted":
            assert region_of(fast) is not None
            model = fast
        model(torch.randn(batch, 3, 32, 32))
        x = torch.randn(batch, 3, 224, 224)
        sys.stdout.write(json.dumps(asdict(memory_of(lambda: model(x)))))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
