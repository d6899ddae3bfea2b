#include <algorithm>

#include "pack_streams.h"

namespace sparseinfer {

template <class Payload>
void pack_rowgroup_split(const PackingHeader& h, const SparseView& w, int64_t begin, int64_t end, SplitStreams& out) {
  const int64_t rows = end - begin, groups = (rows + kGroupRows - 1) / kGroupRows;
  const int64_t pair = columns_per_step(h.storage);
  const auto* values = static_cast<const Payload*>(w.values);
  std::vector<int64_t> at(w.crow + begin, w.crow + end);
  std::vector<uint8_t> pattern(static_cast<size_t>(h.panel));
  std::vector<Payload> payload(static_cast<size_t>(h.panel * kGroupRows));

  for (int64_t panel = 0; panel < h.panels; ++panel) {
    const int64_t first = panel * h.panel, last = std::min(w.k, first + h.panel);
    out.cells.push_back({SplitStreams::count<Payload>(out.values), SplitStreams::count<uint16_t>(out.offsets),
                         SplitStreams::count<PatternCounts>(out.counts), 0});
    for (int64_t g = 0; g < groups; ++g) {
      std::memset(pattern.data(), 0, pattern.size());
      for (int64_t r = 0; r < kGroupRows && g * kGroupRows + r < rows; ++r) {
        const int64_t row = g * kGroupRows + r, row_end = w.crow[begin + row + 1];
        int64_t& i = at[static_cast<size_t>(row)];
        for (; i < row_end && w.col[i] < last; ++i) {
          const auto c = static_cast<size_t>(w.col[i] - first);
          pattern[c] = static_cast<uint8_t>(pattern[c] | 1 << r);
          payload[c * kGroupRows + static_cast<size_t>(r)] = values[i];
        }
      }

      // Counting sort of the units by pattern.
      int64_t found[kPatterns] = {};
      for (int64_t c = 0; c < last - first; ++c) ++found[pattern[static_cast<size_t>(c)]];
      auto* counts = SplitStreams::extend<PatternCounts>(out.counts, 1);
      int64_t unit_at[kPatterns], value_at[kPatterns], units = 0, payloads = 0;
      counts->of[0] = 0;
      for (int p = 1; p < kPatterns; ++p) {
        const int pattern_rows = __builtin_popcount(static_cast<unsigned>(p));
        const int64_t per_step = rowgroup_step(h.storage, pattern_rows);
        unit_at[p] = units;
        value_at[p] = payloads;
        const int64_t steps = (found[p] + per_step - 1) / per_step;
        counts->of[p] = static_cast<uint16_t>(steps);
        units += steps * per_step;
        payloads += steps * per_step * pattern_rows;
      }
      uint16_t* offsets = SplitStreams::extend<uint16_t>(out.offsets, units);
      Payload* stored = SplitStreams::extend<Payload>(out.values, payloads);
      // A pair of units stores row by row both of their payloads.
      int64_t seen[kPatterns] = {};
      auto place = [&](int p, int64_t position, const Payload* from) {
        const int64_t unit = seen[p]++;
        offsets[unit_at[p] + unit] = static_cast<uint16_t>(position);
        const int64_t pair_payloads = pair * __builtin_popcount(static_cast<unsigned>(p));
        Payload* to = stored + value_at[p] + unit / pair * pair_payloads + unit % pair;
        for (int r = 0; r < kGroupRows; ++r) {
          if (!(p >> r & 1)) continue;
          *to = from == nullptr ? Payload{0} : from[r];
          to += pair;
        }
      };
      for (int64_t c = 0; c < last - first; ++c) {
        const int p = pattern[static_cast<size_t>(c)];
        if (p != 0) place(p, c, payload.data() + c * kGroupRows);
      }
      for (int p = 1; p < kPatterns; ++p) {
        const int64_t per_step = rowgroup_step(h.storage, __builtin_popcount(static_cast<unsigned>(p)));
        while (seen[p] % per_step != 0) place(p, h.panel, nullptr);
      }
    }
  }
}

template void pack_rowgroup_split<uint32_t>(const PackingHeader&, const SparseView&, int64_t, int64_t, SplitStreams&);
template void pack_rowgroup_split<uint16_t>(const PackingHeader&, const SparseView&, int64_t, int64_t, SplitStreams&);

}  // namespace sparseinfer
