"""Files of others: torch's own, its masks and sparse layouts, compressed-tensors, folders of shards."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import pytest
import scipy.sparse
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import prune

import sparseinfer as si
from sparseinfer.formats import CSR
from sparseinfer.io import compressed_tensors
from sparseinfer.io.others import holds_sparse


def model() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 8))


@pytest.fixture
def pruned() -> nn.Sequential:
    made = model()
    si.prune_(made, si.Magnitude(sparsity=0.5))
    return si.finalize_(made).eval()  # type: ignore[return-value]


def assert_loads(path: Path, expected: nn.Module) -> None:
    loaded = si.load(path, nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 8)))
    state = loaded.state_dict()
    for name, t in expected.state_dict().items():
        assert torch.equal(state[name], t), name


@pytest.mark.parametrize("suffix", [".pt", ".bin"])
def test_state_dict_of_torch_save(pruned: nn.Sequential, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    torch.save(pruned.state_dict(), path)
    assert_loads(path, pruned)


@pytest.mark.parametrize("to_file", [torch.save, save_file], ids=["torch", "safetensors"])
def test_masks_of_torch_prune(tmp_path: Path, to_file: object) -> None:
    masked = model()
    prune.random_unstructured(masked[0], "weight", 0.7)
    prune.random_unstructured(masked[2], "weight", 0.4)
    path = tmp_path / ("model.pt" if to_file is torch.save else "model.safetensors")
    to_file(masked.state_dict(), path)  # type: ignore[operator]
    for layer in (masked[0], masked[2]):
        prune.remove(layer, "weight")
    assert_loads(path, masked)


@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:Sparse BSR")
def test_sparse_layouts_of_torch(pruned: nn.Sequential, tmp_path: Path) -> None:
    state: dict[str, Tensor] = dict(pruned.state_dict())
    state["0.weight"] = state["0.weight"].to_sparse_csr()
    state["2.weight"] = state["2.weight"].to_sparse_bsr((4, 8))
    torch.save(state, tmp_path / "model.pt")
    assert_loads(tmp_path / "model.pt", pruned)


@pytest.mark.parametrize("weight_keys", [False, True], ids=["new keys", "old keys"])
def test_folder_of_compressed_tensors_in_shards(
    pruned: nn.Sequential, tmp_path: Path, weight_keys: bool
) -> None:
    state = compressed_tensors.compress(dict(pruned.state_dict()), weight_keys=weight_keys)
    shards: dict[str, dict[str, Tensor]] = {"a.safetensors": {}, "b.safetensors": {}}
    where = {name: list(shards)[i % 2] for i, name in enumerate(state)}  # parts of a weight in both
    for name, file in where.items():
        shards[file][name] = state[name].contiguous()
    for file, tensors in shards.items():
        save_file(tensors, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    assert_loads(tmp_path, pruned)
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(ValueError, match=r"expected the shard 'b\.safetensors' of its index, got none"):
        assert_loads(tmp_path, pruned)
    index.write_text(json.dumps({"weight_map": {"0.bias": "../x.safetensors"}}))
    with pytest.raises(ValueError, match=r"expected the shard '\.\./x\.safetensors' of its index"):
        assert_loads(tmp_path, pruned)
    index.write_text("[]")
    with pytest.raises(ValueError, match="expected an index of shards"):
        assert_loads(tmp_path, pruned)


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    path, target = tmp_path / "model.pt", tmp_path / "executed"

    class Attack:
        def __reduce__(self) -> object:
            return (Path.touch, (target,))

    path.write_bytes(pickle.dumps({"0.weight": Attack()}))
    made = model()
    before = copy.deepcopy(made.state_dict())
    with pytest.raises(ValueError, match=r"model\.pt: expected a state_dict saved by torch"):
        si.load(path, made)
    assert not target.exists()
    assert all(torch.equal(t, before[name]) for name, t in made.state_dict().items())


def test_masks_that_do_not_fit(tmp_path: Path) -> None:
    masked = model()
    prune.random_unstructured(masked[0], "weight", 0.7)
    state = masked.state_dict() | {"0.weight_mask": torch.ones(32)}
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"model\.pt: 0\.weight_mask: expected \[32, 24\], got \[32\]"):
        si.load(tmp_path / "model.pt", model())


def test_matrix_of_scipy(pruned: nn.Sequential, tmp_path: Path) -> None:
    weight = pruned[0].weight.detach()
    scipy.sparse.save_npz(tmp_path / "w.npz", scipy.sparse.csr_matrix(weight.numpy()))
    loaded = CSR.from_scipy(scipy.sparse.load_npz(tmp_path / "w.npz"))
    assert torch.equal(loaded.to_dense(), weight)


def test_whether_a_folder_needs_this_reader(pruned: nn.Sequential, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    assert not holds_sparse(tmp_path)  # no file
    save_file(pruned.state_dict(), file)
    assert not holds_sparse(tmp_path)
    si.save(pruned, file)
    assert holds_sparse(tmp_path)
    save_file(compressed_tensors.compress(pruned.state_dict()), file)
    assert holds_sparse(tmp_path)
