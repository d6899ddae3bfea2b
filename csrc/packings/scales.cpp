// int8: the scales of rows, and the sums of rows that the zero point of x is multiplied by.
#include <cmath>
#include <cstdlib>
#include <limits>
#include <stdexcept>
#include <string>

#include "packings/packing.h"

namespace sparseinfer {
namespace {

// Calls f(row, payload) for every stored value.
template <class F>
void for_values(const SparseView& w, F f) {
  const auto* values = static_cast<const int8_t*>(w.values);
  for (int64_t row = 0; row < w.n; row += w.block_rows) {
    const int64_t first = w.crow[row / w.block_rows], last = w.crow[row / w.block_rows + 1];
    const int8_t* at = values + first * w.block_rows * w.block_cols;
    for (int64_t block = first; block < last; ++block) {
      for (int64_t r = row; r < row + w.block_rows; ++r) {
        for (int64_t c = 0; c < w.block_cols; ++c) f(r, *at++);
      }
    }
  }
}

}  // namespace

// A sum of (q - zero) * w with q and zero in [0, 255], and all its parts, are at most 255 times the sum of |w|.
void check_scales(const SparseView& w) {
  if (w.n > 0 && w.scales == nullptr) {
    throw std::invalid_argument("scales: expected one for each row of int8, got none");
  }
  std::vector<int64_t> magnitudes(static_cast<size_t>(w.n), 0);
  for_values(w, [&](int64_t row, int8_t value) { magnitudes[static_cast<size_t>(row)] += std::abs(int{value}); });
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max() / 255;
  for (int64_t row = 0; row < w.n; ++row) {
    if (!(w.scales[row] >= 0.0f) || std::isinf(w.scales[row])) {
      throw std::invalid_argument("scales: expected finite numbers from 0, got " + std::to_string(w.scales[row]) +
                                  " in row " + std::to_string(row));
    }
    const int64_t got = magnitudes[static_cast<size_t>(row)];
    if (got > kMost) {
      throw std::invalid_argument("values: expected magnitudes of int8 that add up to at most " +
                                  std::to_string(kMost) + " in a row, so that sums fit 32 bits, got " +
                                  std::to_string(got) + " in row " + std::to_string(row));
    }
  }
}

std::vector<int32_t> row_sums(const SparseView& w) {
  std::vector<int32_t> sums(static_cast<size_t>(w.n), 0);
  for_values(w, [&](int64_t row, int8_t value) { sums[static_cast<size_t>(row)] += value; });
  return sums;
}

}  // namespace sparseinfer
