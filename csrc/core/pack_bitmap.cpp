#include "pack_streams.h"

namespace sparseinfer {

template <class Payload>
void pack_bitmap_split(const PackingHeader& h, const SparseView& w, int64_t begin, int64_t end, SplitStreams& out) {
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

template void pack_bitmap_split<uint32_t>(const PackingHeader&, const SparseView&, int64_t, int64_t, SplitStreams&);
template void pack_bitmap_split<uint16_t>(const PackingHeader&, const SparseView&, int64_t, int64_t, SplitStreams&);

}  // namespace sparseinfer
