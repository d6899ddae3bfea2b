// Attention of every level against the formula in fp64, in memory that ends where the process may not go.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "fenced.h"
#include "sparseinfer/registry.h"
#include "tested.h"

namespace native_tests {

struct AttentionCase {
  int64_t queries, keys, dim, heads;
  sparseinfer::MaskKind kind;
  bool all_out;  // the first query has no keys
};

// One case at one level: heads lie side by side in rows [tokens][heads * dim], as projections leave them.
inline void check_attention(const AttentionCase& c, sparseinfer::Isa isa) {
  using namespace sparseinfer;
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  const int64_t width = c.heads * c.dim, pairs = c.queries * c.keys;
  const auto filled = [&](int64_t count) {
    std::vector<float> values(static_cast<size_t>(count));
    for (float& value : values) value = normal(random);
    return Fenced(values.data(), count * 4);
  };
  const Fenced q = filled(c.queries * width), k = filled(c.keys * width), v = filled(c.keys * width);
  const bool kept = c.kind == MaskKind::kKept;
  Fenced mask = filled(kept ? (pairs + 3) / 4 : pairs);
  Fenced bytes(pairs);
  for (int64_t i = 0; i < pairs; ++i) {
    const bool out = c.all_out && i < c.keys;
    bytes.data()[i] = !out && random() % 3 != 0;
    if (out && !kept) reinterpret_cast<float*>(mask.data())[i] = -INFINITY;
  }
  Fenced y(c.queries * width * 4);
  const auto floats = [](const Fenced& memory) { return reinterpret_cast<const float*>(memory.data()); };
  AttentionArgs a{};
  a.q = floats(q), a.k = floats(k), a.v = floats(v);
  a.y = reinterpret_cast<float*>(y.data());
  a.mask = kept ? bytes.data() : mask.data();
  a.kind = c.kind;
  a.q_strides = a.k_strides = a.v_strides = a.y_strides = {0, c.dim, width};
  a.mask_strides = {0, 0, c.keys};
  a.batch = 1, a.heads = c.heads, a.queries = c.queries, a.keys = c.keys, a.dim = c.dim;
  a.scale = 0.5f;
  const AttentionOps& ops = attention_ops(isa);
  Fenced scratch((ops.scratch_bytes(a) + 63) / 64 * 64);
  for (int64_t head = 0; head < c.heads; ++head) {
    ops.run(a, 0, head, 0, c.queries / 2, scratch.data());
    ops.run(a, 0, head, c.queries / 2, c.queries, scratch.data());
  }
  std::vector<double> weights(static_cast<size_t>(c.keys));
  for (int64_t head = 0; head < c.heads; ++head) {
    for (int64_t i = 0; i < c.queries; ++i) {
      double largest = -INFINITY, sum = 0, most = 0;
      for (int64_t j = 0; j < c.keys; ++j) {
        double score = 0, size = 0;
        for (int64_t d = 0; d < c.dim; ++d) {
          const double term = 0.5 * a.q[i * width + head * c.dim + d] * a.k[j * width + head * c.dim + d];
          score += term, size += std::fabs(term);
        }
        if (c.kind == MaskKind::kAdded) score += floats(mask)[i * c.keys + j];
        if (kept && bytes.data()[i * c.keys + j] == 0) score = -INFINITY;
        weights[static_cast<size_t>(j)] = score;
        largest = std::max(largest, score), most = std::max(most, size);
      }
      for (double& weight : weights) sum += weight = largest == -INFINITY ? 0 : std::exp(weight - largest);
      const double eps = std::pow(2.0, -23) * (2 * static_cast<double>(c.dim + 3) * (most + 8) + 2.0 * c.keys + 8);
      for (int64_t d = 0; d < c.dim; ++d) {
        double expected = 0, widest = 0;
        for (int64_t j = 0; j < c.keys; ++j) {
          const double value = a.v[j * width + head * c.dim + d];
          expected += sum == 0 ? 0 : weights[static_cast<size_t>(j)] / sum * value;
          widest = std::max(widest, std::fabs(value));
        }
        if (!(std::fabs(expected - a.y[i * width + head * c.dim + d]) <= eps * widest)) {
          return fail(std::string("attention at ") + kIsaNames[static_cast<int>(isa)] + ": " +
                      std::to_string(c.queries) + " queries, " + std::to_string(c.keys) + " keys, " +
                      std::to_string(c.dim) + " dimensions: y[" + std::to_string(i) + ", " + std::to_string(d) + "]");
        }
      }
    }
  }
}

inline void check_attention() {
  using sparseinfer::MaskKind;
  for (int level = 0; level < sparseinfer::kNumIsas; ++level) {
    const auto isa = static_cast<sparseinfer::Isa>(level);
    if (!sparseinfer::isa_supported(isa)) continue;
    for (int64_t queries : {1, 5, 6, 13}) {
      for (int64_t keys : {1, 7, 16, 33, 127, 128, 129, 300}) {
        for (int64_t dim : {1, 5, 16, 17, 64, 80, 200}) {
          for (MaskKind kind : {MaskKind::kNone, MaskKind::kAdded, MaskKind::kKept}) {
            check_attention({queries, keys, dim, 2, kind, kind != MaskKind::kNone && queries > 1}, isa);
          }
        }
      }
    }
  }
}

}  // namespace native_tests
