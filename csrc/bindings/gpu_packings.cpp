// Bindings of the CUDA kernels' packings, for machines with and without a GPU: sizes, checks, unpacking, and the tables
// that ops/cuda/packing.py and ops/cuda/tiles.py need for packing.
#include "sparseinfer/gpu_packings.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <array>
#include <cstring>
#include <stdexcept>
#include <string>

#include "bindings/bind.h"
#include "bindings/gpu_rows.h"
#include "bindings/parse.h"
#include "sparseinfer/gpu_tiles.h"

namespace py = pybind11;

namespace sparseinfer {
namespace bindings {
namespace {

gpu::Kind kind_of(const std::string& name) { return parse<gpu::Kind>(name, gpu::kKindNames, "packing"); }

// The header, and the bytes of the whole blob.
py::tuple header(const std::string& kind, int64_t dtype, const std::array<int64_t, 2>& shape, int64_t nnz,
                 int64_t block, int64_t units) {
  if (dtype < 0 || dtype >= kNumDTypes) throw std::invalid_argument("dtype: expected the number of a dtype");
  const gpu::Header h = gpu::layout(kind_of(kind), static_cast<DType>(dtype), shape[0], shape[1], nnz, block, units);
  py::array_t<uint8_t> bytes(gpu::kHeaderBytes);
  std::memset(bytes.mutable_data(), 0, static_cast<size_t>(gpu::kHeaderBytes));
  std::memcpy(bytes.mutable_data(), &h, sizeof h);
  return py::make_tuple(bytes, h.bytes);
}

py::dict describe(uintptr_t address, int64_t bytes) {
  const gpu::Header* h = gpu::check_header(pointer<const void>(address), bytes);
  py::dict d;
  d["packing"] = gpu::name_of(h->kind);
  d["dtype"] = name_of(h->dtype);
  d["n"] = h->n;
  d["k"] = h->k;
  d["nnz"] = h->nnz;
  d["nbytes"] = h->bytes;
  d["block"] = h->block;
  d["panels"] = h->panels;
  d["units"] = h->units;
  d["order"] = h->order;
  d["starts"] = h->starts;
  d["columns"] = h->columns;
  d["values"] = h->values;
  return d;
}

py::list kernels() {
  py::list list;
  for (int i = 0; i < gpu::kKernelRowCount; ++i) list.append(gpu_row(gpu::kKernelRows[i]));
  return list;
}

py::array_t<int32_t> column_offsets() {
  py::array_t<int32_t> table(gpu::kPanelColumns + 1);
  for (int c = 0; c <= gpu::kPanelColumns; ++c) table.mutable_at(c) = gpu::x_column_offset(c);
  return table;
}

// For each chunk of 16 bytes of a slab as it is stored, which chunk of its rows lies there.
py::array_t<int32_t> swizzled_chunks(int64_t block) {
  if (!gpu::block_is_valid(block)) throw std::invalid_argument("block: expected one of 16, 32, 64, 128");
  const int row_bytes = gpu::slab_columns(block) * 2;
  const auto chunks = static_cast<uint32_t>(block * row_bytes / gpu::kVectorBytes);
  py::array_t<int32_t> table(static_cast<py::ssize_t>(chunks));
  for (uint32_t i = 0; i < chunks; ++i) {
    const uint32_t stored = gpu::swizzle(i * gpu::kVectorBytes, row_bytes) / gpu::kVectorBytes;
    table.mutable_at(stored) = static_cast<int32_t>(i);
  }
  return table;
}

// First tile of each piece of a row of tiles, then the number of tiles.
py::array_t<int64_t> first_tiles(int64_t n, int64_t k) {
  const int64_t pieces = gpu::piece_count(n), tiles = gpu::tile_columns(k);
  py::array_t<int64_t> table(pieces + 1);
  for (int64_t i = 0; i <= pieces; ++i) table.mutable_at(i) = gpu::first_tile(i, pieces, tiles);
  return table;
}

// Position within its tile of the row of each rank by length.
py::array_t<int32_t> dealt_positions() {
  py::array_t<int32_t> table(gpu::kTileRows);
  for (int rank = 0; rank < gpu::kTileRows; ++rank) table.mutable_at(rank) = gpu::dealt_position(rank);
  return table;
}

// For each weight of a tile, [position, column], its number in the order of the packing: bits of [lane][strip], or
// places.
py::array_t<int32_t> tile_order(const std::string& packing) {
  const bool bitmap = kind_of(packing) == gpu::Kind::kBitmap;
  py::array_t<int32_t> table({gpu::kTileRows, gpu::kTileColumns});
  for (int lane = 0; lane < gpu::kLanes; ++lane) {
    for (int strip = 0; strip < gpu::kStrips; ++strip) {
      for (int bit = 0; bit < 32; ++bit) {
        table.mutable_at(gpu::weight_position(lane, strip, bit), gpu::weight_column(lane, bit)) =
            bitmap ? (lane * gpu::kStrips + strip) * 32 + bit : gpu::place(lane, strip, bit);
      }
    }
  }
  return table;
}

py::array_t<int32_t> place_bytes() {
  py::array_t<int32_t> table(gpu::kPlaces);
  for (int i = 0; i < gpu::kPlaces; ++i) table.mutable_at(i) = static_cast<int32_t>(gpu::place_byte(i));
  return table;
}

}  // namespace

void bind_gpu_packings(py::module_& m) {
  py::tuple names(gpu::kNumKinds);
  for (int i = 0; i < gpu::kNumKinds; ++i) names[static_cast<size_t>(i)] = gpu::kKindNames[i];
  m.attr("gpu_packings") = names;
  m.attr("gpu_header_bytes") = gpu::kHeaderBytes;
  m.attr("gpu_panel_columns") = gpu::kPanelColumns;
  m.attr("gpu_window_rows") = gpu::kWindowRows;
  m.attr("gpu_tile") = gpu::kTileRows;
  m.attr("gpu_most_behind") = gpu::kMostBehind;
  m.def("gpu_header", &header, py::arg("packing"), py::arg("dtype"), py::arg("shape"), py::arg("nnz"), py::arg("block"),
        py::arg("units"));
  m.def("gpu_describe", &describe, py::arg("header"), py::arg("nbytes"));
  m.def(
      "gpu_check", [](uintptr_t data, int64_t bytes) { gpu::check_blob(pointer<const void>(data), bytes); },
      py::arg("data"), py::arg("nbytes"));
  m.def(
      "gpu_unpack",
      [](uintptr_t data, int64_t bytes, uintptr_t crow, uintptr_t col, uintptr_t values) {
        py::gil_scoped_release release;
        gpu::unpack(gpu::check_blob(pointer<const void>(data), bytes), pointer<int64_t>(crow), pointer<int32_t>(col),
                    pointer<void>(values));
      },
      py::arg("data"), py::arg("nbytes"), py::arg("crow"), py::arg("col"), py::arg("values"));
  m.def("gpu_kernels", &kernels);
  m.def("gpu_column_offsets", &column_offsets);
  m.def("gpu_swizzled_chunks", &swizzled_chunks, py::arg("block"));
  m.def("gpu_first_tiles", &first_tiles, py::arg("n"), py::arg("k"));
  m.def("gpu_dealt_positions", &dealt_positions);
  m.def("gpu_tile_order", &tile_order, py::arg("packing"));
  m.def("gpu_place_bytes", &place_bytes);
  m.def(
      "gpu_codes",
      [](const std::string& packing) {
        const gpu::Kind kind = kind_of(packing);
        return py::make_tuple(gpu::code_bits(kind), gpu::max_distance(kind));
      },
      py::arg("packing"));
}

}  // namespace bindings
}  // namespace sparseinfer
