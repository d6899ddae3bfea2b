// Every value of every product, exactly; and weights that tiles and bytes could go wrong with.
#pragma once

#include <algorithm>
#include <vector>

#include "tested.h"

namespace native_tests {
namespace {

struct Options {
  bool all_dtypes = false;
  std::vector<int64_t> panels{0};
  int64_t max_splits = 64;
};

// Every value of every product, exactly.
void check_exact(const char* name, const Problem& p, const std::vector<int64_t>& tokens, const Options& o = {}) {
  for (Tested& tested : g_tested) {
    if (!tested.takes(p)) continue;
    for_packings(tested, p, o.all_dtypes, o.panels, o.max_splits, [&](const PackingHeader* h, DType x) {
      for (int64_t m : tokens) {
        constexpr int kParts[] = {kBackwards, 1, 2, 7};
        const int64_t turn = tested.turn++;
        check(tested, name,
              {tested.kernel, p, h, x, m, static_cast<Bias>(turn % 3), Activation::kNone, kParts[turn / 3 % 4]}, same,
              none);
      }
    });
  }
}

Problem filled(int64_t n, int64_t k, int64_t m, Values values, double sparsity, int64_t rows = 1, int64_t cols = 1) {
  Problem p(n, k, m, rows, cols);
  p.fill(values, sparsity,
         static_cast<uint64_t>(n * 1000003 + k * 1009 + rows * 31 + cols) + static_cast<uint64_t>(sparsity * 64));
  return p;
}

// Weights at the ends of int8, and x at the ends of the range that its bytes span: what saturates in a product of
// bytes, or in a sum of a few, shows.
void check_extremes() {
  for (auto [r, c] : {std::pair<int64_t, int64_t>{1, 1}, {1, 4}, {16, 1}, {16, 64}}) {
    Problem p(96, 640, 65, r, c);
    p.fill(Values::kIntegers, 0.4, 3);
    Random random(9);
    for (size_t i = 0; i < p.weight.size(); ++i) {
      const int64_t row = static_cast<int64_t>(i) / p.k;
      if (p.stored[i]) p.weight[i] = row == 0 ? 127.0 : row == 1 ? -127.0 : random.chance(0.5) ? 127.0 : -127.0;
    }
    for (size_t i = 0; i < p.x.size(); ++i) {
      const int64_t token = static_cast<int64_t>(i) / p.k;
      p.x[i] = token == 0 ? 135.0 : token == 1 ? -120.0 : random.chance(0.5) ? 135.0 : -120.0;
    }
    for (int64_t token : {0, 1}) {  // so that these span 255 too
      p.x[static_cast<size_t>(token * p.k + 5)] = token == 0 ? -120.0 : 135.0;
    }
    p.finish();
    check_exact("extremes", p, {1, 16, 33, 65}, {true});
  }
}

// Tiles without a weight: everywhere, in all of some strips, in the same places of several strips, and in none.
void check_empty_tiles() {
  for (int64_t columns : {32, 64}) {
    for (double empty : {0.1, 0.6, 0.95}) {
      Problem p = filled(208, 1100, 129, Values::kIntegers, 0.7);
      Random random(static_cast<uint64_t>(columns));
      for (int64_t row = 0; row < p.n; row += 16) {
        for (int64_t column = 0; column < p.k; column += columns) {
          const bool strips = row / 16 % 5 == 1 || (row >= 160 && column % 128 == 0);
          if (!strips && (row >= 128 || !random.chance(empty))) continue;
          for (int64_t r = row; r < row + 16; ++r) {
            for (int64_t c = column; c < std::min(p.k, column + columns); ++c) {
              p.store(r, c, 0.0);
              p.stored[static_cast<size_t>(r * p.k + c)] = false;
            }
          }
        }
      }
      p.finish();
      check_exact("empty tiles", p, {1, 16, 17, 40, 64, 129}, {false, {0}, 3});
    }
  }
}

}  // namespace
}  // namespace native_tests
