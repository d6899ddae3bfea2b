// Weights, activations and their products in fp64. All values are exact in all three float types, so one problem serves
// every kernel.
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
  kReals,     // 8 bits of mantissa each, and sums that have to be rounded
};

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
          store(row + i / block_cols, column + i % block_cols, draw(random, 4, 0.004));
        }
      }
    }
    for (double& v : x) v = draw(random, 3, 0.02);
    // 5001 is a tie between two numbers of fp16, 258 of bf16; 1e5 is past the range of fp16.
    for (double& v : bias)
      v = values == Values::kReals ? draw(random, 0, 0) : static_cast<double>(random.between(-5001, 5001));
    if (n > 2) bias[static_cast<size_t>(n / 2)] = 1e5;
    if (n > 2 && values == Values::kHostile)
      bias[static_cast<size_t>(n / 3)] = std::numeric_limits<double>::quiet_NaN();
    finish();
  }

  void store(int64_t row, int64_t column, double value) {
    weight[static_cast<size_t>(row * k + column)] = value;
    stored[static_cast<size_t>(row * k + column)] = true;
  }

  void finish() {
    sums.assign(static_cast<size_t>(m * n), 0.0);
    bounds.assign(static_cast<size_t>(m * n), 0.0);
    std::vector<int64_t> columns;
    for (int64_t row = 0; row < n; ++row) {
      columns.clear();
      for (int64_t c = 0; c < k; ++c) {
        if (stored[static_cast<size_t>(row * k + c)]) columns.push_back(c);
      }
      for (int64_t t = 0; t < m; ++t) {
        double sum = 0.0, magnitude = 0.0;
        for (int64_t c : columns) {
          const double product = x[static_cast<size_t>(t * k + c)] * weight[static_cast<size_t>(row * k + c)];
          sum += product;
          magnitude += std::fabs(product);
        }
        sums[static_cast<size_t>(t * n + row)] = sum;
        if (values == Values::kReals) {
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
    if (values == Values::kHostile && random.chance(hostile)) {
      const double inf = std::numeric_limits<double>::infinity();
      return random.chance(0.5) ? std::numeric_limits<double>::quiet_NaN() : random.chance(0.5) ? inf : -inf;
    }
    if (values != Values::kReals) return static_cast<double>(random.between(-largest, largest));
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

  Format(const Problem& p, DType dtype_)
      : n(p.n), k(p.k), block_rows(p.block_rows), block_cols(p.block_cols), dtype(dtype_) {
    std::vector<uint32_t> bits;
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
    return {n, k, nnz(), block_rows, block_cols, crow.data(), col.data(), values.data(), dtype};
  }
};

}  // namespace native_tests
