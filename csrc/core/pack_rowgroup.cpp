#include <cstring>

#include "pack_streams.h"

namespace sparseinfer {

void pack_rowgroup_split(const PackingHeader& h, const SparseView& w, int64_t begin, int64_t end, SplitStreams& out) {
  const int64_t groups = (end - begin + kGroupRows - 1) / kGroupRows;
  std::vector<UnitRow> rows(static_cast<size_t>(end - begin));
  std::vector<size_t> at(rows.size(), 0);
  for (int64_t r = begin; r < end; ++r) read_row(w, r, rows[static_cast<size_t>(r - begin)]);

  uint8_t pattern[kMaxPanel];
  uint32_t payload[kMaxPanel][kGroupRows];
  for (int64_t panel = 0; panel < h.panels; ++panel) {
    const int64_t first = panel * h.panel;
    out.cells.push_back({static_cast<int64_t>(out.values.size()), static_cast<int64_t>(out.offsets.size()),
                         static_cast<int64_t>(out.counts.size()), 0});
    for (int64_t g = 0; g < groups; ++g) {
      std::memset(pattern, 0, sizeof pattern);
      for (int64_t r = 0; r < kGroupRows && g * kGroupRows + r < end - begin; ++r) {
        const size_t i = static_cast<size_t>(g * kGroupRows + r);
        for (; at[i] < rows[i].units.size() && rows[i].units[at[i]] < first + h.panel; ++at[i]) {
          const int64_t c = rows[i].units[at[i]] - first;
          pattern[c] = static_cast<uint8_t>(pattern[c] | 1 << r);
          payload[c][r] = rows[i].payloads[at[i]];
        }
      }

      // Counting sort of the units by pattern.
      PatternCounts counts{};
      for (int64_t c = 0; c < h.panel; ++c) ++counts.of[pattern[c]];
      counts.of[0] = 0;
      size_t unit_at[kPatterns], value_at[kPatterns];
      size_t units = out.offsets.size(), values = out.values.size();
      for (int p = 1; p < kPatterns; ++p) {
        unit_at[p] = units;
        value_at[p] = values;
        units += counts.of[p];
        values += counts.of[p] * static_cast<size_t>(__builtin_popcount(static_cast<unsigned>(p)));
      }
      out.offsets.resize(units);
      out.values.resize(values);
      for (int64_t c = 0; c < h.panel; ++c) {
        const int p = pattern[c];
        if (p == 0) continue;
        out.offsets[unit_at[p]++] = static_cast<uint8_t>(c);
        for (int r = 0; r < kGroupRows; ++r) {
          if (p >> r & 1) out.values[value_at[p]++] = payload[c][r];
        }
      }
      const char* bytes = reinterpret_cast<const char*>(&counts);
      out.counts.insert(out.counts.end(), bytes, bytes + sizeof counts);
    }
  }
}

}  // namespace sparseinfer
