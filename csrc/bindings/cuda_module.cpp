// sparseinfer._cuda: integers and addresses only. Callers (sparseinfer/ops/cuda.py) own the memory and see to it that
// all of it and the stream belong to one device; the rest is checked on this side.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "bindings/gpu_rows.h"
#include "cuda/launch.h"

namespace py = pybind11;
using namespace sparseinfer;

namespace {

py::list kernels() {
  py::list list;
  for (int i = 0; i < gpu::kKernelCount; ++i) list.append(gpu_row(gpu::kKernels[i]));
  return list;
}

const gpu::Kernel& checked_kernel(int64_t id) {
  if (id < 0 || id >= gpu::kKernelCount) {
    throw std::invalid_argument("kernel: expected the id of a kernel, got " + std::to_string(id));
  }
  return gpu::kKernels[id];
}

py::dict device(int index) {
  const gpu::Device& found = gpu::device_of(index);
  py::dict d;
  d["name"] = found.name;
  d["capability"] = py::make_tuple(found.capability / 10, found.capability % 10);
  d["multiprocessors"] = found.multiprocessors;
  d["shared_bytes"] = found.shared_bytes;
  return d;
}

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// header: host copy of the packing's first bytes. `packed`, x, bias and y: device memory.
gpu::Args args_of(int device, uintptr_t stream, uintptr_t header, uintptr_t packed, int64_t nbytes, uintptr_t y,
                  int64_t ldy) {
  gpu::Args args{};
  args.w = *gpu::check_header(pointer<const void>(header), nbytes);
  args.blob = pointer<const char>(packed);
  args.y = pointer<void>(y);
  args.ldy = ldy;
  args.device = device;
  args.stream = reinterpret_cast<cudaStream_t>(stream);
  return args;
}

void spmm(int64_t kernel, int device, uintptr_t stream, uintptr_t header, uintptr_t packed, int64_t nbytes, uintptr_t x,
          int64_t x_dtype, int64_t m, int64_t k, int64_t ldx, uintptr_t bias, int64_t bias_dtype, uintptr_t y,
          int64_t n, int64_t activation) {
  gpu::Args args = args_of(device, stream, header, packed, nbytes, y, n);
  if (x_dtype < 0 || x_dtype >= kNumDTypes) throw std::invalid_argument("x: expected the number of a dtype");
  if (bias_dtype != 0 && bias_dtype != x_dtype) throw std::invalid_argument("bias: expected fp32 or the dtype of x");
  if (activation < 0 || activation >= kNumActivations) {
    throw std::invalid_argument("activation: expected the number of an activation");
  }
  if (k != args.w.k) {
    throw std::invalid_argument("x: expected " + std::to_string(args.w.k) + " in_features in the last dimension, got " +
                                std::to_string(k));
  }
  if (n != args.w.n) {
    throw std::invalid_argument("n: expected " + std::to_string(args.w.n) + " out_features as packed, got " +
                                std::to_string(n));
  }
  args.x = pointer<const void>(x);
  args.m = m;
  args.ldx = ldx;
  args.bias = pointer<const void>(bias);
  args.bias_dtype = static_cast<DType>(bias_dtype);
  args.activation = static_cast<Activation>(activation);
  const gpu::Kernel& chosen = checked_kernel(kernel);
  if (std::string(chosen.op) != "spmm")
    throw std::invalid_argument("kernel: expected one of spmm, got " + std::string(chosen.name));
  gpu::launch(chosen, args, static_cast<DType>(x_dtype));
}

void decompress(int64_t kernel, int device, uintptr_t stream, uintptr_t header, uintptr_t packed, int64_t nbytes,
                uintptr_t y, int64_t ldy) {
  const gpu::Kernel& chosen = checked_kernel(kernel);
  if (std::string(chosen.op) != "decompress") {
    throw std::invalid_argument("kernel: expected one of decompress, got " + std::string(chosen.name));
  }
  const gpu::Args args = args_of(device, stream, header, packed, nbytes, y, ldy);
  gpu::launch(chosen, args, args.w.dtype);
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA kernels of sparseinfer. Private: use sparseinfer.ops.";
  m.attr("__version__") = SPARSEINFER_VERSION;
  m.attr("toolkit") = py::make_tuple(CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
  m.def("kernels", &kernels);
  m.def("device", &device, py::arg("index"));
  m.def(
      "runs_on",
      [](int64_t kernel, int index) {
        const gpu::Kernel& row = checked_kernel(kernel);
        return gpu::runs_on(row, gpu::device_of(index));
      },
      py::arg("kernel"), py::arg("index"));
  m.def("spmm", &spmm, py::arg("kernel"), py::arg("device"), py::arg("stream"), py::arg("header"), py::arg("packed"),
        py::arg("nbytes"), py::arg("x"), py::arg("x_dtype"), py::arg("m"), py::arg("k"), py::arg("ldx"),
        py::arg("bias"), py::arg("bias_dtype"), py::arg("y"), py::arg("n"), py::arg("activation"));
  m.def("decompress", &decompress, py::arg("kernel"), py::arg("device"), py::arg("stream"), py::arg("header"),
        py::arg("packed"), py::arg("nbytes"), py::arg("y"), py::arg("ldy"));
}
