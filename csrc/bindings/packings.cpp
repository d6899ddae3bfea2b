// Bindings that convert dense matrices to CSR, and formats to CPU packings and back.
#include <pybind11/numpy.h>

#include "bindings/bind.h"
#include "bindings/parse.h"
#include "bindings/structs.h"
#include "sparseinfer/pack.h"

namespace py = pybind11;

namespace sparseinfer {
namespace bindings {
namespace {

// A dense matrix [n, k], contiguous; dtype by name.
struct Dense {
  uintptr_t address;
  std::string dtype;
  int64_t n, k;
  static constexpr auto fields() { return std::make_tuple(&Dense::address, &Dense::dtype, &Dense::n, &Dense::k); }
};

// The parts of CSR or BSR; dtype by name, nnz counts the values of stored blocks; scales is 0 where there are none.
struct Compressed {
  std::string dtype;
  int64_t n, k, nnz, block_rows, block_cols;
  uintptr_t crow, col, values, scales;
  static constexpr auto fields() {
    using C = Compressed;
    return std::make_tuple(&C::dtype, &C::n, &C::k, &C::nnz, &C::block_rows, &C::block_cols, &C::crow, &C::col,
                           &C::values, &C::scales);
  }
};

// The mask of a bitmap: its address, its shape and how many bits it has.
struct Mask {
  uintptr_t address;
  int64_t n, k, stored;
  static constexpr auto fields() { return std::make_tuple(&Mask::address, &Mask::n, &Mask::k, &Mask::stored); }
  MaskView view() const { return {pointer<const uint8_t>(address), n, k, stored}; }
};

void check_csr(uintptr_t crow, uintptr_t col, int64_t n, int64_t k, int64_t nnz) {
  py::gil_scoped_release release;
  check_compressed(pointer<const int64_t>(crow), pointer<const int32_t>(col), n, k, nnz);
}

void row_offsets(const Dense& dense, uintptr_t crow) {
  const auto dtype = parse<DType>(dense.dtype, kWeightDTypeNames, "dtype");
  py::gil_scoped_release release;
  dense_row_offsets(pointer<const void>(dense.address), dtype, dense.n, dense.k, pointer<int64_t>(crow));
}

void to_csr(const Dense& dense, uintptr_t crow, uintptr_t col, uintptr_t values) {
  const auto dtype = parse<DType>(dense.dtype, kWeightDTypeNames, "dtype");
  py::gil_scoped_release release;
  dense_to_csr(pointer<const void>(dense.address), dtype, dense.n, dense.k, pointer<const int64_t>(crow),
               pointer<int32_t>(col), pointer<void>(values));
}

void check_bits(const Mask& mask) {
  py::gil_scoped_release release;
  check_mask(mask.view());
}

void bits_to_csr(const Mask& mask, uintptr_t crow, uintptr_t col) {
  py::gil_scoped_release release;
  mask_to_csr(mask.view(), pointer<int64_t>(crow), pointer<int32_t>(col));
}

void gather(const Mask& mask, int64_t itemsize, uintptr_t dense, uintptr_t values) {
  py::gil_scoped_release release;
  gather_by_mask(mask.view(), itemsize, pointer<const void>(dense), pointer<void>(values));
}

void scatter(const Mask& mask, int64_t itemsize, uintptr_t values, uintptr_t dense) {
  py::gil_scoped_release release;
  scatter_by_mask(mask.view(), itemsize, pointer<const void>(values), pointer<void>(dense));
}

py::array_t<uint8_t> pack_array(const std::string& packing, const Compressed& weight, const std::string& storage,
                                const std::string& isa, int64_t max_splits, int64_t panel) {
  const SparseView view{weight.n,
                        weight.k,
                        weight.nnz,
                        weight.block_rows,
                        weight.block_cols,
                        pointer<const int64_t>(weight.crow),
                        pointer<const int32_t>(weight.col),
                        pointer<const void>(weight.values),
                        parse<DType>(weight.dtype, kWeightDTypeNames, "dtype"),
                        pointer<const float>(weight.scales)};
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
  d["packing"] = name_of(h->kind);
  d["dtype"] = name_of(h->dtype);
  d["storage"] = name_of(h->storage);
  d["n"] = h->n;
  d["k"] = h->k;
  d["nnz"] = h->nnz;
  d["nbytes"] = h->bytes;
  d["block_size"] = py::make_tuple(h->block_rows, h->block_cols);
  d["panel"] = h->panel;
  d["splits"] = h->splits;
  return d;
}

void check_whole(uintptr_t data, int64_t bytes) {
  py::gil_scoped_release release;
  check_packing(pointer<const void>(data), bytes);
}

void unpack_checked(uintptr_t data, int64_t bytes, uintptr_t crow, uintptr_t col, uintptr_t values, uintptr_t scales) {
  py::gil_scoped_release release;
  const PackingHeader* h = check_packing(pointer<const void>(data), bytes);
  unpack(h, pointer<int64_t>(crow), pointer<int32_t>(col), pointer<void>(values), pointer<float>(scales));
}

}  // namespace

void bind_packings(py::module_& m) {
  m.def("check_csr", &check_csr, py::arg("crow"), py::arg("col"), py::arg("n"), py::arg("k"), py::arg("nnz"));
  m.def("dense_row_offsets", &row_offsets, py::arg("dense"), py::arg("crow"));
  m.def("dense_to_csr", &to_csr, py::arg("dense"), py::arg("crow"), py::arg("col"), py::arg("values"));
  m.def("check_mask", &check_bits, py::arg("mask"));
  m.def("mask_to_csr", &bits_to_csr, py::arg("mask"), py::arg("crow"), py::arg("col"));
  m.def("gather_by_mask", &gather, py::arg("mask"), py::arg("itemsize"), py::arg("dense"), py::arg("values"));
  m.def("scatter_by_mask", &scatter, py::arg("mask"), py::arg("itemsize"), py::arg("values"), py::arg("dense"));
  m.def("pack", &pack_array, py::arg("packing"), py::arg("weight"), py::arg("storage") = "f32", py::arg("isa") = "",
        py::arg("max_splits") = PackOptions{}.max_splits, py::arg("panel") = 0);
  m.def("describe", &describe, py::arg("data"), py::arg("nbytes"));
  m.def("check_packing", &check_whole, py::arg("data"), py::arg("nbytes"));
  m.def("unpack", &unpack_checked, py::arg("data"), py::arg("nbytes"), py::arg("crow"), py::arg("col"),
        py::arg("values"), py::arg("scales") = 0);
}

}  // namespace bindings
}  // namespace sparseinfer
