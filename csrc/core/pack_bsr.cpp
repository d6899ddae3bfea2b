#include "pack_streams.h"

namespace sparseinfer {

template <class Payload>
void pack_bsr_split(const PackingHeader& h, const SparseView& w, int64_t begin, int64_t end, SplitStreams& out) {
  const int64_t strip = strip_rows(h.block_rows), strips = (end - begin) / strip;
  const int64_t blocks_per_panel = h.panel / h.block_cols, pair = columns_per_step(h.storage);
  const auto* values = static_cast<const Payload*>(w.values);
  std::vector<int64_t> at(static_cast<size_t>(strips));
  for (int64_t s = 0; s < strips; ++s) at[static_cast<size_t>(s)] = w.crow[(begin + s * strip) / h.block_rows];

  for (int64_t panel = 0; panel < h.panels; ++panel) {
    const int64_t first = panel * blocks_per_panel;
    out.cells.push_back({SplitStreams::count<Payload>(out.values), out.offsets.size(), out.counts.size(), 0});
    for (int64_t s = 0; s < strips; ++s) {
      const int64_t row = begin + s * strip, block_row = row / h.block_rows, in_block = row % h.block_rows;
      int64_t& i = at[static_cast<size_t>(s)];
      uint8_t blocks = 0;
      for (; i < w.crow[block_row + 1] && w.col[i] < first + blocks_per_panel; ++i, ++blocks) {
        out.offsets.push(static_cast<char>(w.col[i] - first));
        const Payload* block = values + (i * h.block_rows + in_block) * h.block_cols;
        Payload* to = SplitStreams::extend<Payload>(out.values, strip * h.block_cols);
        for (int64_t c = 0; c < h.block_cols; c += pair) {
          for (int64_t r = 0; r < strip; ++r) {
            for (int64_t p = 0; p < pair; ++p) *to++ = block[r * h.block_cols + c + p];
          }
        }
      }
      out.counts.push(static_cast<char>(blocks));
    }
  }
}

template void pack_bsr_split<uint32_t>(const PackingHeader&, const SparseView&, int64_t, int64_t, SplitStreams&);
template void pack_bsr_split<uint16_t>(const PackingHeader&, const SparseView&, int64_t, int64_t, SplitStreams&);

}  // namespace sparseinfer
