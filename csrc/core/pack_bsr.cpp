#include "pack_streams.h"

namespace sparseinfer {

void pack_bsr_split(const PackingHeader& h, const SparseView& w, int64_t begin, int64_t end, SplitStreams& out) {
  const int64_t strip = strip_rows(h.block_rows), strips = (end - begin) / strip;
  const int64_t blocks_per_panel = h.panel / h.block_cols;
  const auto* values = static_cast<const uint32_t*>(w.values);
  std::vector<int64_t> at(static_cast<size_t>(strips));
  for (int64_t s = 0; s < strips; ++s) at[static_cast<size_t>(s)] = w.crow[(begin + s * strip) / h.block_rows];

  for (int64_t panel = 0; panel < h.panels; ++panel) {
    const int64_t first = panel * blocks_per_panel;
    out.cells.push_back({static_cast<int64_t>(out.values.size()), static_cast<int64_t>(out.offsets.size()),
                         static_cast<int64_t>(out.counts.size()), 0});
    for (int64_t s = 0; s < strips; ++s) {
      const int64_t row = begin + s * strip, block_row = row / h.block_rows, in_block = row % h.block_rows;
      int64_t& i = at[static_cast<size_t>(s)];
      uint8_t blocks = 0;
      for (; i < w.crow[block_row + 1] && w.col[i] < first + blocks_per_panel; ++i, ++blocks) {
        out.offsets.push_back(static_cast<uint8_t>(w.col[i] - first));
        const uint32_t* block = values + i * h.block_rows * h.block_cols + in_block * h.block_cols;
        for (int64_t c = 0; c < h.block_cols; ++c) {
          for (int64_t r = 0; r < strip; ++r) out.values.push_back(block[r * h.block_cols + c]);
        }
      }
      out.counts.push_back(static_cast<char>(blocks));
    }
  }
}

}  // namespace sparseinfer
