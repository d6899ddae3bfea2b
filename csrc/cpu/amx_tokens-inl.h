// The common part of the kernels on tiles: x as tiles, and the way from tiles of sums to y.
//
// x is copied once per call into tiles of bf16, [token tile][input tile][rows][32], where strided loads from x itself
// would meet few sets of the cache. A token tile has 16 rows, zeros past the last token; fewer than 16 tokens are one
// tile of so many rows. Columns past k are zeros. Behind the tiles: uint32 [token tile][chunk of input tiles], bit r
// set where token r has an infinity or NaN there, which a kernel must not multiply by zeros that it does not store.
#pragma once

#include "cpu/amx.h"
#include "cpu/rows-inl.h"

namespace sparseinfer {
namespace {

constexpr int64_t kChunkInputs = 16;  // input tiles that one item of `prepare` copies; chosen, not measured

// Calls f(Int<0>), ..., f(Int<N - 1>): numbers of tile registers are part of the instruction.
template <int N, class F>
SI_INLINE void for_each(F f) {
  if constexpr (N > 0) {
    for_each<N - 1>(f);
    f(Int<N - 1>{});
  }
}

struct TileTokens {
  int64_t tiles, rows, inputs, chunks;
  char* data;

  explicit TileTokens(const SpmmArgs& a)
      : tiles((a.m + kTileRows - 1) / kTileRows),
        rows(a.m < kTileRows ? a.m : kTileRows),
        inputs((a.w->k + kTileInputs - 1) / kTileInputs),
        chunks((inputs + kChunkInputs - 1) / kChunkInputs),
        data(a.workspace) {}

  int64_t input_bytes() const { return rows * kTileRowBytes; }
  int64_t tile_bytes() const { return inputs * input_bytes(); }
  int64_t bytes() const { return tiles * (tile_bytes() + chunks * 4); }
  const char* tile(int64_t t) const { return data + t * tile_bytes(); }
  uint32_t* hostile(int64_t t) const { return reinterpret_cast<uint32_t*>(data + tiles * tile_bytes()) + t * chunks; }

  // Bit r: token r of the tile has an infinity or NaN.
  uint32_t hostile_tokens(int64_t t) const {
    uint32_t any = 0;
    for (int64_t c = 0; c < chunks; ++c) any |= hostile(t)[c];
    return any;
  }
};

// x[count <= 32] as bf16, and zeros.
SI_INLINE __m512i bf16_of(const uint16_t* x, int64_t count) {
  return _mm512_maskz_loadu_epi16(static_cast<__mmask32>(~uint64_t{0} >> (64 - count)), x);
}
SI_INLINE __m512i bf16_of(const float* x, int64_t count) {
  const uint32_t here = static_cast<uint32_t>(~uint64_t{0} >> (64 - count));
  const __m512 low = _mm512_maskz_loadu_ps(static_cast<__mmask16>(here), x);
  const __m512 high = _mm512_maskz_loadu_ps(static_cast<__mmask16>(here >> 16), x + 16);
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
}

// Input tiles [first, last) of one token; returns whether it has an infinity or NaN there.
template <class T>
bool copy_token(const T* x, int64_t k, int64_t first, int64_t last, char* out, int64_t step) {
  const __m512i exponent = _mm512_set1_epi16(0x7f80);
  __mmask32 hostile = 0;
  for (int64_t i = first; i < last; ++i, out += step) {
    const int64_t left = k - i * kTileInputs;
    const __m512i values = bf16_of(x + i * kTileInputs, left < kTileInputs ? left : kTileInputs);
    hostile |= _mm512_cmpeq_epi16_mask(_mm512_and_si512(values, exponent), exponent);
    _mm512_store_si512(out, values);
  }
  return hostile != 0;
}

static inline int64_t prepare_tile_items(const SpmmArgs& a) {
  const TileTokens x(a);
  return x.tiles * x.chunks;
}

static inline void prepare_tiles(const SpmmArgs& a, int64_t begin, int64_t end) {
  const TileTokens x(a);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t tile = item / x.chunks, chunk = item % x.chunks, first = chunk * kChunkInputs;
    const int64_t last = first + kChunkInputs < x.inputs ? first + kChunkInputs : x.inputs;
    uint32_t hostile = 0;
    for (int64_t r = 0; r < x.rows; ++r) {
      const int64_t token = tile * kTileRows + r, step = x.input_bytes();
      char* out = x.data + tile * x.tile_bytes() + first * step + r * kTileRowBytes;
      if (token >= a.m) {
        for (int64_t i = first; i < last; ++i, out += step) _mm512_store_si512(out, _mm512_setzero_si512());
        continue;
      }
      const bool found =
          a.dtype == DType::kF32
              ? copy_token(static_cast<const float*>(a.x) + token * a.ldx, a.w->k, first, last, out, step)
              : copy_token(static_cast<const uint16_t*>(a.x) + token * a.ldx, a.w->k, first, last, out, step);
      if (found) hostile |= uint32_t{1} << r;
    }
    x.hostile(tile)[chunk] = hostile;
  }
}

// sums [kStrips][16 tokens][16 outputs], `stride` floats from strip to strip -> y[tokens from `token` on, rows from
// `row` on] + bias, activated. Rows past n are left out.
template <int kStrips, class T>
void finish_strips(const SpmmArgs& a, const float* sums, int64_t stride, int64_t token, int64_t row) {
  const int64_t left = a.m - token, tokens = left < kTileRows ? left : kTileRows, ldy = a.ldy;
  const Activation activation = a.activation;
  T* y = static_cast<T*>(a.y) + token * ldy + row;
  Row::V bias[kStrips];
  int count[kStrips];
  SI_UNROLL
  for (int s = 0; s < kStrips; ++s) {
    const int64_t rows = a.w->n - row - s * R;
    count[s] = rows < R ? static_cast<int>(rows) : R;
    bias[s] = a.bias ? load_bias<Row, T>(a, row + s * R, count[s]) : Row::zero();
  }
  for (int64_t t = 0; t < tokens; ++t, y += ldy, sums += R) {
    Row::V v[kStrips];
    SI_UNROLL
    for (int s = 0; s < kStrips; ++s) v[s] = Row::add(Row::load(sums + s * stride), bias[s]);
    activate_all<Row>(v, activation);
    SI_UNROLL
    for (int s = 0; s < kStrips; ++s) Row::store_partial(y + s * R, v[s], count[s]);
  }
}
template <int kStrips>
void finish_strips(const SpmmArgs& a, const float* sums, int64_t stride, int64_t token, int64_t row) {
  if (a.dtype == DType::kF32) return finish_strips<kStrips, float>(a, sums, stride, token, row);
  finish_strips<kStrips, BF16>(a, sums, stride, token, row);
}

}  // namespace
}  // namespace sparseinfer
