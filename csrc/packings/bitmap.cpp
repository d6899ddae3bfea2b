// The packing `bitmap`: a bit for every weight, and the values of those that are stored. One panel holds all columns.
// For few tokens at low sparsity, and to save memory.
//
//   rows     uint64 [rows of the split][mask_words(k)]: bit c of word i, column 64 i + c is stored; 0 past column k
//   values   payloads, row by row, ascending columns
//   counts, offsets   unused
#include "packings/packing.h"

namespace sparseinfer {
namespace {

template <class Payload>
void pack_split(const PackingHeader& h, const SparseView& w, int64_t begin, int64_t end, SplitStreams& out) {
  if (h.panels == 0) return;
  out.cells.push_back({0, 0, 0, 0});
  const int64_t words = mask_words(w.k);
  uint64_t* masks = SplitStreams::extend<uint64_t>(out.rows, (end - begin) * words);
  for (int64_t row = begin; row < end; ++row, masks += words) {
    for (int64_t i = w.crow[row]; i < w.crow[row + 1]; ++i) {
      masks[w.col[i] / kMaskColumns] |= uint64_t{1} << (w.col[i] % kMaskColumns);
    }
  }
  const int64_t stored = w.crow[end] - w.crow[begin];
  const auto* from = static_cast<const Payload*>(w.values) + w.crow[begin];
  Payload* to = SplitStreams::extend<Payload>(out.values, stored);
  if (stored > 0) std::memcpy(to, from, static_cast<size_t>(stored) * sizeof(Payload));
}

int64_t check_cell(const PackingHeader& h, int64_t rows, int64_t width, CellReader& cell) {
  const int64_t words = mask_words(width);
  const uint64_t* masks = section<uint64_t>(&h, h.rows) + cell.take_rows(rows * words);
  const uint64_t outside = width % kMaskColumns == 0 ? 0 : ~uint64_t{0} << (width % kMaskColumns);
  int64_t stored = 0;
  for (int64_t i = 0; i < rows * words; ++i) {
    require(i % words != words - 1 || (masks[i] & outside) == 0, "masks");
    stored += __builtin_popcountll(masks[i]);
  }
  cell.take_values(stored);
  return stored;
}

template <class Payload>
void visit(const PackingHeader& h, const CellPlace& place, RowSink<Payload>& sink) {
  const int64_t words = mask_words(h.k);
  const uint64_t* masks = section<uint64_t>(&h, h.rows) + place.cell->rows;
  const Payload* values = section<Payload>(&h, h.values) + place.cell->values;
  for (int64_t r = 0; r < place.rows; ++r) {
    for (int64_t word = 0; word < words; ++word, ++masks) {
      for (uint64_t left = *masks; left != 0; left &= left - 1) {
        sink.unit(place.row + r, word * kMaskColumns + __builtin_ctzll(left), values++);
      }
    }
  }
}

constexpr CellPacking kCells = [] {
  CellPacking cells = cells_of(pack_split<uint32_t>, pack_split<uint16_t>, pack_split<uint8_t>, check_cell);
  cells.row_bytes = 8;
  cells.panel = all_columns;
  return cells;
}();

}  // namespace

constexpr Packing bitmap_packing = [] {
  Packing packing = packing_of_rows<visit<uint32_t>, visit<uint16_t>, visit<uint8_t>>(&kCells);
  packing.min_rows = always<32>;
  return packing;
}();

}  // namespace sparseinfer
