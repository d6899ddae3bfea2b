// The Python module sparseinfer._cuda, which passes only integers and addresses. Callers
// (sparseinfer/ops/cuda/linear.py) own the memory and ensure that it and the stream are on one device; everything else
// is checked here.
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

#include "bindings/gpu_rows.h"
#include "bindings/parse.h"
#include "bindings/structs.h"
#include "cuda/launch.h"

namespace py = pybind11;
using namespace sparseinfer;
using namespace sparseinfer::bindings;

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
  const gpu::Device& device = gpu::device_of(index);
  py::dict d;
  d["name"] = device.name;
  d["capability"] = py::make_tuple(device.capability / 10, device.capability % 10);
  d["multiprocessors"] = device.multiprocessors;
  d["shared_bytes"] = device.shared_bytes;
  return d;
}

// Where a kernel is queued.
struct Place {
  int64_t device;
  uintptr_t stream;
  static constexpr auto fields() { return std::make_tuple(&Place::device, &Place::stream); }
};

// A packing: the host's copy of its first bytes, and the whole in device memory.
struct Packed {
  uintptr_t header, address;
  int64_t nbytes;
  static constexpr auto fields() { return std::make_tuple(&Packed::header, &Packed::address, &Packed::nbytes); }
};

// x, bias and y: device memory.
gpu::Args args_of(const Place& place, const Packed& packed, const Matrix& y) {
  gpu::Args args{};
  args.w = *gpu::check_header(pointer<const void>(packed.header), packed.nbytes);
  args.blob = pointer<const char>(packed.address);
  args.y = pointer<void>(y.address);
  args.ldy = y.ld;
  args.device = static_cast<int>(std::clamp<int64_t>(place.device, -1, std::numeric_limits<int>::max()));
  args.stream = reinterpret_cast<cudaStream_t>(place.stream);
  return args;
}

const gpu::Kernel& checked_kernel_of(const char* op, int64_t id) {
  const gpu::Kernel& kernel = checked_kernel(id);
  if (std::strcmp(kernel.op, op) != 0) {
    throw std::invalid_argument(std::string("kernel: expected one of ") + op + ", got " + kernel.name);
  }
  return kernel;
}

void spmm(int64_t kernel, const Place& place, const Packed& packed, const Tokens& x, const Epilogue& epilogue,
          const Matrix& y) {
  gpu::Args args = args_of(place, packed, y);
  check_numbers(x.dtype, epilogue.bias_dtype, epilogue.activation);
  if (epilogue.activation > static_cast<int64_t>(gpu::kLastActivation)) {
    throw std::invalid_argument("activation: expected one that kernels for GPUs compute");
  }
  check_in_features(args.w.k, x.k);
  check_out_features(args.w.n, y.ld);
  args.x = pointer<const void>(x.address);
  args.m = x.m;
  args.ldx = x.ldx;
  args.bias = pointer<const void>(epilogue.bias);
  args.bias_dtype = static_cast<DType>(epilogue.bias_dtype);
  args.activation = static_cast<Activation>(epilogue.activation);
  gpu::launch(checked_kernel_of("spmm", kernel), args, static_cast<DType>(x.dtype));
}

void decompress(int64_t kernel, const Place& place, const Packed& packed, const Matrix& y) {
  const gpu::Kernel& chosen = checked_kernel_of("decompress", kernel);
  const gpu::Args args = args_of(place, packed, y);
  gpu::launch(chosen, args, args.w.dtype);
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA kernels of sparseinfer. Private: use sparseinfer.ops.";
  m.attr("__version__") = SPARSEINFER_VERSION;
  m.attr("toolkit") = py::make_tuple(CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
  m.attr("activations") = static_cast<int>(gpu::kLastActivation) + 1;
  m.def("kernels", &kernels);
  m.def("device", &device, py::arg("index"));
  m.def(
      "runs_on",
      [](int64_t kernel, int index) {
        const gpu::Kernel& row = checked_kernel(kernel);
        return gpu::runs_on(row, gpu::device_of(index));
      },
      py::arg("kernel"), py::arg("index"));
  m.def("spmm", &spmm, py::arg("kernel"), py::arg("place"), py::arg("packed"), py::arg("x"), py::arg("epilogue"),
        py::arg("y"));
  m.def("decompress", &decompress, py::arg("kernel"), py::arg("place"), py::arg("packed"), py::arg("y"));
}
