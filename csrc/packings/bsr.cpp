// The packing `bsr`: stored blocks, each divided into strips of 4 rows (2 or 1 where 4 does not divide a block's rows),
// which a kernel multiplies together. For weights whose zeros lie in blocks. Blocks of whole tiles that are packed for
// a level with tiles have strips of 16 rows: their values are tiles then.
//
//   counts   uint8 [cells][strips of the split]: blocks of the strip in the panel. Strips of one row of i8 are sorted,
//            those of the most blocks first
//   offsets  uint8: block column within the panel, strip after strip, ascending
//   values   [strip][block][columns of the block][rows of the strip]; in pair storage [column pairs][rows][2],
//            in i8 [fours of columns][rows][4]
//   rows     uint16 [cells][strips]: row within the split, where strips are sorted; else unused
#include <algorithm>
#include <numeric>
#include <stdexcept>

#include "packings/packing.h"

namespace sparseinfer {
namespace {

constexpr int64_t kMostBlocks = 255;  // of a panel: counts and offsets have 8 bits

// Measured on Zen 4: 768 columns. Blocks read x in long runs, which come from L2 as fast as they are multiplied.
int64_t panel(const PackingHeader& h) {
  if (h.strip == kTileOutputs) return kMostBlocks * h.block_cols;  // sums stay in registers for a panel
  return std::max<int64_t>(1, std::min(kMostBlocks, 768 / h.block_cols)) * h.block_cols;
}
int64_t widest_panel(const PackingHeader& h) { return kMostBlocks * h.block_cols; }

void choose_strip(const SparseView& w, Isa isa, PackingHeader& h) {
  const bool tiles = isa == Isa::kAmx && consists_of_tiles(h.storage, w.block_rows, w.block_cols);
  h.strip = static_cast<uint32_t>(tiles ? kTileOutputs : strip_rows(w.block_rows));
}
int64_t row_multiple(const PackingHeader& h) { return h.strip; }
int64_t min_rows(const PackingHeader& h) { return sorts_strips(h) ? 128 : 16; }  // the more, the more of equal length

template <class Payload>
void pack_split(const PackingHeader& h, const SparseView& w, int64_t begin, int64_t end, SplitStreams& out) {
  const int64_t strip = int64_t{h.strip}, strips = (end - begin) / strip;
  const int64_t blocks_per_panel = h.panel / h.block_cols, pair = columns_per_step(h.storage);
  const auto* values = static_cast<const Payload*>(w.values);
  std::vector<int64_t> at(static_cast<size_t>(strips)), stop(at);
  std::vector<uint16_t> order(static_cast<size_t>(strips));
  auto block_row = [&](size_t s) { return (begin + static_cast<int64_t>(s) * strip) / h.block_rows; };
  for (size_t s = 0; s < at.size(); ++s) at[s] = w.crow[block_row(s)];

  for (int64_t panel = 0; panel < h.panels; ++panel) {
    const int64_t first = panel * blocks_per_panel;
    out.cells.push_back({SplitStreams::count<Payload>(out.values), out.offsets.size(), out.counts.size(),
                         SplitStreams::count<uint16_t>(out.rows)});
    for (size_t s = 0; s < at.size(); ++s) {
      const int64_t row_end = w.crow[block_row(s) + 1];
      for (stop[s] = at[s]; stop[s] < row_end && w.col[stop[s]] < first + blocks_per_panel;) ++stop[s];
    }
    std::iota(order.begin(), order.end(), uint16_t{0});
    if (sorts_strips(h)) {
      std::stable_sort(order.begin(), order.end(),
                       [&](size_t a, size_t b) { return stop[a] - at[a] > stop[b] - at[b]; });
      std::copy(order.begin(), order.end(), SplitStreams::extend<uint16_t>(out.rows, strips));
    }
    for (const size_t s : order) {
      const int64_t in_block = (begin + static_cast<int64_t>(s) * strip) % h.block_rows;
      out.counts.push(static_cast<char>(stop[s] - at[s]));
      for (int64_t& i = at[s]; i < stop[s]; ++i) {
        out.offsets.push(static_cast<char>(w.col[i] - first));
        const Payload* block = values + (i * h.block_rows + in_block) * h.block_cols;
        Payload* to = SplitStreams::extend<Payload>(out.values, strip * h.block_cols);
        for (int64_t c = 0; c < h.block_cols; c += pair) {
          for (int64_t r = 0; r < strip; ++r) {
            for (int64_t p = 0; p < pair; ++p) *to++ = block[r * h.block_cols + c + p];
          }
        }
      }
    }
  }
}

void check_header(const PackingHeader& h) {
  require(h.n % h.block_rows == 0 && h.k % h.block_cols == 0 && h.panel % h.block_cols == 0, "header");
  require(h.block_cols % columns_per_step(h.storage) == 0, "header");
  const bool tiles = consists_of_tiles(h.storage, h.block_rows, h.block_cols);
  require(h.strip == strip_rows(h.block_rows) || (tiles && h.strip == kTileOutputs), "header");
}

int64_t check_cell(const PackingHeader& h, int64_t rows, int64_t width, CellReader& cell) {
  const int64_t strip = int64_t{h.strip};
  int64_t stored = 0, most = kMostBlocks;
  std::vector<bool> seen(static_cast<size_t>(sorts_strips(h) ? rows : 0));
  for (int64_t i = 0; i < rows / strip; ++i) {
    const int64_t blocks = section<uint8_t>(&h, h.counts)[cell.take_counts(1)];
    if (sorts_strips(h)) {
      const size_t row = section<uint16_t>(&h, h.rows)[cell.take_rows(1)];
      require(row < seen.size() && !seen[row], "rows");
      require(blocks <= most, "counts");
      seen[row] = true;
      most = blocks;
    }
    check_offsets<uint8_t>(h, cell.take_offsets(blocks), blocks, width / h.block_cols);
    cell.take_values(blocks * strip * h.block_cols);
    stored += blocks * strip * h.block_cols;
  }
  return stored;
}

// Calls f(first row, block column, payloads) for each strip of each block of a cell.
template <class Payload, class F>
void visit(const PackingHeader& h, const CellPlace& place, F f) {
  const int64_t strip = int64_t{h.strip}, blocks_per_panel = h.panel / h.block_cols;
  const uint8_t* counts = section<uint8_t>(&h, h.counts) + place.cell->counts;
  const uint8_t* offsets = section<uint8_t>(&h, h.offsets) + place.cell->offsets;
  const Payload* values = section<Payload>(&h, h.values) + place.cell->values;
  const uint16_t* rows = sorts_strips(h) ? section<uint16_t>(&h, h.rows) + place.cell->rows : nullptr;
  for (int64_t r = 0; r < place.rows; r += strip, ++counts) {
    const int64_t row = place.row + (rows != nullptr ? *rows++ : r);
    for (int i = 0; i < *counts; ++i, values += strip * h.block_cols) {
      f(row, place.panel * blocks_per_panel + *offsets++, values);
    }
  }
}

template <class Payload>
void unpack_blocks(const PackingHeader& h, int64_t* crow, int32_t* col, void* values) {
  const int64_t strip = int64_t{h.strip}, pair = columns_per_step(h.storage);
  auto strip_of = [&](int64_t row) { return static_cast<size_t>(row / strip); };
  std::vector<int64_t> blocks(static_cast<size_t>(h.n / strip), 0);  // [strips]
  for_cells(h, [&](const CellPlace& place) {
    visit<Payload>(h, place, [&](int64_t row, int64_t, const Payload*) { ++blocks[strip_of(row)]; });
  });
  crow[0] = 0;
  for (int64_t row = 0; row < h.n; row += h.block_rows) {
    const int64_t block_row = row / h.block_rows;
    crow[block_row + 1] = crow[block_row] + blocks[strip_of(row)];
    for (int64_t r = row; r < row + h.block_rows; r += strip) {
      if (blocks[strip_of(r)] != blocks[strip_of(row)]) {
        throw std::invalid_argument("packed: expected the same blocks in every strip of a block row");
      }
    }
  }
  // Strips of one block arrive one by one; each sets the column.
  std::fill(blocks.begin(), blocks.end(), 0);  // that have arrived
  for_cells(h, [&](const CellPlace& place) {
    visit<Payload>(h, place, [&](int64_t row, int64_t block_col, const Payload* payload) {
      const int64_t block = crow[row / h.block_rows] + blocks[strip_of(row)]++;
      col[block] = static_cast<int32_t>(block_col);
      Payload* out = static_cast<Payload*>(values) + (block * h.block_rows + row % h.block_rows) * h.block_cols;
      for (int64_t c = 0; c < h.block_cols; c += pair) {
        for (int64_t r = 0; r < strip; ++r) {
          for (int64_t p = 0; p < pair; ++p) out[r * h.block_cols + c + p] = *payload++;
        }
      }
    });
  });
}

constexpr CellPacking kCells = [] {
  CellPacking cells = cells_of(pack_split<uint32_t>, pack_split<uint16_t>, pack_split<uint8_t>, check_cell);
  cells.row_bytes = 2;
  cells.panel = panel;
  cells.widest_panel = widest_panel;
  cells.choose = choose_strip;
  cells.check_header = check_header;
  return cells;
}();

}  // namespace

constexpr Packing bsr_packing = [] {
  Packing packing = packing_of_cells(&kCells);
  packing.format = "bsr";
  packing.min_rows = min_rows;
  packing.row_multiple = row_multiple;
  packing.unpack[0] = unpack_blocks<uint32_t>;
  packing.unpack[1] = unpack_blocks<uint16_t>;
  packing.unpack[2] = unpack_blocks<uint8_t>;
  return packing;
}();

}  // namespace sparseinfer
