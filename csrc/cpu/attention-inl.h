// Attention (attention.h) of one head: K is transposed, so that lanes are keys, and V copied, because its rows, far
// apart, would share few sets of L1. Then kRows queries at a time meet block after block of keys. Of a block,
// kRows x kVecs registers hold scores, later sums over keys. Nothing is read past the end of a row of K, V or the mask.
#pragma once

#include "cpu/activation-inl.h"
#include "cpu/types-inl.h"
#include "sparseinfer/attention.h"

namespace sparseinfer {
namespace {
namespace attention {

constexpr int kRows = Level::kRegisters == 32 ? 6 : 4, kVecs = Level::kRegisters == 32 ? 4 : 3;
constexpr int kKeys = 128;  // of a block: with 64 dimensions, K and V of it take 64 KB

SI_INLINE int64_t whole_vectors(int64_t count) { return (count + R - 1) / R * R; }
SI_INLINE int64_t blocks_of(int64_t keys) { return (keys + kKeys - 1) / kKeys; }

// In floats; every part but the first two is a few rows.
struct Scratch {
  float* columns;         // [blocks][dim][kKeys]: K transposed, 0 behind its end
  float* values;          // [keys][width]: V
  float *queries, *sums;  // [kRows][width], width = dim in whole vectors: scaled queries; sums over keys
  float* scores;          // [kRows][kKeys]
  int64_t width;

  Scratch(const AttentionArgs& a, char* memory)
      : columns(reinterpret_cast<float*>(memory)),
        values(columns + blocks_of(a.keys) * kKeys * a.dim),
        queries(values + a.keys * whole_vectors(a.dim)),
        sums(queries + kRows * whole_vectors(a.dim)),
        scores(sums + kRows * whole_vectors(a.dim)),
        width(whole_vectors(a.dim)) {}
};

int64_t scratch_bytes(const AttentionArgs& a) {
  const int64_t rows = (a.keys + 2 * kRows) * whole_vectors(a.dim) + kRows * kKeys;
  return static_cast<int64_t>(sizeof(float)) * (blocks_of(a.keys) * kKeys * a.dim + rows);
}

// out[kRows][kWide vectors] = a[kRows][depth] . b[depth][kWide vectors] + factors[row] * out; factors are nullable.
template <int kWide>
SI_INLINE void multiply_tile(const float* a, int64_t a_row, int64_t depth, const float* b, int64_t b_row,
                             const float* factors, float* out, int64_t out_row) {
  Row::V sums[kRows][kWide];
  SI_UNROLL
  for (int i = 0; i < kRows; ++i) {
    SI_UNROLL
    for (int j = 0; j < kWide; ++j) {
      sums[i][j] =
          factors == nullptr ? Row::zero() : Row::mul(Row::set1(factors[i]), Row::load(out + i * out_row + j * R));
    }
  }
  for (int64_t c = 0; c < depth; ++c, b += b_row) {
    Row::V right[kWide];
    SI_UNROLL
    for (int j = 0; j < kWide; ++j) right[j] = Row::load(b + j * R);
    SI_UNROLL
    for (int i = 0; i < kRows; ++i) {
      const Row::V left = Row::set1(a[i * a_row + c]);
      SI_UNROLL
      for (int j = 0; j < kWide; ++j) sums[i][j] = Row::fma(left, right[j], sums[i][j]);
    }
  }
  SI_UNROLL
  for (int i = 0; i < kRows; ++i) {
    SI_UNROLL
    for (int j = 0; j < kWide; ++j) Row::store(out + i * out_row + j * R, sums[i][j]);
  }
}

// The same for any number of columns, in whole vectors.
void multiply(const float* a, int64_t a_row, int64_t depth, const float* b, int64_t b_row, int64_t columns,
              const float* factors, float* out, int64_t out_row) {
  int64_t c = 0;
  for (; c + (kVecs - 1) * R < columns; c += kVecs * R) {
    multiply_tile<kVecs>(a, a_row, depth, b + c, b_row, factors, out + c, out_row);
  }
  if (c + 2 * R < columns) return multiply_tile<3>(a, a_row, depth, b + c, b_row, factors, out + c, out_row);
  if (c + R < columns) return multiply_tile<2>(a, a_row, depth, b + c, b_row, factors, out + c, out_row);
  if (c < columns) multiply_tile<1>(a, a_row, depth, b + c, b_row, factors, out + c, out_row);
}

// K [keys][dim] -> columns.
void transpose_keys(const AttentionArgs& a, const float* k, const Scratch& s) {
  constexpr int kGroup = Level::Transposer::L;
  for (int64_t first = 0; first < a.keys; first += kGroup) {
    float* out = s.columns + first / kKeys * kKeys * a.dim + first % kKeys;
    const int64_t count = a.keys - first < kGroup ? a.keys - first : kGroup;
    const float* rows[kGroup];
    for (int i = 0; i < kGroup; ++i) rows[i] = k + (first + (i < count ? i : 0)) * a.k_strides.token;
    int64_t c = 0;
    for (; c + kGroup <= a.dim; c += kGroup) {
      Level::Transposer::template to_columns<kGroup>(rows, c, out + c * kKeys, kKeys);
    }
    for (; c < a.dim; ++c) {
      for (int i = 0; i < kGroup; ++i) out[c * kKeys + i] = rows[i][c];
    }
  }
  // Of the last vector of keys, what is behind the end must not hold what was there before: it may be slow, like
  // subnormals.
  const int64_t end = (a.keys + kGroup - 1) / kGroup * kGroup, tail = end % kKeys;
  float* block = s.columns + (end - tail) * a.dim;
  for (int64_t c = 0; tail > 0 && c < a.dim; ++c) {
    for (int64_t i = tail; i < whole_vectors(tail); ++i) block[c * kKeys + i] = 0.0f;
  }
}

// V [keys][dim] -> values.
void copy_values(const AttentionArgs& a, const float* v, const Scratch& s) {
  for (int64_t key = 0; key < a.keys; ++key) {
    const float* from = v + key * a.v_strides.token;
    float* to = s.values + key * s.width;
    for (int64_t c = 0; c < s.width; c += R) {
      const bool whole = a.dim - c >= R;
      Row::store(to + c, whole ? Row::load(from + c) : Row::load_partial(from + c, static_cast<int>(a.dim - c)));
    }
  }
}

// The next head's part of some rows will be in cache when it is needed; whether there is one does not matter.
SI_INLINE void prefetch_next(const float* rows, const HeadStrides& strides, int64_t first, int64_t last, int64_t dim) {
  for (int64_t row = first; row < last; ++row) {
    const auto at = reinterpret_cast<uintptr_t>(rows) + sizeof(float) * (row * strides.token + strides.head);
    for (int64_t c = 0; c < dim; c += 16) __builtin_prefetch(reinterpret_cast<const void*>(at + sizeof(float) * c));
  }
}

// scores[count] += mask[count], and -inf behind its end.
SI_INLINE void add_mask(MaskKind kind, const void* mask, int64_t count, float* scores) {
  const Row::V out = Row::set1(-__builtin_inff()), half = Row::set1(0.5f);
  for (int64_t i = count; i < whole_vectors(count); ++i) scores[i] = -__builtin_inff();
  for (int64_t i = 0; i < count && kind != MaskKind::kNone; i += R) {
    const int here = count - i < R ? static_cast<int>(count - i) : R;
    Row::V score = Row::load(scores + i);
    if (kind == MaskKind::kAdded) {
      const float* added = static_cast<const float*>(mask) + i;
      score = Row::add(score, here == R ? Row::load(added) : Row::load_partial(added, here));
    } else {
      const int8_t* kept = static_cast<const int8_t*>(mask) + i;
      int8_t copy[R] = {};
      if (here < R) {
        for (int j = 0; j < here; ++j) copy[j] = kept[j];
        kept = copy;
      }
      score = Row::select_negative(Row::sub(Row::load(kept), half), out, score);
    }
    Row::store(scores + i, score);
  }
}

// e^x for x up to 0, or NaN; 0 below -87, also of -inf, so that no result is subnormal.
SI_INLINE Row::V exp_up_to_0(Row::V x) {
  return Row::select_negative(Row::add(x, Row::set1(87.0f)), Row::zero(), exp_v<Row>(x));
}

// Of one query: the largest score so far, and the sum of e^(score - largest).
struct Softmax {
  float largest, sum;

  // scores[count] -> e^(score - largest). Returns what earlier sums have to be multiplied by.
  SI_INLINE float update(float* scores, int64_t count) {
    Row::V top = Row::set1(largest);
    for (int64_t i = 0; i < count; i += R) top = Row::max(top, Row::load(scores + i));
    const float before = largest;
    largest = Row::largest(top);
    // With nothing but -inf so far, e^-inf is 0.
    const float base = largest == -__builtin_inff() ? 0.0f : largest;
    const Row::V bases = Row::set1(base);
    Row::V sums = Row::zero();
    for (int64_t i = 0; i < count; i += R) {
      const Row::V e = exp_up_to_0(Row::sub(Row::load(scores + i), bases));
      Row::store(scores + i, e);
      sums = Row::add(sums, e);
    }
    float factor[R];
    Row::store(factor, exp_up_to_0(Row::set1(before - base)));
    sum = sum * factor[0] + Row::sum(sums);
    return factor[0];
  }
};

// The mask of one query's keys from `key` on; nullptr if there is none.
SI_INLINE const void* mask_at(const AttentionArgs& a, int64_t batch, int64_t head, int64_t query, int64_t key) {
  const HeadStrides& strides = a.mask_strides;
  const int64_t at = batch * strides.batch + head * strides.head + query * strides.token + key;
  const auto bytes = static_cast<int64_t>(a.kind == MaskKind::kAdded ? sizeof(float) : sizeof(int8_t));
  return a.kind == MaskKind::kNone ? nullptr : static_cast<const char*>(a.mask) + at * bytes;
}

// Queries [query, query + count) of one head, count <= kRows; q and y are those of the head.
void attend(const AttentionArgs& a, int64_t batch, int64_t head, const float* q, float* y, int64_t query, int64_t count,
            const Scratch& s) {
  for (int i = 0; i < kRows; ++i) {
    const float* from = q + (query + (i < count ? i : 0)) * a.q_strides.token;
    for (int64_t c = 0; c < a.dim; ++c) s.queries[i * s.width + c] = a.scale * from[c];
  }
  Softmax softmax[kRows];
  float factors[kRows];
  for (int i = 0; i < kRows; ++i) softmax[i] = {-__builtin_inff(), 0.0f};
  for (int64_t key = 0; key < a.keys; key += kKeys) {
    const int64_t keys = a.keys - key < kKeys ? a.keys - key : kKeys;
    multiply(s.queries, s.width, a.dim, s.columns + key * a.dim, kKeys, keys, nullptr, s.scores, kKeys);
    for (int64_t i = 0; i < kRows; ++i) {
      add_mask(a.kind, mask_at(a, batch, head, query + (i < count ? i : 0), key), keys, s.scores + i * kKeys);
      factors[i] = softmax[i].update(s.scores + i * kKeys, keys);
    }
    multiply(s.scores, kKeys, keys, s.values + key * s.width, s.width, a.dim, key == 0 ? nullptr : factors, s.sums,
             s.width);
  }
  for (int64_t i = 0; i < count; ++i) {
    const Row::V scale = Row::set1(softmax[i].sum == 0.0f ? 1.0f : 1.0f / softmax[i].sum);
    float* row = y + (query + i) * a.y_strides.token;
    for (int64_t c = 0; c < a.dim; c += R) {
      const Row::V result = Row::mul(scale, Row::load(s.sums + i * s.width + c));
      if (a.dim - c >= R) {
        Row::store(row + c, result);
      } else {
        Row::store_partial(row + c, result, static_cast<int>(a.dim - c));
      }
    }
  }
}

void run(const AttentionArgs& a, int64_t batch, int64_t head, int64_t begin, int64_t end, char* memory) {
  const auto at = [&](const HeadStrides& strides) { return batch * strides.batch + head * strides.head; };
  const Scratch s(a, memory);
  const float *q = a.q + at(a.q_strides), *k = a.k + at(a.k_strides), *v = a.v + at(a.v_strides);
  transpose_keys(a, k, s);
  copy_values(a, v, s);
  for (int64_t query = begin; query < end; query += kRows) {
    const int64_t count = end - query < kRows ? end - query : kRows;
    prefetch_next(q, a.q_strides, query, query + count, a.dim);
    // As many keys for each query as there are, while they last.
    const int64_t first = (query - begin) * a.keys / (end - begin),
                  last = (query - begin + count) * a.keys / (end - begin);
    prefetch_next(k, a.k_strides, first, last, a.dim);
    prefetch_next(v, a.v_strides, first, last, a.dim);
    attend(a, batch, head, q, a.y + at(a.y_strides), query, count, s);
  }
}

}  // namespace attention
}  // namespace
}  // namespace sparseinfer
