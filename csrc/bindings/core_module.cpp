// sparseinfer._core: integers and addresses only. Callers (sparseinfer/ops) own the memory and check dtypes, shapes and
// devices; everything that can be read wrongly inside a buffer is checked on this side.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "sparseinfer/cpu_features.h"
#include "sparseinfer/pack.h"
#include "sparseinfer/registry.h"
#include "sparseinfer/spmm.h"

namespace py = pybind11;
using namespace sparseinfer;

void bind_gpu_packings(py::module_& m);  // gpu_packings.cpp

namespace {

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

template <class Enum, int N>
Enum parse(const std::string& name, const char* const (&names)[N], const char* what) {
  std::string valid;
  for (int i = 0; i < N; ++i) {
    if (name == names[i]) return static_cast<Enum>(i);
    valid += (i ? ", " : "") + std::string(names[i]);
  }
  throw std::invalid_argument(std::string(what) + ": expected one of " + valid + ", got " + name);
}

py::list kernels() {
  py::list list;
  for (const RegisteredKernel& r : registry()) {
    py::dict row;
    row["name"] = r.kernel.name;
    row["op"] = "spmm";
    row["packing"] = r.kernel.packing;
    row["storage"] = r.kernel.storage;
    row["tile"] = r.kernel.tile;
    row["isa"] = r.kernel.isa;
    row["conv"] = r.kernel.takes_conv;
    row["available"] = r.available;
    row["native"] = r.kernel.native;
    row["min_tokens"] = r.kernel.min_tokens;
    row["bucket_tokens"] = r.kernel.bucket_tokens;
    row["max_tokens"] = r.kernel.max_tokens;
    row["min_sparsity"] = r.kernel.min_sparsity;
    row["max_sparsity"] = r.kernel.max_sparsity;
    row["wide_panel"] = r.kernel.wide_panel;
    row["tile_tokens"] = r.kernel.tile_tokens;
    row["format"] = packing_format(parse<PackingKind>(r.kernel.packing, kPackingNames, "packing"));
    list.append(row);
  }
  return list;
}

py::array_t<uint8_t> pack_array(const std::string& packing, const std::string& dtype, int64_t n, int64_t k, int64_t nnz,
                                int64_t block_rows, int64_t block_cols, uintptr_t crow, uintptr_t col, uintptr_t values,
                                const std::string& storage, const std::string& isa, int64_t max_splits, int64_t panel) {
  const SparseView view{n,
                        k,
                        nnz,
                        block_rows,
                        block_cols,
                        pointer<const int64_t>(crow),
                        pointer<const int32_t>(col),
                        pointer<const void>(values),
                        parse<DType>(dtype, kDTypeNames, "dtype")};
  const auto kind = parse<PackingKind>(packing, kPackingNames, "packing");
  const PackOptions options{parse<Storage>(storage, kStorageNames, "storage"),
                            isa.empty() ? active_isa() : parse<Isa>(isa, kIsaNames, "isa"), max_splits, panel};
  auto* blob = [&] {
    py::gil_scoped_release release;
    return new Blob(pack(kind, view, options));
  }();
  py::capsule owner(blob, [](void* p) { delete static_cast<Blob*>(p); });
  return py::array_t<uint8_t>({blob->size()}, {1}, reinterpret_cast<uint8_t*>(blob->data()), owner);
}

py::dict describe(uintptr_t data, int64_t bytes) {
  const PackingHeader* h = check_header(pointer<const void>(data), bytes);
  py::dict d;
  d["packing"] = kPackingNames[static_cast<int>(h->kind)];
  d["dtype"] = kDTypeNames[static_cast<int>(h->dtype)];
  d["storage"] = kStorageNames[static_cast<int>(h->storage)];
  d["n"] = h->n;
  d["k"] = h->k;
  d["nnz"] = h->nnz;
  d["nbytes"] = h->bytes;
  d["block_size"] = py::make_tuple(h->block_rows, h->block_cols);
  d["panel"] = h->panel;
  d["splits"] = h->splits;
  return d;
}

const SpmmKernel& checked_kernel(int64_t id) {
  const auto& all = registry();
  if (id < 0 || id >= static_cast<int64_t>(all.size()) || !all[static_cast<size_t>(id)].available) {
    throw std::invalid_argument("kernel: expected the id of an available kernel, got " + std::to_string(id));
  }
  return all[static_cast<size_t>(id)].kernel;
}

// A packing that the kernel reads.
const PackingHeader* checked_packing(const SpmmKernel& k, uintptr_t packed) {
  const auto* h = pointer<const PackingHeader>(packed);
  if (std::strcmp(kPackingNames[static_cast<int>(h->kind)], k.packing) != 0 ||
      std::strcmp(kStorageNames[static_cast<int>(h->storage)], k.storage) != 0) {
    throw std::invalid_argument(std::string("kernel: expected a ") + k.packing + " packing of " + k.storage + " for " +
                                k.name + ", got " + kPackingNames[static_cast<int>(h->kind)] + " of " +
                                kStorageNames[static_cast<int>(h->storage)]);
  }
  return h;
}

void check_out_features(int64_t packed, int64_t n) {
  if (n == packed) return;
  throw std::invalid_argument("n: expected " + std::to_string(packed) + " out_features as packed, got " +
                              std::to_string(n));
}

// What a call has but for the packing and where its tokens lie.
SpmmArgs checked_args(const SpmmKernel& k, uintptr_t x, int64_t dtype, uintptr_t bias, int64_t bias_dtype, uintptr_t y,
                      int64_t activation) {
  if (dtype < 0 || dtype >= kNumDTypes) throw std::invalid_argument("x: expected the number of a dtype");
  if (bias_dtype != 0 && bias_dtype != dtype) throw std::invalid_argument("bias: expected fp32 or the dtype of x");
  if (activation < 0 || activation >= kNumActivations) {
    throw std::invalid_argument("activation: expected the number of an activation");
  }
  SpmmArgs args{};
  args.x = pointer<const void>(x);
  args.y = pointer<void>(y);
  args.bias = pointer<const void>(bias);
  args.dtype = static_cast<DType>(dtype);
  args.bias_dtype = static_cast<DType>(bias_dtype);
  args.activation = static_cast<Activation>(activation);
  if (std::strcmp(k.storage, kStorageNames[static_cast<int>(Storage::kBF16)]) == 0 && args.dtype == DType::kF16) {
    throw std::invalid_argument(std::string("x: expected fp32 or bf16 for ") + k.name + ", got " + kDTypeNames[dtype]);
  }
  return args;
}

const PackingHeader* checked_matrix(const SpmmKernel& k, uintptr_t packed, int64_t k_columns, int64_t n) {
  const PackingHeader* header = checked_packing(k, packed);
  if (k_columns != header->k) {
    throw std::invalid_argument("x: expected " + std::to_string(header->k) +
                                " in_features in the last dimension, got " + std::to_string(k_columns));
  }
  check_out_features(header->n, n);
  return header;
}

void spmm(int64_t kernel, uintptr_t x, int64_t dtype, int64_t m, int64_t k_columns, int64_t ldx, uintptr_t packed,
          uintptr_t bias, int64_t bias_dtype, uintptr_t y, int64_t n, int64_t activation, int64_t parts) {
  const SpmmKernel& k = checked_kernel(kernel);
  const PackingHeader* header = checked_matrix(k, packed, k_columns, n);
  SpmmArgs args = checked_args(k, x, dtype, bias, bias_dtype, y, activation);
  args.w = header;
  args.m = m;
  args.ldx = ldx;
  args.ldy = n;
  py::gil_scoped_release release;
  run_spmm(k, args, Spread{static_cast<int>(parts)});
}

// The same, with the rows of W cut into matrices y [m, rows], each contiguous; `ys` are pairs of an address and rows.
void spmm_parts(int64_t kernel, uintptr_t x, int64_t dtype, int64_t m, int64_t k_columns, int64_t ldx, uintptr_t packed,
                uintptr_t bias, int64_t bias_dtype, const std::vector<std::pair<uintptr_t, int64_t>>& ys,
                int64_t parts) {
  const SpmmKernel& k = checked_kernel(kernel);
  constexpr int64_t kMostRows = int64_t{1} << 40;
  std::vector<OutputPart> outputs;
  int64_t n = 0;
  for (const auto& [y, rows] : ys) {
    if (rows < 1 || rows > kMostRows - n) {
      throw std::invalid_argument("ys: expected rows in each, got " + std::to_string(rows));
    }
    outputs.push_back({pointer<void>(y), n, rows});
    n += rows;
  }
  const PackingHeader* header = checked_matrix(k, packed, k_columns, n);
  SpmmArgs args = checked_args(k, x, dtype, bias, bias_dtype, 0, 0);
  args.w = header;
  args.m = m;
  args.ldx = ldx;
  py::gil_scoped_release release;
  run_spmm(k, args, Spread{static_cast<int>(parts)}, outputs);
}

// Whether four vectors of `bytes` each, or none where the address is 0, hold what lies in `kept` one after another.
bool same_vectors(uintptr_t kept, uintptr_t a, uintptr_t b, uintptr_t c, uintptr_t d, int64_t bytes) {
  const char* at = pointer<const char>(kept);
  for (const uintptr_t vector : {a, b, c, d}) {
    if (bytes > 0 && vector != 0 && std::memcmp(at, pointer<const void>(vector), static_cast<size_t>(bytes)) != 0) {
      return false;
    }
    at += bytes;
  }
  return true;
}

// One packing per group, each a convolution of its own: x [b, c, h, w], y [b, n, out_h, out_w], both contiguous.
void conv(int64_t kernel, uintptr_t x, int64_t dtype, const std::array<int64_t, 4>& x_shape,
          const std::vector<uintptr_t>& packed, uintptr_t bias, int64_t bias_dtype, uintptr_t y,
          const std::array<int64_t, 4>& y_shape, const std::array<int64_t, 2>& kernel_size,
          const std::array<int64_t, 2>& stride, const std::array<int64_t, 2>& padding,
          const std::array<int64_t, 2>& dilation, int64_t activation, int64_t parts) {
  const SpmmKernel& k = checked_kernel(kernel);
  if (!k.takes_conv) {
    throw std::invalid_argument(std::string("kernel: expected one that takes a convolution, got ") + k.name);
  }
  const auto groups = static_cast<int64_t>(packed.size());
  if (groups == 0 || x_shape[1] % groups != 0 || y_shape[1] % groups != 0 || x_shape[0] != y_shape[0]) {
    throw std::invalid_argument("groups: expected one packing for each, and a number that divides the channels, got " +
                                std::to_string(groups));
  }
  const int64_t channels = x_shape[1] / groups, rows = y_shape[1] / groups;
  const ConvShape shape{x_shape[0],
                        channels,
                        x_shape[2],
                        x_shape[3],
                        kernel_size[0],
                        kernel_size[1],
                        stride[0],
                        stride[1],
                        padding[0],
                        padding[1],
                        dilation[0],
                        dilation[1],
                        y_shape[2],
                        y_shape[3],
                        image_elements(x_shape[1], x_shape[2], x_shape[3]),
                        image_elements(y_shape[1], y_shape[2], y_shape[3])};
  std::vector<SpmmArgs> calls;
  for (int64_t group = 0; group < groups; ++group) {
    SpmmArgs args = checked_args(k, x, dtype, bias, bias_dtype, y, activation);
    args.w = checked_packing(k, packed[static_cast<size_t>(group)]);
    check_out_features(args.w->n, rows);
    check_conv(shape, args.w);
    const int64_t x_first = group * channels * shape.height * shape.width,
                  y_first = group * rows * shape.out_h * shape.out_w;
    args.x = static_cast<const char*>(args.x) + x_first * dtype_bytes(args.dtype);
    args.y = static_cast<char*>(args.y) + y_first * dtype_bytes(args.dtype);
    if (args.bias != nullptr) {
      args.bias = static_cast<const char*>(args.bias) + group * rows * dtype_bytes(args.bias_dtype);
    }
    args.conv = &shape;
    args.m = conv_tokens(shape);
    calls.push_back(args);
  }
  py::gil_scoped_release release;
  for (const SpmmArgs& args : calls) run_spmm(k, args, Spread{static_cast<int>(parts)});
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "Native kernels of sparseinfer. Private: use sparseinfer.ops.";
  m.attr("__version__") = SPARSEINFER_VERSION;
  m.attr("activations") =
      py::tuple(py::cast(std::vector<std::string>(kActivationNames, kActivationNames + kNumActivations)));
  m.attr("dtypes") = py::tuple(py::cast(std::vector<std::string>(kDTypeNames, kDTypeNames + kNumDTypes)));
  m.attr("storages") = py::tuple(py::cast(std::vector<std::string>(kStorageNames, kStorageNames + kNumStorages)));
  m.attr("packings") = py::tuple(py::cast(std::vector<std::string>(kPackingNames, kPackingNames + kNumPackings)));

  m.def("isa_levels", &supported_isa_names);
  m.def("active_isa", [] { return std::string(kIsaNames[static_cast<int>(active_isa())]); });
  m.def("kernels", &kernels);
  m.def(
      "set_parallel_for",
      [](uintptr_t address, uintptr_t num_threads) {
        set_parallel_for(reinterpret_cast<ParallelForFn>(address), reinterpret_cast<NumThreadsFn>(num_threads));
      },
      py::arg("address"), py::arg("num_threads"));
  m.def("has_parallel_for", &has_parallel_for);
  m.def(
      "check_csr",
      [](uintptr_t crow, uintptr_t col, int64_t n, int64_t k, int64_t nnz) {
        py::gil_scoped_release release;
        check_compressed(pointer<const int64_t>(crow), pointer<const int32_t>(col), n, k, nnz);
      },
      py::arg("crow"), py::arg("col"), py::arg("n"), py::arg("k"), py::arg("nnz"));
  m.def(
      "dense_row_offsets",
      [](uintptr_t dense, const std::string& dtype, int64_t n, int64_t k, uintptr_t crow) {
        const auto type = parse<DType>(dtype, kDTypeNames, "dtype");
        py::gil_scoped_release release;
        dense_row_offsets(pointer<const void>(dense), type, n, k, pointer<int64_t>(crow));
      },
      py::arg("dense"), py::arg("dtype"), py::arg("n"), py::arg("k"), py::arg("crow"));
  m.def(
      "dense_to_csr",
      [](uintptr_t dense, const std::string& dtype, int64_t n, int64_t k, uintptr_t crow, uintptr_t col,
         uintptr_t values) {
        const auto type = parse<DType>(dtype, kDTypeNames, "dtype");
        py::gil_scoped_release release;
        dense_to_csr(pointer<const void>(dense), type, n, k, pointer<const int64_t>(crow), pointer<int32_t>(col),
                     pointer<void>(values));
      },
      py::arg("dense"), py::arg("dtype"), py::arg("n"), py::arg("k"), py::arg("crow"), py::arg("col"),
      py::arg("values"));
  m.def("pack", &pack_array, py::arg("packing"), py::arg("dtype"), py::arg("n"), py::arg("k"), py::arg("nnz"),
        py::arg("block_rows"), py::arg("block_cols"), py::arg("crow"), py::arg("col"), py::arg("values"),
        py::arg("storage") = "f32", py::arg("isa") = "", py::arg("max_splits") = PackOptions{}.max_splits,
        py::arg("panel") = 0);
  m.def("describe", &describe, py::arg("data"), py::arg("nbytes"));
  m.def(
      "check_packing",
      [](uintptr_t data, int64_t bytes) {
        py::gil_scoped_release release;
        check_packing(pointer<const void>(data), bytes);
      },
      py::arg("data"), py::arg("nbytes"));
  m.def(
      "unpack",
      [](uintptr_t data, int64_t bytes, uintptr_t crow, uintptr_t col, uintptr_t values) {
        py::gil_scoped_release release;
        const PackingHeader* h = check_packing(pointer<const void>(data), bytes);
        unpack(h, pointer<int64_t>(crow), pointer<int32_t>(col), pointer<void>(values));
      },
      py::arg("data"), py::arg("nbytes"), py::arg("crow"), py::arg("col"), py::arg("values"));
  m.def("same_vectors", &same_vectors, py::arg("kept"), py::arg("a"), py::arg("b"), py::arg("c"), py::arg("d"),
        py::arg("nbytes"));
  m.def("spmm", &spmm, py::arg("kernel"), py::arg("x"), py::arg("dtype"), py::arg("m"), py::arg("k"), py::arg("ldx"),
        py::arg("packed"), py::arg("bias"), py::arg("bias_dtype"), py::arg("y"), py::arg("n"), py::arg("activation"),
        py::arg("parts") = 0);
  m.def("spmm_parts", &spmm_parts, py::arg("kernel"), py::arg("x"), py::arg("dtype"), py::arg("m"), py::arg("k"),
        py::arg("ldx"), py::arg("packed"), py::arg("bias"), py::arg("bias_dtype"), py::arg("ys"), py::arg("parts") = 0);
  m.def("conv", &conv, py::arg("kernel"), py::arg("x"), py::arg("dtype"), py::arg("x_shape"), py::arg("packed"),
        py::arg("bias"), py::arg("bias_dtype"), py::arg("y"), py::arg("y_shape"), py::arg("kernel_size"),
        py::arg("stride"), py::arg("padding"), py::arg("dilation"), py::arg("activation"), py::arg("parts") = 0);
  bind_gpu_packings(m);
}
