// The packing `rowgroup`: 4 rows at a time, the units of a panel sorted by which of the 4 rows store them. For many
// tokens, where rows share columns.
//
//   counts   PatternCounts [cells][groups of 4 rows]: steps of each of the 15 patterns
//   offsets  uint16: position in the panel of each unit, pattern after pattern; whole steps of `rowgroup_step` units,
//            padded with the position past the panel
//   values   payloads of each unit, one for each row of its pattern; in pair storage two units of a pattern together,
//            in i8 four, row by row all of their payloads; 0 as padding
//   rows     unused
#include <algorithm>

#include "packings/packing.h"

namespace sparseinfer {
namespace {

int64_t row_multiple(const PackingHeader&) { return kGroupRows; }

// Of i8, where one column of 64 tokens is 64 bytes, L2 is fast enough, and a mispredicted loop exit in each of up to 15
// patterns costs more. Measured on Zen 5 with 4096x4096 and 64 tokens: 768, 1536 and 2048 columns take 2606, 2592 and
// 2346 us at 50 % zeros, 1510, 1361 and 1514 at 80 %, 932, 865 and 810 at 90 %.
int64_t panel(const PackingHeader& h) { return h.storage == Storage::kI8 ? 1536 : l1_panel(h, 192); }

template <class Payload>
void pack_split(const PackingHeader& h, const SparseView& w, int64_t begin, int64_t end, SplitStreams& out) {
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
      int64_t units_of[kPatterns] = {};
      for (int64_t c = 0; c < last - first; ++c) ++units_of[pattern[static_cast<size_t>(c)]];
      auto* counts = SplitStreams::extend<PatternCounts>(out.counts, 1);
      int64_t unit_at[kPatterns], value_at[kPatterns], units = 0, payloads = 0;
      counts->of[0] = 0;
      for (int p = 1; p < kPatterns; ++p) {
        const int pattern_rows = __builtin_popcount(static_cast<unsigned>(p));
        const int64_t per_step = rowgroup_step(h.storage, pattern_rows);
        unit_at[p] = units;
        value_at[p] = payloads;
        const int64_t steps = (units_of[p] + per_step - 1) / per_step;
        counts->of[p] = static_cast<uint16_t>(steps);
        units += steps * per_step;
        payloads += steps * per_step * pattern_rows;
      }
      uint16_t* offsets = SplitStreams::extend<uint16_t>(out.offsets, units);
      Payload* stored = SplitStreams::extend<Payload>(out.values, payloads);
      // A pair of units, or four, stores row by row all of their payloads.
      int64_t placed[kPatterns] = {};
      auto place = [&](int p, int64_t position, const Payload* from) {
        const int64_t unit = placed[p]++;
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
        while (placed[p] % per_step != 0) place(p, h.panel, nullptr);
      }
    }
  }
}

int64_t check_cell(const PackingHeader& h, int64_t rows, int64_t width, CellReader& cell) {
  int64_t stored = 0;
  for (int64_t group = 0; group < (rows + kGroupRows - 1) / kGroupRows; ++group) {
    const PatternCounts& counts = section<PatternCounts>(&h, h.counts)[cell.take_counts(1)];
    const int64_t rows_left = rows - group * kGroupRows;
    for (int p = 1; p < kPatterns; ++p) {
      require(rows_left >= kGroupRows || p >> rows_left == 0 || counts.of[p] == 0, "counts");
      const int pattern_rows = __builtin_popcount(static_cast<unsigned>(p));
      const int64_t units = counts.of[p] * rowgroup_step(h.storage, pattern_rows);
      const int64_t fillings = check_offsets<uint16_t>(h, cell.take_offsets(units), units, width, h.panel);
      cell.take_values(units * pattern_rows);
      stored += (units - fillings) * pattern_rows;
    }
  }
  return stored;
}

template <class Payload>
void visit(const PackingHeader& h, const CellPlace& place, RowSink<Payload>& sink) {
  const auto* counts = section<PatternCounts>(&h, h.counts) + place.cell->counts;
  const uint16_t* offsets = section<uint16_t>(&h, h.offsets) + place.cell->offsets;
  const Payload* values = section<Payload>(&h, h.values) + place.cell->values;
  const int64_t pair = columns_per_step(h.storage);
  for (int64_t g = 0; g < place.rows; g += kGroupRows, ++counts) {
    for (int p = 1; p < kPatterns; ++p) {
      const int64_t units = counts->of[p] * rowgroup_step(h.storage, __builtin_popcount(static_cast<unsigned>(p)));
      for (int64_t i = 0; i < units; i += pair, offsets += pair) {
        for (int r = 0; r < kGroupRows; ++r) {
          if (!(p >> r & 1)) continue;
          for (int64_t u = 0; u < pair; ++u, ++values) {
            if (offsets[u] != h.panel) sink.unit(place.row + g + r, place.panel * h.panel + offsets[u], values);
          }
        }
      }
    }
  }
}

constexpr CellPacking kCells = [] {
  CellPacking cells = cells_of(pack_split<uint32_t>, pack_split<uint16_t>, pack_split<uint8_t>, check_cell);
  cells.count_bytes = sizeof(PatternCounts);
  cells.offset_bytes = 2;
  cells.panel = panel;
  cells.widest_panel = widest_l1_panel;
  return cells;
}();

}  // namespace

constexpr Packing rowgroup_packing = [] {
  Packing packing = packing_of_rows<visit<uint32_t>, visit<uint16_t>, visit<uint8_t>>(&kCells);
  packing.min_rows = always<16>;
  packing.row_multiple = row_multiple;
  return packing;
}();

}  // namespace sparseinfer
