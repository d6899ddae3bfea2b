// The packing `tilemap`: bitmap for levels with tiles. Strips of 16 rows are cut into tiles of 16 rows x 32 columns, as
// the tile unit multiplies them (cpu/amx.h): row r of a tile holds columns 2 r and 2 r + 1 of the 16 rows of W. A bit
// for every weight, and the values of those that are stored. One panel holds all columns.
//
//   counts   int64 [strips of the split]: first value of the strip, counted from that of the cell
//   rows     uint32 [strips][tiles][16], 64 bytes a tile: bit 16 p + i of mask r, row i and column 2 r + p of the tile
//   are
//            stored; 0 past the last row and column
//   values   payloads, strip by strip, tile by tile: within a mask ascending in i, then p
//   offsets  unused
#include <array>

#include "packings/packing.h"

namespace sparseinfer {
namespace {

using Masks = std::array<uint32_t, 16>;
static_assert(kTileInputs == 2 * std::tuple_size<Masks>::value && sizeof(Masks) == 64, "a mask is a row of a tile");

int64_t tiles_of(int64_t columns) { return (columns + kTileInputs - 1) / kTileInputs; }
int64_t strips_of(int64_t rows) { return (rows + kTileOutputs - 1) / kTileOutputs; }

// Threads share strips in pairs, which are multiplied together.
int64_t row_multiple(const PackingHeader&) { return 2 * kTileOutputs; }

// Calls f(row of the tile, column of the tile) for what a tile stores, in the order of its values.
template <class F>
void for_stored(const Masks& masks, F f) {
  for (size_t r = 0; r < masks.size(); ++r) {
    for (int64_t i = 0; i < kTileOutputs; ++i) {
      for (int64_t p = 0; p < 2; ++p) {
        if (masks[r] >> (16 * p + i) & 1) f(i, 2 * static_cast<int64_t>(r) + p);
      }
    }
  }
}

int64_t count_stored(const Masks& masks) {
  int64_t stored = 0;
  for (uint32_t mask : masks) stored += __builtin_popcount(mask);
  return stored;
}

template <class Payload>
void pack_split(const PackingHeader& h, const SparseView& w, int64_t begin, int64_t end, SplitStreams& out) {
  if (h.panels == 0) return;
  out.cells.push_back({0, 0, 0, 0});
  const int64_t tiles = tiles_of(w.k), strips = strips_of(end - begin);
  int64_t* starts = SplitStreams::extend<int64_t>(out.counts, strips);
  Masks* masks = SplitStreams::extend<Masks>(out.rows, strips * tiles);
  Payload* to = SplitStreams::extend<Payload>(out.values, w.crow[end] - w.crow[begin]);
  const auto* values = static_cast<const Payload*>(w.values);
  int64_t stored = 0;
  for (int64_t row = begin; row < end; row += kTileOutputs) {
    *starts++ = stored;
    int64_t at[kTileOutputs], stop[kTileOutputs];
    for (int64_t i = 0; i < kTileOutputs; ++i) {
      at[i] = w.crow[std::min(row + i, end)];
      stop[i] = w.crow[std::min(row + i + 1, end)];
    }
    for (int64_t tile = 0; tile < tiles; ++tile, ++masks) {
      const int64_t first = tile * kTileInputs;
      Payload dense[kTileOutputs][kTileInputs];
      for (int64_t i = 0; i < kTileOutputs; ++i) {
        for (; at[i] < stop[i] && w.col[at[i]] < first + kTileInputs; ++at[i]) {
          const int64_t c = w.col[at[i]] - first;
          dense[i][c] = values[at[i]];
          (*masks)[static_cast<size_t>(c / 2)] |= uint32_t{1} << (16 * (c % 2) + i);
        }
      }
      for_stored(*masks, [&](int64_t i, int64_t c) { to[stored++] = dense[i][c]; });
    }
  }
}

int64_t check_cell(const PackingHeader& h, int64_t rows, int64_t width, CellReader& cell) {
  const int64_t tiles = tiles_of(width), strips = strips_of(rows);
  const int64_t* starts = section<int64_t>(&h, h.counts) + cell.take_counts(strips);
  const Masks* masks = section<Masks>(&h, h.rows) + cell.take_rows(strips * tiles);
  int64_t stored = 0;
  for (int64_t s = 0; s < strips; ++s) {
    require(starts[s] == stored, "counts");
    const int64_t rows_here = std::min(kTileOutputs, rows - s * kTileOutputs);
    const auto here = static_cast<uint32_t>(0xffff >> (kTileOutputs - rows_here)) * 0x10001u;
    for (int64_t tile = 0; tile < tiles; ++tile, ++masks) {
      for (int64_t r = 0; r < kTileInputs / 2; ++r) {
        const int64_t left = width - tile * kTileInputs - 2 * r;  // columns from this row's first on
        const uint32_t allowed = left >= 2 ? here : left == 1 ? here & 0xffff : 0;
        require(((*masks)[static_cast<size_t>(r)] & ~allowed) == 0, "masks");
      }
      stored += count_stored(*masks);
    }
  }
  cell.take_values(stored);
  return stored;
}

template <class Payload>
void visit(const PackingHeader& h, const CellPlace& place, RowSink<Payload>& sink) {
  const Masks* masks = section<Masks>(&h, h.rows) + place.cell->rows;
  const Payload* values = section<Payload>(&h, h.values) + place.cell->values;
  for (int64_t r = 0; r < place.rows; r += kTileOutputs) {
    for (int64_t tile = 0; tile < tiles_of(h.k); ++tile, ++masks) {
      for_stored(*masks, [&](int64_t i, int64_t c) { sink.unit(place.row + r + i, tile * kTileInputs + c, values++); });
    }
  }
}

constexpr CellPacking kCells = [] {
  CellPacking cells = cells_of(pack_split<uint32_t>, pack_split<uint16_t>, pack_split<uint8_t>, check_cell);
  cells.count_bytes = sizeof(int64_t);
  cells.row_bytes = sizeof(Masks);
  cells.panel = all_columns;
  return cells;
}();

}  // namespace

constexpr Packing tilemap_packing = [] {
  Packing packing = packing_of_rows<visit<uint32_t>, visit<uint16_t>, visit<uint8_t>>(&kCells);
  packing.min_rows = 32;
  packing.row_multiple = row_multiple;
  return packing;
}();

}  // namespace sparseinfer
