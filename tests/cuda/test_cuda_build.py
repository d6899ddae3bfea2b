"""What the CUDA compiler said of every kernel, and the module itself on machines without a GPU."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from cuda_helpers import BUILD, ROOT, built_module
from torch import Tensor

from sparseinfer._native import core
from sparseinfer.formats import BSR, CSR
from sparseinfer.ops.cuda import packing as cuda_packing

CSRC = ROOT / "csrc"
FOLDERS = {"simt": {"sm_80", "sm_90a"}, "sm80": {"sm_80"}, "sm90": {"sm_90a"}}


def logs() -> dict[Path, str]:
    """Source -> what `make cuda-build` left of the compiler's words; skips the test without them."""
    found = {
        CSRC / "cuda" / path.parent.name / path.name.removesuffix(".o.log"): path.read_text()
        for path in BUILD.rglob("*.cu.o.log")
    }
    if not found:
        pytest.skip("no compiler's report: `make cuda-build` has not run")
    return found


def test_every_source_was_compiled_for_its_architectures() -> None:
    found = logs()
    assert set(found) == set((CSRC / "cuda").rglob("*.cu"))
    for source, log in found.items():
        assert (
            set(re.findall(r"Compiling entry function '\w+' for '(sm_\w+)'", log))
            == FOLDERS[source.parent.name]
        )


def test_no_kernel_spills_or_uses_local_memory() -> None:
    kernels = 0
    for source, log in logs().items():
        figures = re.findall(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads\n"
            r".*Used (\d+) registers",
            log,
        )
        assert len(figures) == log.count("Compiling entry function"), source
        for stack, stores, loads, registers in figures:
            assert (stack, stores, loads) == ("0", "0", "0"), source
            # 384 threads of 168 registers are a whole multiprocessor; tiles have 128 threads.
            assert int(registers) <= (255 if source.name == "tiles.cu" else 168), source
        kernels += len(figures)
        assert "warning" not in log, source
        assert "serialized" not in log, source  # what ptxas says where it makes wgmma wait
    assert kernels >= 50


def test_stub_matches_the_module() -> None:
    cuda = built_module()
    body = ast.parse((ROOT / "sparseinfer/_cuda.pyi").read_text()).body
    functions = {node.name: node for node in body if isinstance(node, ast.FunctionDef)}
    names = {
        node.target.id
        for node in body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    assert names | set(functions) == {name for name in dir(cuda) if not name.startswith("__")} | {
        "__version__"
    }
    for name, node in functions.items():
        signature = getattr(cuda, name).__doc__.splitlines()[0]
        assert re.findall(r"(\w+): ", signature[: signature.rindex(")")]) == [a.arg for a in node.args.args]


def test_registry() -> None:
    cuda = built_module()
    rows = cuda.kernels()
    assert len({row["name"] for row in rows}) == len(rows)
    for row in rows:
        assert row["name"] == "{op}_{packing}_{dtype}_{tile}__{arch}".format(**row)
    have = {(row["op"], row["packing"], row["dtype"], row["block"]) for row in rows}
    assert {("spmm", "csr", dtype, 1) for dtype in ("f32", "bf16", "f16")} <= have
    assert {("decompress", "csr", dtype, 1) for dtype in ("f32", "bf16", "f16")} <= have
    for arch in ("sm80", "sm90"):
        blocks = {(r["dtype"], r["block"]) for r in rows if r["packing"] == "bsr" and r["arch"] == arch}
        assert blocks == {(dtype, block) for dtype in ("bf16", "f16") for block in (16, 32, 64, 128)}
        tiled = {(r["packing"], r["dtype"], r["tile"], r["most_tokens"]) for r in rows if r["arch"] == arch}
        assert tiled >= {
            (packing, dtype, f"t{tokens}", 0 if tokens == 64 else tokens)
            for packing in ("bitmap", "delta4", "delta8")
            for dtype in ("bf16", "f16")
            for tokens in (8, 16, 32, 64)
        }


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_driver_errors_are_exceptions() -> None:
    cuda = built_module()
    with pytest.raises(RuntimeError, match=r"cuda: expected an? .*driver|device: expected one of"):
        cuda.device(0)
    with pytest.raises(RuntimeError, match=r"cuda: |device: "):
        cuda.runs_on(0, 0)


def spmm(name: str, packed: Tensor, **change: int) -> None:
    """A launch with addresses of CPU memory: whatever is wrong has to be found before the launch."""
    cuda = built_module()
    x, y = torch.zeros(64, 256), torch.zeros(64, 256)
    known = cuda_packing.resident(packed)
    arguments = {
        "kernel": [row["name"] for row in cuda.kernels()].index(name),
        "device": 0,
        "stream": 0,
        "header": known.header.data_ptr(),
        "packed": packed.data_ptr(),
        "nbytes": packed.numel(),
        "x": x.data_ptr(),
        "x_dtype": core.dtypes.index(known.info.dtype),
        "m": 3,
        "k": known.info.k,
        "ldx": known.info.k,
        "bias": 0,
        "bias_dtype": 0,
        "y": y.data_ptr(),
        "n": known.info.n,
        "activation": 0,
    }
    names = {
        "place": ("device", "stream"),
        "packed": ("header", "packed", "nbytes"),
        "x": ("x", "x_dtype", "m", "k", "ldx"),
        "epilogue": ("bias", "bias_dtype", "activation"),
        "y": ("y", "n"),
    }
    arguments |= change
    structs = {struct: tuple(arguments[name] for name in fields) for struct, fields in names.items()}
    cuda.spmm(arguments["kernel"], **structs)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("spmm_csr_f32_t32__simt", {"kernel": 999}, "kernel: expected the id of a kernel, got 999"),
        (
            "decompress_csr_f32_p480__simt",
            {},
            "kernel: expected one of spmm, got decompress_csr_f32_p480__simt",
        ),
        ("spmm_csr_bf16_t64__simt", {}, "kernel: expected a packing csr of bf16 .* got csr of f32"),
        ("spmm_bsr_bf16_b64__sm90", {}, "kernel: expected a packing bsr of bf16 in blocks of 64"),
        ("spmm_csr_f32_t32__simt", {"k": 41}, "x: expected 40 in_features in the last dimension, got 41"),
        ("spmm_csr_f32_t32__simt", {"n": 25}, "n: expected 24 out_features as packed, got 25"),
        ("spmm_csr_f32_t32__simt", {"ldx": 39}, "x: expected rows of at least 40 elements"),
        ("spmm_csr_f32_t32__simt", {"x_dtype": 1}, "x: expected f32 for spmm_csr_f32_t32__simt, got bf16"),
        ("spmm_csr_f32_t32__simt", {"m": 2**31}, "x: expected fewer tokens, got 2147483648"),
        ("spmm_csr_f32_t4__simt", {"m": 5}, "x: expected at most 4 tokens for spmm_csr_f32_t4__simt, got 5"),
        ("spmm_csr_f32_t32__simt", {"nbytes": 100}, "packed: expected at least 128 bytes, got 100"),
        ("spmm_csr_f32_t32__simt", {"activation": 9}, "activation: expected the number of an activation"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_launched(
    name: str, change: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        spmm(name, cuda_packing.pack(CSR.from_dense(torch.eye(24, 40)), "cpu"), **change)


def test_rows_that_tiles_cannot_be_copied_from_are_refused() -> None:
    w = BSR.from_dense(torch.ones(64, 64, dtype=torch.bfloat16), (64, 64))
    for name in ("spmm_bsr_bf16_b64__sm80", "spmm_bsr_bf16_b64__sm90"):
        with pytest.raises(ValueError, match="x: expected rows that begin at multiples of 16 bytes"):
            spmm(name, cuda_packing.pack(w, "cpu"), ldx=65)


@pytest.mark.skipif(shutil.which("readelf") is None, reason="readelf reads ELF only")
def test_the_module_needs_no_cuda_library_to_be_imported() -> None:
    shown = subprocess.run(
        ["readelf", "-d", built_module().__file__], check=True, capture_output=True, text=True
    )
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", shown.stdout)
    assert needed
    assert not [name for name in needed if re.search(r"cuda|torch|c10", name)]
