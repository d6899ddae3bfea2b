#include <algorithm>
#include <limits>

#include "pack_streams.h"

namespace sparseinfer {
namespace {

// Windows of 64 fp32 take four registers to load: where they move on every second step, whole cache lines pay more than
// a few columns of reach lost to rounding down.
int64_t alignment(Storage storage, int64_t window, int64_t steps) {
  return storage != Storage::kBF16 && window == 64 && steps == 2 ? 16 : 1;
}

// The rows of one slice, walked from window to window.
struct Slice {
  int64_t at[kSliceRows], end[kSliceRows];

  Slice(const SparseView& w, int64_t row, int64_t row_end) {
    for (int64_t r = 0; r < kSliceRows; ++r) {
      const bool there = row + r < row_end;
      at[r] = there ? w.crow[row + r] : 0;
      end[r] = there ? w.crow[row + r + 1] : 0;
    }
  }

  // First column of the next window; negative when all rows are done.
  int64_t next_window(const SparseView& w, int64_t align) const {
    int32_t first = std::numeric_limits<int32_t>::max();
    bool any = false;
    for (int64_t r = 0; r < kSliceRows; ++r) {
      if (at[r] == end[r]) continue;
      any = true;
      first = std::min(first, w.col[at[r]]);
    }
    return any ? first / align * align : -1;
  }
};

}  // namespace

template <class Payload>
void pack_sell_split(const PackingHeader& h, const SparseView& w, int64_t begin, int64_t end, SplitStreams& out) {
  if (h.panels == 0) return;
  out.cells.push_back({0, 0, 0, 0});
  const auto* values = static_cast<const Payload*>(w.values);
  const int64_t per_row = columns_per_step(h.storage), align = alignment(h.storage, h.window, h.steps);
  const int64_t slots = kSliceRows * per_row;
  const auto filling = static_cast<uint8_t>(h.window - 1);
  for (int64_t row = begin; row < end; row += kSliceRows) {
    Slice slice(w, row, end);
    uint32_t windows = 0;
    for (int64_t first; (first = slice.next_window(w, align)) >= 0; ++windows) {
      *SplitStreams::extend<uint32_t>(out.rows, 1) = static_cast<uint32_t>(first);
      uint8_t* offsets = SplitStreams::extend<uint8_t>(out.offsets, h.steps * slots);
      Payload* stored = SplitStreams::extend<Payload>(out.values, h.steps * slots);
      std::memset(offsets, filling, static_cast<size_t>(h.steps * slots));
      const int64_t reach = first + h.window - 1;
      for (int64_t r = 0; r < kSliceRows; ++r) {
        int64_t i = slice.at[r];
        for (int64_t step = 0; step < h.steps; ++step) {
          for (int64_t p = 0; p < per_row; ++p) {
            if (i == slice.end[r] || w.col[i] >= reach) break;
            const int64_t slot = step * slots + r * per_row + p;
            offsets[slot] = static_cast<uint8_t>(w.col[i] - first);
            stored[slot] = values[i++];
          }
        }
        slice.at[r] = i;
      }
    }
    *SplitStreams::extend<uint32_t>(out.counts, 1) = windows;
  }
}

template void pack_sell_split<uint32_t>(const PackingHeader&, const SparseView&, int64_t, int64_t, SplitStreams&);
template void pack_sell_split<uint16_t>(const PackingHeader&, const SparseView&, int64_t, int64_t, SplitStreams&);

void choose_sell_window(const SparseView& w, Isa isa, PackingHeader& h) {
  struct Choice {
    int64_t window, steps;
    // Of one step: for m = 1, a quarter of those for m = 4, and 2 for its bytes. Measured on Zen 4 with 3072x768 at 50
    // to 95 % zeros and weights in L3: they depend on the layout, not on the zeros.
    double cycles;
  };
  static const std::vector<Choice> kAvx512 = {{64, 2, 9.95}, {64, 4, 9.6},  {64, 8, 9.55},
                                              {32, 2, 7.95}, {32, 4, 7.25}, {32, 8, 7.1}};
  static const std::vector<Choice> kAvx512Pairs = {{64, 2, 8.5}, {64, 4, 7.9}, {64, 8, 7.8}};
  static const std::vector<Choice> kAvx2 = {{8, 1, 9.0}, {8, 2, 8.0}, {16, 1, 11.5}, {16, 2, 11.0}, {16, 4, 10.5}};
  // Not measured: counted from the instructions of a step and of what loads a window.
  static const std::vector<Choice> kNeon = {{16, 1, 30}, {16, 2, 27}, {16, 4, 25.5}};
  static const std::vector<Choice> kNeonPairs = {{32, 1, 46}, {32, 2, 43}, {32, 4, 41.5}};
  static const std::vector<Choice> kOther = {{64, 4, 1.0}};
  const bool pairs = h.storage == Storage::kBF16, wide = isa == Isa::kAvx512 || isa == Isa::kAvx512Bf16;
  const auto& choices = wide                          ? (pairs ? kAvx512Pairs : kAvx512)
                        : isa == Isa::kNeon           ? (pairs ? kNeonPairs : kNeon)
                        : isa == Isa::kAvx2 && !pairs ? kAvx2
                                                      : kOther;
  constexpr int64_t kSamples = 8;

  double best = std::numeric_limits<double>::infinity();
  for (const Choice& choice : choices) {
    const int64_t per_window = choice.steps * columns_per_step(h.storage);
    const int64_t align = alignment(h.storage, choice.window, choice.steps);
    int64_t windows = 0;
    for (int64_t sample = 0; sample < kSamples; ++sample) {
      const int64_t row = w.n / kSliceRows * sample / kSamples * kSliceRows;
      Slice slice(w, row, std::min(w.n, row + kSliceRows));
      for (int64_t first; (first = slice.next_window(w, align)) >= 0; ++windows) {
        const int64_t reach = first + choice.window - 1;
        for (int64_t r = 0; r < kSliceRows; ++r) {
          const int64_t stop = std::min(slice.end[r], slice.at[r] + per_window);
          while (slice.at[r] < stop && w.col[slice.at[r]] < reach) ++slice.at[r];
        }
      }
    }
    const double cost = static_cast<double>(windows * choice.steps) * choice.cycles;
    if (cost < best) {
      best = cost;
      h.window = choice.window;
      h.steps = choice.steps;
    }
  }
}

}  // namespace sparseinfer
