// The frame of every many-token kernel. Tokens are cut into tiles of up to kMaxT vectors; x is repacked once per call
// into tiles [units][T vectors of tokens], so that one load serves T x kLanes tokens of one unit. A Body multiplies one
// cell (rows of a split x units of a panel) into accumulators [row][T vectors] that stay in L2 between panels.
//
// Loop order: tile > chunk of rows > panel (x slice in L1) > split > Body. The epilogue transposes 16 x 16 in registers
// on the way to y[m, n].
#pragma once

#include <string.h>

#include "cpu/activation-inl.h"
#include "cpu/unroll.h"
#include "sparseinfer/kernel.h"

namespace sparseinfer {
namespace {

constexpr int L = Simd::kLanes;

// Accumulator rows per chunk: 512 x 64 tokens x 4 bytes = 128 KB, an eighth of L2 on current server cores.
constexpr int64_t kChunkRows = kMaxSplitRows;

template <int N>
struct Int {
  static constexpr int value = N;
};

// Calls f(Int<T>) for the smallest supported T >= vectors.
template <int kMaxT, class F>
SI_INLINE void with_tile(int vectors, F f) {
  if (vectors <= 1 || kMaxT == 1) return f(Int<1>{});
  if (vectors <= 2 || kMaxT == 2) return f(Int < kMaxT<2 ? kMaxT : 2>{});
  if (vectors == 3) return f(Int < kMaxT<3 ? kMaxT : 3>{});
  if (vectors == 4 || kMaxT == 4) return f(Int < kMaxT<4 ? kMaxT : 4>{});
  return f(Int<kMaxT>{});
}

template <class Body>
struct Tiled {
  static constexpr int kMaxT = Body::kMaxT;
  static constexpr int64_t kTileTokens = L * kMaxT;

  static int64_t tiles(const SpmmArgs& a) { return (a.m + kTileTokens - 1) / kTileTokens; }
  static int64_t tile_floats(const SpmmArgs& a) { return a.w->panels * a.w->panel * kTileTokens; }
  static int vectors(const SpmmArgs& a, int64_t tile) {
    const int64_t left = a.m - tile * kTileTokens;
    return left >= kTileTokens ? kMaxT : static_cast<int>((left + L - 1) / L);
  }

  static int64_t workspace_bytes(const SpmmArgs& a) { return tiles(a) * tile_floats(a) * 4; }
  static int64_t scratch_bytes(const SpmmArgs&) { return (kChunkRows + (L < 4 ? 4 : L)) * kTileTokens * 4; }
  static int64_t prepare_items(const SpmmArgs& a) { return tiles(a) * a.w->panels; }

  static void prepare(const SpmmArgs& a, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t tile = i / a.w->panels, panel = i % a.w->panels;
      with_tile<kMaxT>(vectors(a, tile), [&](auto t) { pack_x<decltype(t)::value>(a, tile, panel); });
    }
  }

  // x[tokens, columns of the panel] -> tile[columns][T][L]. Tokens past m repeat the last one; nothing reads their
  // results.
  template <int T>
  static void pack_x(const SpmmArgs& a, int64_t tile, int64_t panel) {
    const float* x = static_cast<const float*>(a.x);
    const int64_t first = panel * a.w->panel;
    const int64_t columns = a.w->k - first < a.w->panel ? a.w->k - first : a.w->panel;
    float* out = reinterpret_cast<float*>(a.workspace) + tile * tile_floats(a) + first * (T * L);
    for (int t = 0; t < T; ++t, out += L) {
      const float* rows[L];
      for (int i = 0; i < L; ++i) {
        const int64_t token = tile * kTileTokens + t * L + i;
        rows[i] = x + (token < a.m ? token : a.m - 1) * a.ldx + first;
      }
      int64_t c = 0;
      for (; c + L <= columns; c += L) {
        V v[L];
        Simd::load_transposed(rows, v);
        SI_UNROLL
        for (int i = 0; i < L; ++i) Simd::store(out + (c + i) * (T * L), v[i]);
        for (int i = 0; i < L; ++i) rows[i] += L;
      }
      for (int64_t tail = 0; c < columns; ++c, ++tail) {
        for (int i = 0; i < L; ++i) out[c * (T * L) + i] = rows[i][tail];
      }
    }
  }

  static void run(const SpmmArgs& a, int64_t begin, int64_t end, char* scratch) {
    for (int64_t tile = 0; tile < tiles(a); ++tile) {
      with_tile<kMaxT>(vectors(a, tile), [&](auto t) {
        run_tile<decltype(t)::value>(a, tile, begin, end, reinterpret_cast<float*>(scratch));
      });
    }
  }

  template <int T>
  static void run_tile(const SpmmArgs& a, int64_t tile, int64_t begin, int64_t end, float* acc) {
    const int64_t* split_rows = section<int64_t>(a.w, a.w->split_rows);
    const float* x = reinterpret_cast<const float*>(a.workspace) + tile * tile_floats(a);
    for (int64_t s = begin; s < end;) {
      int64_t chunk_end = s + 1;
      while (chunk_end < end && split_rows[chunk_end + 1] - split_rows[s] <= kChunkRows) ++chunk_end;
      const int64_t row = split_rows[s], rows = split_rows[chunk_end] - row;
      memset(acc, 0, rows * (T * L) * sizeof(float));
      for (int64_t panel = 0; panel < a.w->panels; ++panel) {
        const float* xp = x + panel * a.w->panel * (T * L);
        for (int64_t i = s; i < chunk_end; ++i)
          Body::template cell<T>(a.w, i, panel, xp, acc + (split_rows[i] - row) * (T * L));
      }
      epilogue<T>(a, acc, row, rows < a.w->n - row ? rows : a.w->n - row, tile * kTileTokens);
      s = chunk_end;
    }
  }

  // acc[rows][T * L tokens] -> y[tokens, rows] + bias, activated.
  template <int T>
  static void epilogue(const SpmmArgs& a, const float* acc, int64_t row, int64_t rows, int64_t token) {
    const int64_t ldy = a.ldy, m = a.m;  // locals: stores to y could alias the arguments
    const float* bias = a.bias ? a.bias + row : nullptr;
    const Activation activation = a.activation;
    // Token blocks outside, rows inside: L rows of y are written along at a time, not T * L.
    for (int t = 0; t < T; ++t, token += L) {
      const int tokens = m - token < L ? static_cast<int>(m - token) : L;
      float* y = static_cast<float*>(a.y) + token * ldy + row;
      for (int64_t r = 0; r < rows; r += L) {
        const int count = rows - r < L ? static_cast<int>(rows - r) : L;
        const V b = bias ? Simd::load_partial(bias + r, count) : Simd::zero();
        const float* sources[L];
        for (int i = 0; i < L; ++i) sources[i] = acc + (r + i) * (T * L) + t * L;  // scratch has L rows to spare
        V v[L];
        Simd::load_transposed(sources, v);
        SI_UNROLL
        for (int i = 0; i < L; ++i) v[i] = Simd::add(v[i], b);
        if (activation != Activation::kNone) {
          for (int i = 0; i < L; ++i) v[i] = activate(v[i], activation);
        }
        if (tokens == L && count == L) {
          SI_UNROLL
          for (int i = 0; i < L; ++i) Simd::store(y + i * ldy + r, v[i]);
        } else {
          for (int i = 0; i < tokens; ++i) Simd::store_partial(y + i * ldy + r, v[i], count);
        }
      }
    }
  }
};

}  // namespace
}  // namespace sparseinfer
