"""The plug-in of vLLM: SmolLM2-135M, half of it pruned, generates the tokens of vLLM's own layers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sparseinfer.io.compressed_tensors import compress

HERE = Path(__file__).parent
LAYERS = 30


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smollm2")
    script = HERE.parents[1] / "bench/serving/smollm2.py"
    subprocess.run([sys.executable, script, folder], check=True, timeout=600)
    return folder


@pytest.fixture(scope="session")
def caches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("caches")
    names = ("VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR", "SPARSEINFER_CACHE_DIR")
    return {name: str(folder / name) for name in names}


@pytest.fixture(scope="session")
def generated(caches: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What vLLM generates with these keywords, each in a process of its own, once."""

    @cache
    def run(text: str) -> dict[str, Any]:
        file = tmp_path_factory.mktemp("answer") / "answer.json"
        command = [sys.executable, str(HERE / "vllm_generate.py"), text, str(file)]
        done = subprocess.run(
            command, env={**os.environ, **caches}, capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        answer: dict[str, Any] = json.loads(file.read_text())
        return answer

    return lambda model, **keywords: run(json.dumps({"model": str(model), "dtype": "float32", **keywords}))


# Every layer is packed, whatever is faster.
COMPACT = {"quant_method": "sparseinfer", "memory": "compact"}
PACKED = {"hf_overrides": {"quantization_config": COMPACT}}
# Compiling takes most of a run: what does not depend on it is tested without.
EAGER = {"enforce_eager": True}


@pytest.fixture(scope="session")
def dense(folders: Path, generated: Any) -> list[list[int]]:
    answer = generated(folders / "dense")
    assert answer["sparse"] == [0]
    tokens: list[list[int]] = answer["tokens"]
    return tokens


def test_zeros_are_packed_while_a_dense_folder_is_loaded(folders: Path, generated: Any, dense: Any) -> None:
    answer = generated(folders / "dense", **PACKED)
    assert answer["tokens"] == dense
    assert answer["sparse"] == [4 * LAYERS]  # qkv and gate_up are one layer each


def test_layers_are_packed_where_that_is_faster(folders: Path, generated: Any, dense: Any) -> None:
    options = {"quant_method": "sparseinfer", "memory": 2}
    answer = generated(folders / "dense", hf_overrides={"quantization_config": options})
    assert answer["tokens"] == dense
    assert 0 <= answer["sparse"][0] <= 4 * LAYERS  # those that are faster


def test_a_folder_of_sparse_weights(folders: Path, generated: Any, dense: Any) -> None:
    answer = generated(folders / "packed", load_format="sparseinfer", **PACKED, **EAGER)
    assert answer["tokens"] == dense
    assert answer["sparse"] == [4 * LAYERS]


def test_two_ranks_share_each_layer(folders: Path, generated: Any, dense: Any) -> None:
    answer = generated(folders / "split", tensor_parallel_size=2, **PACKED)
    assert answer["tokens"] == dense
    assert answer["sparse"] == [4 * LAYERS] * 2


def test_a_folder_of_compressed_tensors(folders: Path, tmp_path: Path, generated: Any, dense: Any) -> None:
    for file in (folders / "dense").glob("*.json"):
        (tmp_path / file.name).write_text(file.read_text())
    weights = load_file(folders / "dense/model.safetensors")
    layers = [name.removesuffix(".weight") for name in weights if name.endswith("_proj.weight")]
    save_file(compress(weights, targets=layers), tmp_path / "model.safetensors", {"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    sparsity = {"format": "sparse-bitmask", "targets": ["Linear"], "ignore": ["lm_head"]}
    config["quantization_config"] = {"quant_method": "compressed-tensors", "sparsity_config": sparsity}
    (tmp_path / "config.json").write_text(json.dumps(config))
    answer = generated(tmp_path, load_format="sparseinfer", **EAGER)
    assert answer["tokens"] == dense


def test_options_come_from_the_folders_config(folders: Path, generated: Any, dense: Any) -> None:
    options = {**COMPACT, "ignore": ["re:.*mlp", "re:.*k_proj"]}
    answer = generated(folders / "dense", hf_overrides={"quantization_config": options}, **EAGER)
    assert answer["tokens"] == dense
    assert answer["sparse"] == [LAYERS]  # the projections of the attention's output


@torch.inference_mode()
def test_where_vllms_own_product_is_faster_it_computes_the_layer() -> None:
    from sparseinfer.convert.one_by_one import SparseOrOwn
    from sparseinfer.modules import SparseLinear
    from sparseinfer.ops import Bucket, parse_plan
    from sparseinfer.serve.vllm.linear import held_of

    dense = torch.nn.Linear(16, 24, bias=False)
    dense.weight[:, ::2] = 0
    packed = SparseLinear.from_linear(dense)
    kernel = parse_plan(packed.plan)[0].kernel
    buckets = [Bucket(4, 0, kernel), Bucket(None, 0, kernel)]
    sparse = SparseOrOwn(SparseLinear(list(packed.buffers()), buckets=buckets), own_at=(1,))
    rows: list[int] = []

    def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        rows.append(len(x))
        return torch.nn.functional.linear(x, weight, bias)

    held = held_of(sparse, SimpleNamespace(cpu_linear=product, weight=dense.weight))
    bias = torch.randn(24)
    for tokens in (0, 1, 4, 5, 9):
        x = torch.randn(tokens, 16)
        torch.testing.assert_close(held.run(x, bias), dense(x) + bias)
    assert rows == [5, 9]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_the_product_that_layers_are_timed_against_is_that_of_vllm(dtype: torch.dtype) -> None:
    from sparseinfer.serve.vllm.linear import _OWN

    x, weight = torch.randint(-4, 5, (3, 64)).to(dtype), torch.randint(-4, 5, (32, 64)).to(dtype)
    assert torch.equal(_OWN.make(weight.clone())(x), (x.double() @ weight.double().T).to(dtype))


def test_sparse_weights_need_the_load_format(folders: Path, generated: Any) -> None:
    with pytest.raises(AssertionError, match="load_format: expected 'sparseinfer', got 'auto'"):
        generated(folders / "packed", **EAGER)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"precission": "bf16"}, "expected keywords tokens"),
        ({"precision": "fp4"}, "precision: expected"),
        ({"ignore": "re:("}, "ignore: expected a regular expression"),
    ],
)
def test_wrong_options(config: dict[str, Any], message: str) -> None:
    from sparseinfer.serve.vllm.config import SparseInferConfig

    with pytest.raises((ValueError, TypeError), match=message):
        SparseInferConfig.from_config({"quant_method": "sparseinfer", **config})


def test_compressed_tensors_with_quantization_are_left_to_vllm() -> None:
    from sparseinfer.serve.vllm.config import SparseInferConfig

    sparse = {"quant_method": "compressed-tensors", "sparsity_config": {"format": "sparse-bitmask"}}
    taken = SparseInferConfig.override_quantization_method
    assert taken(sparse, None) == "sparseinfer"
    assert taken({**sparse, "config_groups": {"group_0": {}}}, None) is None
    assert taken({"quant_method": "compressed-tensors", "sparsity_config": {"format": "dense"}}, None) is None


def test_registering_again_changes_nothing() -> None:
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS

    from sparseinfer.serve.vllm import register

    register()
    register()
    assert QUANTIZATION_METHODS.count("sparseinfer") == 1


def test_a_handle_of_no_layer() -> None:
    from sparseinfer.serve.vllm.operator import held_call

    with pytest.raises(ValueError, match="handle: expected one of a layer of this process"):
        held_call(torch.zeros(1, 4), torch.tensor(10**9), None, 4)
