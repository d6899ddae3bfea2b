"""Launches from the host: a runtime of the test's own answers, so that what goes wrong needs no GPU."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler on this machine")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    target = tmp_path_factory.mktemp("launched") / "liblaunched.so"
    search = [f"-I{ROOT / path}" for path in ("tests/cuda/stubs", "csrc", "csrc/include")]
    names = ("tests/cuda/launched.cpp", "csrc/cuda/launch.cpp")
    packings = sorted((ROOT / "csrc/packings/gpu").glob("*.cpp"))
    options = ["-std=c++17", "-O0", "-shared", "-fPIC", "-Wall", "-Werror"]
    sources = [str(path) for path in (*(ROOT / name for name in names), *packings)]
    subprocess.run(["c++", *options, *search, *sources, "-o", str(target)], check=True)
    return ctypes.CDLL(str(target))


def launched(
    library: ctypes.CDLL,
    *,
    driver: int = 13000,
    current: int = 0,
    device: int = 1,
    capability: int = 80,
    next_capability: int = 0,
    m: int = 3,
    n: int = 5,
    k: int = 7,
    ldx: int = 7,
    fails: bool = False,
) -> int:
    """The device that the kernel was launched on, -1 if it was not. RuntimeError as the module throws it."""
    message = ctypes.create_string_buffer(300)
    sizes = (ctypes.c_int64(size) for size in (m, n, k, ldx))
    found: int = library.launched(
        driver, current, device, capability, next_capability, *sizes, int(fails), message
    )
    assert found != -3  # the thread's device was changed, or the kernel was told of another GPU
    if found == -2:
        raise RuntimeError(message.value.decode())
    return found


def test_a_kernel_runs_on_the_device_of_its_arguments(library: ctypes.CDLL) -> None:
    assert [launched(library, current=2, device=device) for device in (1, 2, 3)] == [1, 2, 3]


def test_nothing_is_launched_for_an_empty_result(library: ctypes.CDLL) -> None:
    assert launched(library, m=0) == -1
    assert launched(library, n=0) == -1
    assert launched(library, k=0, ldx=0) == 1  # y is the bias


def test_what_the_runtime_refuses_is_named(library: ctypes.CDLL) -> None:
    message = r"spmm_csr_f32_t32__simt on A GPU \(compute capability 8.0\): m=3, n=5, k=7: invalid argument"
    with pytest.raises(RuntimeError, match=message):
        launched(library, current=3, fails=True)


def test_kernels_run_where_their_machine_code_does(library: ctypes.CDLL) -> None:
    assert [launched(library, device=device) for device in (1, 2, 3)] == [1, 2, 3]
    assert launched(library, device=2, capability=90, next_capability=91) == 2
    for device, found in ((0, "7.0"), (1, "8.0"), (3, "10.0")):
        message = rf"got spmm_csr_f32_t32__simt on A GPU \(compute capability {found}\), which needs 9.0$"
        with pytest.raises(RuntimeError, match=message):
            launched(library, device=device, capability=90, next_capability=91)
    with pytest.raises(RuntimeError, match=r"which needs 8\.0 or newer"):
        launched(library, device=0)


@pytest.mark.parametrize(
    ("driver", "message"),
    [
        (0, "cuda: expected an NVIDIA driver, got none"),
        (12090, r"cuda: expected a driver for CUDA 13.0 or newer, got one for 12.9 \(update"),
        (13000, "device: expected one of 4, got 9"),
    ],
)
def test_drivers_and_devices_that_are_not_there(library: ctypes.CDLL, driver: int, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        launched(library, driver=driver, device=9)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"m": 2**30, "n": 4096}, "x: expected fewer tokens, got 1073741824"),
        ({"m": 2**31 - 1}, "x: expected fewer tokens, got 2147483647"),
        ({"m": -1}, "x: expected fewer tokens, got -1"),
        ({"n": 2**31 - 4096}, "spmm_csr_f32_t32__simt: expected fewer rows, got 2147479552"),
        ({"ldx": 6}, "x: expected rows of at least 7 elements"),
    ],
)
def test_sizes_that_kernels_cannot_count(library: ctypes.CDLL, sizes: dict[str, int], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        launched(library, **sizes)
    assert launched(library, m=2**31 - 2**17) == 1
