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
    answer = generated(folders / "dense", quantization="sparseinfer")
    assert answer["tokens"] == dense
    assert 0 <= answer["sparse"][0] <= 4 * LAYERS  # those that are faster


def test_layers_that_hold_both_weights(folders: Path, generated: Any, dense: Any) -> None:
    """Steps are packed, prompts are not, in one graph."""
    answer = generated(folders / "dense", own_from=1, **PACKED)
    assert answer["tokens"] == dense
    assert answer["sparse"] == [4 * LAYERS]


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


class Layer(torch.nn.Module):
    """As vLLM has a packed one whose buckets with these numbers are its own product's."""

    def __init__(self, kernels: list[int | None], own_at: tuple[int, ...]) -> None:
        from sparseinfer.convert.one_by_one import SparseOrOwn
        from sparseinfer.modules import SparseLinear
        from sparseinfer.ops import Bucket, parse_plan
        from sparseinfer.serve.vllm.linear import SparseLinearMethod

        super().__init__()
        self.dense = torch.nn.Linear(16, 24, bias=False)
        self.dense.weight.copy_(torch.randint(-4, 5, (24, 16)))
        self.dense.weight[:, ::2] = 0
        packed = SparseLinear.from_linear(self.dense)
        buckets = [Bucket(limit, 0, parse_plan(packed.plan)[0].kernel) for limit in kernels]
        made = SparseOrOwn(SparseLinear(list(packed.buffers()), buckets=buckets), own_at)
        packer = SimpleNamespace(packed=lambda weight, name: made)
        self.quant_method = SparseLinearMethod(packer)  # type: ignore[arg-type]
        self.weight, self.prefix = self.dense.weight, "layer"
        self.quant_method.process_weights_after_loading(self)

    def forward(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return self.quant_method.apply(self, x, bias)


BUCKETS = [
    ([4, None], (1,), {5, 9, 40}),
    ([4, None], (0,), {1, 3, 4}),
    ([4, 16, None], (0, 2), {1, 3, 4, 40}),
    ([4, 16, None], (1,), {5, 9}),
    ([None], (), set()),
]


@pytest.mark.parametrize(("kernels", "own_at", "own_tokens"), BUCKETS)
@torch.no_grad()
def test_where_vllms_own_product_is_faster_it_computes_the_layer(
    kernels: list[int | None], own_at: tuple[int, ...], own_tokens: set[int]
) -> None:
    layer, bias, called = Layer(kernels, own_at), torch.randint(-4, 5, (24,)).float(), set()
    product = getattr(layer, "cpu_linear", None)

    def noted(x: torch.Tensor, *others: Any) -> Any:
        called.add(len(x))
        return product(x, *others)  # type: ignore[misc]

    layer.cpu_linear = noted  # type: ignore[assignment]
    for tokens in (1, 3, 4, 5, 9, 40):
        x = torch.randint(-4, 5, (tokens, 16)).float()
        assert torch.equal(layer(x, bias), layer.dense(x) + bias)
    assert called == own_tokens


@pytest.mark.parametrize(("kernels", "own_at"), [each[:2] for each in BUCKETS])
@torch.inference_mode()
def test_one_graph_serves_any_number_of_tokens(kernels: list[int | None], own_at: tuple[int, ...]) -> None:
    torch.compiler.reset()
    layer = Layer(kernels, own_at)
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> object:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(layer, backend=backend, fullgraph=True, dynamic=True)
    for tokens in (3, 4, 5, 9, 40):
        x = torch.randint(-4, 5, (tokens, 16)).float()
        torch._dynamo.mark_dynamic(x, 0)
        assert torch.equal(compiled(x), layer.dense(x))
    assert len(graphs) == 1


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
