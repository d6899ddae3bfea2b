// sparseinfer._core: integers and addresses only. Callers (sparseinfer/ops) own the memory and check dtypes, shapes and
// devices; everything that can be read wrongly inside a buffer is checked on this side.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <stdexcept>
#include <string>

#include "sparseinfer/cpu_features.h"
#include "sparseinfer/pack.h"
#include "sparseinfer/registry.h"
#include "sparseinfer/spmm.h"

namespace py = pybind11;
using namespace sparseinfer;

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
    row["available"] = r.available;
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

void spmm(int64_t kernel, uintptr_t x, int64_t x_dtype, int64_t m, int64_t k_columns, int64_t ldx, uintptr_t packed,
          uintptr_t bias, int64_t bias_dtype, uintptr_t y, int64_t n, int64_t activation, int64_t parts) {
  const auto& all = registry();
  if (kernel < 0 || kernel >= static_cast<int64_t>(all.size()) || !all[static_cast<size_t>(kernel)].available) {
    throw std::invalid_argument("kernel: expected the id of an available kernel, got " + std::to_string(kernel));
  }
  const SpmmKernel& k = all[static_cast<size_t>(kernel)].kernel;
  const auto* header = pointer<const PackingHeader>(packed);
  if (std::strcmp(kPackingNames[static_cast<int>(header->kind)], k.packing) != 0 ||
      std::strcmp(kStorageNames[static_cast<int>(header->storage)], k.storage) != 0) {
    throw std::invalid_argument(std::string("kernel: expected a ") + k.packing + " packing of " + k.storage + " for " +
                                k.name + ", got " + kPackingNames[static_cast<int>(header->kind)] + " of " +
                                kStorageNames[static_cast<int>(header->storage)]);
  }
  if (k_columns != header->k) {
    throw std::invalid_argument("x: expected " + std::to_string(header->k) +
                                " in_features in the last dimension, got " + std::to_string(k_columns));
  }
  if (n != header->n) {
    throw std::invalid_argument("n: expected " + std::to_string(header->n) + " out_features as packed, got " +
                                std::to_string(n));
  }
  if (x_dtype < 0 || x_dtype >= kNumDTypes) throw std::invalid_argument("x: expected the number of a dtype");
  const auto dtype = static_cast<DType>(x_dtype);
  if (bias_dtype != 0 && bias_dtype != x_dtype) throw std::invalid_argument("bias: expected fp32 or the dtype of x");
  if (header->storage == Storage::kBF16 && dtype != DType::kBF16) {
    throw std::invalid_argument(std::string("x: expected bf16 for ") + k.name + ", got " +
                                kDTypeNames[static_cast<int>(dtype)]);
  }
  SpmmArgs args{pointer<const void>(x),
                pointer<void>(y),
                pointer<const void>(bias),
                header,
                m,
                ldx,
                n,
                dtype,
                static_cast<DType>(bias_dtype),
                static_cast<Activation>(activation),
                nullptr};
  py::gil_scoped_release release;
  run_spmm(k, args, Spread{static_cast<int>(parts)});
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
      "set_parallel_for", [](uintptr_t address) { set_parallel_for(reinterpret_cast<ParallelForFn>(address)); },
      py::arg("address"));
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
  m.def("spmm", &spmm, py::arg("kernel"), py::arg("x"), py::arg("x_dtype"), py::arg("m"), py::arg("k"), py::arg("ldx"),
        py::arg("packed"), py::arg("bias"), py::arg("bias_dtype"), py::arg("y"), py::arg("n"), py::arg("activation"),
        py::arg("parts") = 0);
}
