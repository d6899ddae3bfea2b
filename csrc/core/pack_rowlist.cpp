#include <algorithm>

#include "pack_streams.h"

namespace sparseinfer {

void pack_rowlist_split(const PackingHeader& h, const SparseView& w, int64_t begin, int64_t end, SplitStreams& out) {
  const size_t count = static_cast<size_t>(end - begin);
  std::vector<UnitRow> rows(count);
  std::vector<size_t> at(count, 0), stop(count, 0);
  std::vector<uint16_t> order(count);
  for (size_t r = 0; r < count; ++r) read_row(w, begin + static_cast<int64_t>(r), rows[r]);

  for (int64_t panel = 0; panel < h.panels; ++panel) {
    const int64_t first = panel * h.panel;
    out.cells.push_back({static_cast<int64_t>(out.values.size()), static_cast<int64_t>(out.offsets.size()),
                         static_cast<int64_t>(out.counts.size()), static_cast<int64_t>(out.rows.size())});
    order.clear();
    for (size_t r = 0; r < count; ++r) {
      const auto& units = rows[r].units;
      for (stop[r] = at[r]; stop[r] < units.size() && units[stop[r]] < first + h.panel;) ++stop[r];
      if (stop[r] > at[r]) order.push_back(static_cast<uint16_t>(r));
    }
    auto length = [&](uint16_t r) { return stop[r] - at[r]; };
    std::stable_sort(order.begin(), order.end(), [&](uint16_t a, uint16_t b) { return length(a) > length(b); });

    for (size_t i = 0; i < order.size();) {
      size_t j = i;
      while (j < order.size() && length(order[j]) == length(order[i])) ++j;
      const Run run{static_cast<uint16_t>(length(order[i])), static_cast<uint16_t>(j - i)};
      const char* bytes = reinterpret_cast<const char*>(&run);
      out.counts.insert(out.counts.end(), bytes, bytes + sizeof run);
      i = j;
    }
    for (uint16_t r : order) {
      out.rows.push_back(r);
      for (size_t i = at[r]; i < stop[r]; ++i) out.offsets.push_back(static_cast<uint8_t>(rows[r].units[i] - first));
      out.values.insert(out.values.end(), rows[r].payloads.begin() + static_cast<std::ptrdiff_t>(at[r]),
                        rows[r].payloads.begin() + static_cast<std::ptrdiff_t>(stop[r]));
      at[r] = stop[r];
    }
  }
}

}  // namespace sparseinfer
