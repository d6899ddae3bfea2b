#include <algorithm>

#include "pack_streams.h"

namespace sparseinfer {

template <class Payload>
void pack_rowlist_split(const PackingHeader& h, const SparseView& w, int64_t begin, int64_t end, SplitStreams& out) {
  const size_t count = static_cast<size_t>(end - begin);
  const int64_t per_step = rowlist_step(h.storage);
  const auto* values = static_cast<const Payload*>(w.values);
  std::vector<int64_t> at(w.crow + begin, w.crow + end), stop(at);
  std::vector<uint16_t> order, by_length(count);
  std::vector<int64_t> bucket;

  for (int64_t panel = 0; panel < h.panels; ++panel) {
    const int64_t first = panel * h.panel, last = std::min(w.k, first + h.panel);
    out.cells.push_back({SplitStreams::count<Payload>(out.values), SplitStreams::count<uint16_t>(out.offsets),
                         SplitStreams::count<Run>(out.counts), SplitStreams::count<uint16_t>(out.rows)});
    auto length = [&](size_t r) { return (stop[r] - at[r] + per_step - 1) / per_step * per_step; };

    // Counting sort of the rows by length, longest first.
    bucket.assign(static_cast<size_t>(h.panel) + 3, 0);
    int64_t units = 0;
    order.clear();
    for (size_t r = 0; r < count; ++r) {
      const int64_t row_end = w.crow[begin + static_cast<int64_t>(r) + 1];
      for (stop[r] = at[r]; stop[r] < row_end && w.col[stop[r]] < last;) ++stop[r];
      if (stop[r] == at[r]) continue;
      order.push_back(static_cast<uint16_t>(r));
      ++bucket[static_cast<size_t>(h.panel + 2 - length(r))];
      units += length(r);
    }
    int64_t before = 0;
    for (int64_t& b : bucket) {
      const int64_t here = b;
      b = before;
      before += here;
    }
    for (uint16_t r : order) by_length[static_cast<size_t>(bucket[static_cast<size_t>(h.panel + 2 - length(r))]++)] = r;

    for (size_t i = 0; i < order.size();) {
      size_t j = i;
      while (j < order.size() && length(by_length[j]) == length(by_length[i])) ++j;
      *SplitStreams::extend<Run>(out.counts, 1) = {static_cast<uint16_t>(length(by_length[i])),
                                                   static_cast<uint16_t>(j - i)};
      i = j;
    }
    uint16_t* rows = SplitStreams::extend<uint16_t>(out.rows, static_cast<int64_t>(order.size()));
    uint16_t* offsets = SplitStreams::extend<uint16_t>(out.offsets, units);
    Payload* stored = SplitStreams::extend<Payload>(out.values, units);
    for (size_t n = 0; n < order.size(); ++n) {
      const size_t r = by_length[n];
      *rows++ = static_cast<uint16_t>(r);
      const int64_t filled = length(r) - (stop[r] - at[r]);
      for (int64_t i = at[r]; i < stop[r]; ++i) {
        *offsets++ = static_cast<uint16_t>(w.col[i] - first);
        *stored++ = values[i];
      }
      for (int64_t i = 0; i < filled; ++i) {
        *offsets++ = static_cast<uint16_t>(h.panel);
        *stored++ = Payload{0};
      }
      at[r] = stop[r];
    }
  }
}

template void pack_rowlist_split<uint32_t>(const PackingHeader&, const SparseView&, int64_t, int64_t, SplitStreams&);
template void pack_rowlist_split<uint16_t>(const PackingHeader&, const SparseView&, int64_t, int64_t, SplitStreams&);

}  // namespace sparseinfer
