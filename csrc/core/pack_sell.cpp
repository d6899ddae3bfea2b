#include <algorithm>

#include "pack_streams.h"

namespace sparseinfer {

void pack_sell_split(const PackingHeader& h, const SparseView& w, int64_t begin, int64_t end, SplitStreams& out) {
  if (h.panels == 0) return;
  out.cells.push_back({0, 0, 0, 0});
  UnitRow rows[kSliceRows];
  size_t at[kSliceRows], stop[kSliceRows];
  for (int64_t slice = begin; slice < end; slice += kSliceRows) {
    const int64_t lanes = std::min(kSliceRows, end - slice);
    for (int64_t r = 0; r < lanes; ++r) {
      read_row(w, slice + r, rows[r]);
      at[r] = 0;
    }
    for (int64_t first = 0; first < h.panel; first += kChunkUnits) {
      size_t steps = 0;
      for (int64_t r = 0; r < lanes; ++r) {
        const auto& units = rows[r].units;
        for (stop[r] = at[r]; stop[r] < units.size() && units[stop[r]] < first + kChunkUnits;) ++stop[r];
        steps = std::max(steps, stop[r] - at[r]);
      }
      out.counts.push_back(static_cast<char>(steps));
      for (size_t step = 0; step < steps; ++step) {
        uint16_t mask = 0;
        for (int64_t r = 0; r < kSliceRows; ++r) {
          const bool stored = r < lanes && at[r] < stop[r];
          if (stored) mask = static_cast<uint16_t>(mask | 1u << r);
          out.offsets.push_back(stored ? static_cast<uint8_t>(rows[r].units[at[r]] - first) : uint8_t{0});
          out.values.push_back(stored ? rows[r].payloads[at[r]++] : 0);
        }
        out.rows.push_back(mask);
      }
    }
  }
}

}  // namespace sparseinfer
