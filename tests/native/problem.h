// Weights, activations and their products in fp64. All values are exact in all three float types, so one problem serves
// every kernel; int8 those whose weights are integers. Integers of x span 255, so that rounding them to 8 bits is
// exact.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "floats.h"
#include "sparseinfer/pack.h"

namespace native_tests {

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  // splitmix64
  uint64_t next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
  }
  int64_t below(int64_t limit) { return static_cast<int64_t>(next() % static_cast<uint64_t>(limit)); }
  int64_t between(int64_t first, int64_t last) { return first + below(last - first + 1); }
  bool chance(double p) { return static_cast<double>(next() >> 11) < p * 0x1p53; }

 private:
  uint64_t state_;
};

enum class Values {
  kIntegers,  // small enough that every sum is exact in fp32
  kHostile,   // the same with NaN and infinities in x and in the weights
  kHostileX,  // the same in x alone
  kReals,     // 8 bits of mantissa each, and sums that have to be rounded
  kRealX,     // the same of x; weights are integers, small enough that sums fit fp16
};

// Of int8.
inline double scale_of(int64_t row) { return std::ldexp(1.0, -static_cast<int>(row % 6)); }

struct Problem {
  int64_t n, k, block_rows, block_cols, m;
  Values values;
  double sparsity;
  std::vector<double> weight;  // [n][k]
  std::vector<bool> stored;    // [n][k], whole blocks; a stored weight may be zero
  std::vector<double> x;       // [m][k]
  std::vector<double> bias;    // [n]
  std::vector<double> sums;    // [m][n], over what is stored
  std::vector<double> bounds;  // [m][n], of the error of a sum of reals in fp32; nothing else may have any
  std::vector<double> coarse;  // [m][n], what is added to it where x is rounded to 8 bits
  std::vector<bool> odd;       // [m], whether the token has a NaN or an infinity
  bool int8 = true;            // whether int8 holds the weights

  Problem(int64_t n_, int64_t k_, int64_t m_, int64_t block_rows_ = 1, int64_t block_cols_ = 1)
      : n(n_), k(k_), block_rows(block_rows_), block_cols(block_cols_), m(m_), values(Values::kIntegers), sparsity(0) {
    weight.resize(static_cast<size_t>(n * k));
    stored.resize(static_cast<size_t>(n * k));
    x.resize(static_cast<size_t>(m * k));
    bias.resize(static_cast<size_t>(n));
  }

  void fill(Values values_, double sparsity_, uint64_t seed) {
    values = values_;
    sparsity = sparsity_;
    Random random(seed);
    for (int64_t row = 0; row < n; row += block_rows) {
      for (int64_t column = 0; column < k; column += block_cols) {
        if (!random.chance(1.0 - sparsity)) continue;
        for (int64_t i = 0; i < block_rows * block_cols; ++i) {
          const double value = values == Values::kRealX      ? static_cast<double>(random.between(-31, 31))
                               : values == Values::kHostileX ? static_cast<double>(random.between(-4, 4))
                                                             : draw(random, 4, 0.004);
          store(row + i / block_cols, column + i % block_cols, value);
        }
      }
    }
    for (double& v : x) v = draw(random, 3, 0.02);
    if (values != Values::kReals && values != Values::kRealX) span(random);
    // 5001 is a tie between two numbers of fp16, 258 of bf16; 1e5 is past the range of fp16.
    for (double& v : bias)
      v = values == Values::kReals || values == Values::kRealX ? draw(random, 0, 0)
                                                               : static_cast<double>(random.between(-5001, 5001));
    if (n > 2) bias[static_cast<size_t>(n / 2)] = 1e5;
    if (n > 2 && (values == Values::kHostile || values == Values::kHostileX))
      bias[static_cast<size_t>(n / 3)] = std::numeric_limits<double>::quiet_NaN();
    finish();
  }

  void store(int64_t row, int64_t column, double value) {
    weight[static_cast<size_t>(row * k + column)] = value;
    stored[static_cast<size_t>(row * k + column)] = true;
  }

  // The smallest and the largest value of each token, 255 apart.
  void span(Random& random) {
    for (size_t t = 0; t < static_cast<size_t>(m) && k > 0; ++t) {
      const auto row = t * static_cast<size_t>(k);
      const int64_t at = random.below(k), other = k > 1 ? (at + 1 + random.below(k - 1)) % k : at;
      x[row + static_cast<size_t>(at)] = k > 1 ? -120.0 : random.chance(0.5) ? -255.0 : 255.0;
      if (k > 1) x[row + static_cast<size_t>(other)] = 135.0;
    }
  }

  void finish() {
    sums.assign(static_cast<size_t>(m * n), 0.0);
    bounds.assign(static_cast<size_t>(m * n), 0.0);
    coarse.assign(static_cast<size_t>(m * n), 0.0);
    odd.assign(static_cast<size_t>(m), false);
    for (double w : weight) int8 = int8 && w == std::floor(w) && w >= -128.0 && w <= 127.0;
    std::vector<double> steps(static_cast<size_t>(m));  // between values of 8 bits
    for (int64_t t = 0; t < m; ++t) {
      double low = 0.0, high = 0.0;
      for (int64_t c = 0; c < k; ++c) {
        const double v = x[static_cast<size_t>(t * k + c)];
        if (!std::isfinite(v)) odd[static_cast<size_t>(t)] = true;
        low = std::fmin(low, v);
        high = std::fmax(high, v);
      }
      steps[static_cast<size_t>(t)] = (high - low) / 255.0;
    }
    std::vector<int64_t> columns;
    for (int64_t row = 0; row < n; ++row) {
      columns.clear();
      for (int64_t c = 0; c < k; ++c) {
        if (stored[static_cast<size_t>(row * k + c)]) columns.push_back(c);
      }
      for (int64_t t = 0; t < m; ++t) {
        double sum = 0.0, magnitude = 0.0, weights = 0.0;
        for (int64_t c : columns) {
          const double product = x[static_cast<size_t>(t * k + c)] * weight[static_cast<size_t>(row * k + c)];
          sum += product;
          magnitude += std::fabs(product);
          weights += std::fabs(weight[static_cast<size_t>(row * k + c)]);
        }
        sums[static_cast<size_t>(t * n + row)] = sum;
        if (values == Values::kReals || values == Values::kRealX) {
          coarse[static_cast<size_t>(t * n + row)] = 0.501 * weights * steps[static_cast<size_t>(t)];
          bounds[static_cast<size_t>(t * n + row)] = 0x1p-22 * static_cast<double>(columns.size() + 2) *
                                                     (magnitude + std::fabs(bias[static_cast<size_t>(row)]));
        }
      }
    }
  }

  const std::vector<uint32_t>& x_bits(DType dtype) const {
    std::vector<uint32_t>& bits = x_bits_[static_cast<int>(dtype)];
    if (bits.empty()) {
      for (double v : x) bits.push_back(encode(v, dtype));
    }
    return bits;
  }

 private:
  double draw(Random& random, int64_t largest, double hostile) const {
    if ((values == Values::kHostile || values == Values::kHostileX) && random.chance(hostile)) {
      const double inf = std::numeric_limits<double>::infinity();
      return random.chance(0.5) ? std::numeric_limits<double>::quiet_NaN() : random.chance(0.5) ? inf : -inf;
    }
    if (values != Values::kReals && values != Values::kRealX)
      return static_cast<double>(random.between(-largest, largest));
    return std::ldexp(static_cast<double>(random.between(-255, 255)), -static_cast<int>(random.below(9)));
  }

  mutable std::vector<uint32_t> x_bits_[sparseinfer::kNumDTypes];
};

// The weight of a problem as CSR, or as BSR where it has blocks.
struct Format {
  int64_t n, k, block_rows, block_cols;
  DType dtype;
  std::vector<int64_t> crow{0};
  std::vector<int32_t> col;
  std::vector<char> values;
  std::vector<float> scales;  // of int8

  Format(const Problem& p, DType dtype_)
      : n(p.n), k(p.k), block_rows(p.block_rows), block_cols(p.block_cols), dtype(dtype_) {
    std::vector<uint32_t> bits;
    for (int64_t row = 0; row < n && dtype == DType::kI8; ++row) scales.push_back(static_cast<float>(scale_of(row)));
    for (int64_t row = 0; row < n; row += block_rows) {
      for (int64_t column = 0; column < k; column += block_cols) {
        if (!p.stored[static_cast<size_t>(row * k + column)]) continue;
        col.push_back(static_cast<int32_t>(column / block_cols));
        for (int64_t r = row; r < row + block_rows; ++r) {
          for (int64_t c = column; c < column + block_cols; ++c) {
            bits.push_back(encode(p.weight[static_cast<size_t>(r * k + c)], dtype));
          }
        }
      }
      crow.push_back(static_cast<int64_t>(col.size()));
    }
    values.resize(bits.size() * static_cast<size_t>(sparseinfer::dtype_bytes(dtype)));
    for (size_t i = 0; i < bits.size(); ++i) put_bits(values.data(), static_cast<int64_t>(i), dtype, bits[i]);
  }

  int64_t nnz() const { return static_cast<int64_t>(values.size()) / sparseinfer::dtype_bytes(dtype); }
  sparseinfer::SparseView view() const {
    return {n, k, nnz(), block_rows, block_cols, crow.data(), col.data(), values.data(), dtype, scales.data()};
  }
};

}  // namespace native_tests
