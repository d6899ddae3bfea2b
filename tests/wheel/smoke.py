"""What a user does first with an installed wheel: prunes, converts, explains, saves, loads and reports."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from torch import nn

import sparseinfer as si
from sparseinfer.report import report


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(256, 512), nn.GELU(), nn.Linear(512, 64)).eval()


def main() -> None:
    model, x = net(), torch.randn(16, 256)
    si.prune_(model, si.Magnitude(sparsity=0.9), keep_masks=False)
    fast = si.convert(model, example_inputs=(x,))
    sys.stdout.write(f"{si.explain(fast)}\n")
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-4)
    with tempfile.TemporaryDirectory() as folder:
        si.save(fast, Path(folder) / "model.safetensors")
        again = si.load(Path(folder) / "model.safetensors", net)
        with torch.no_grad():
            assert torch.equal(again(x), fast(x))
        report(fast, Path(folder) / "report.html", dense=model, inputs=(x,), budget_s=0.1)
    sys.stdout.write(f"sparseinfer {si.__version__} with torch {torch.__version__} works: {si.__file__}\n")


if __name__ == "__main__":
    main()
