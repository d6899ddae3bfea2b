// The common part of all few-token kernels. x is copied once per call into rows that the kernel can read past their
// end: widened to fp32, as bf16 if the kernel multiplies bf16, or as bytes, behind which lie the tokens' scales.
// Kernels read the weights of a split once for up to kMaxTokens tokens at a time and return finished vectors of y.
#pragma once

#include <string.h>

#include <type_traits>

#include "cpu/activation-inl.h"
#include "cpu/quantize-inl.h"
#include "cpu/types-inl.h"
#include "sparseinfer/kernel.h"

namespace sparseinfer {
namespace {

template <int N>
struct Int {
  static constexpr int value = N;
};

// Whether a kernel rounds fp32 x to bf16, though it multiplies fp32: storage bf16 means the same in every kernel.
template <class Body, class = void>
struct RoundsX {
  static constexpr bool value = sizeof(typename Body::Element) == 2;
};
template <class Body>
struct RoundsX<Body, decltype(void(Body::kRoundsX))> {
  static constexpr bool value = Body::kRoundsX;
};

// Whether a kernel multiplies what is zero where x is finite (`finite_flags`).
template <class Body, class = void>
struct AsksFinite {
  static constexpr bool value = false;
};
template <class Body>
struct AsksFinite<Body, decltype(void(Body::kAsksFinite))> {
  static constexpr bool value = Body::kAsksFinite;
};

// Values of a row of the prepared x, and zeros behind a row, as many as a kernel may look ahead.
SI_INLINE int64_t row_stride(const SpmmArgs& a) { return (a.w->k + kMaxWindow + 15) / 16 * 16; }

// Of bodies that ask: one byte for each token, behind the prepared x of elements of this size.
SI_INLINE uint8_t* finite_flags(const SpmmArgs& a, size_t element) {
  return reinterpret_cast<uint8_t*>(a.workspace) + a.m * row_stride(a) * static_cast<int64_t>(element);
}

// Body: `Element` of the prepared x (float, uint16_t or uint8_t), `kMaxTokens`, perhaps `kRoundsX`, and
// `tokens<T>(args, split, x, stride, token)`, which computes T tokens of one split.
template <class Body>
struct Rows {
  using Element = typename Body::Element;
  static constexpr bool kTakesConv = false;
  static constexpr bool kNative = !RoundsX<Body>::value || Level::kPairDot;
  static constexpr bool kBytes = sizeof(Element) == 1;
  static constexpr int64_t kTileTokens = 0;

  static int64_t stride(const SpmmArgs& a) { return row_stride(a); }
  static int64_t x_bytes(const SpmmArgs& a) { return a.m * stride(a) * static_cast<int64_t>(sizeof(Element)); }
  static int64_t workspace_bytes(const SpmmArgs& a) {
    if (AsksFinite<Body>::value) return x_bytes(a) + a.m;
    return x_bytes(a) + (kBytes ? a.m * static_cast<int64_t>(sizeof(TokenScale)) : 0);
  }
  static int64_t scratch_bytes(const SpmmArgs&) { return Body::kScratchBytes; }
  static int64_t prepare_items(const SpmmArgs& a) { return a.m; }

  static void prepare(const SpmmArgs& a, int64_t begin, int64_t end) {
    const int64_t k = a.w->k;
    for (int64_t token = begin; token < end; ++token) {
      Element* out = reinterpret_cast<Element*>(a.workspace) + token * stride(a);
      if constexpr (kBytes) {
        with_type(a.dtype, [&](auto type) {
          const auto* x = static_cast<const decltype(type)*>(a.x) + token * a.ldx;
          const TokenScale scale = find_scale(x, k);
          quantize(x, k, scale, out);
          reinterpret_cast<TokenScale*>(a.workspace + x_bytes(a))[token] = scale;
        });
      } else if constexpr (sizeof(Element) == 2) {
        if (a.dtype == DType::kF32) {
          round_row(static_cast<const float*>(a.x) + token * a.ldx, k, reinterpret_cast<BF16*>(out));
        } else if (k > 0) {
          memcpy(out, static_cast<const Element*>(a.x) + token * a.ldx, static_cast<size_t>(k) * 2);
        }
      } else {
        with_type(a.dtype, [&](auto type) {
          const auto* x = static_cast<const decltype(type)*>(a.x) + token * a.ldx;
          int64_t i = 0;
          for (; i + R <= k; i += R) Row::store(out + i, Row::load(x + i));
          for (; i < k; ++i) out[i] = widen(x[i]);
        });
        if (RoundsX<Body>::value && a.dtype == DType::kF32) round_in_place(out, k);
      }
      memset(out + k, 0, static_cast<size_t>(stride(a) - k) * sizeof(Element));
      if constexpr (AsksFinite<Body>::value) {
        const auto is_finite = [k](const auto* values) { return find_range(values, k).odd == 0.0f; };
        if constexpr (sizeof(Element) == 2) {
          finite_flags(a, sizeof(Element))[token] = is_finite(reinterpret_cast<const BF16*>(out));
        } else {
          finite_flags(a, sizeof(Element))[token] = is_finite(reinterpret_cast<const float*>(out));
        }
      }
    }
  }

  static void round_in_place(float* x, int64_t count) {
    constexpr int64_t kPiece = 64;
    BF16 rounded[kPiece];
    for (int64_t i = 0; i < count; i += kPiece) {
      const int64_t here = count - i < kPiece ? count - i : kPiece;
      round_row(x + i, here, rounded);
      for (int64_t j = 0; j < here; ++j) x[i + j] = widen(rounded[j]);
    }
  }

  static void run(const SpmmArgs& a, int64_t begin, int64_t end, char* scratch) {
    const Element* x = reinterpret_cast<const Element*>(a.workspace);
    for (int64_t split = begin; split < end; ++split) {
      for (int64_t token = 0; token < a.m;) {
        const int64_t left = a.m - token;
        const Element* from = x + token * stride(a);
        auto walk = [&](auto tokens) {
          Body::template tokens<decltype(tokens)::value>(a, split, from, stride(a), token, scratch);
          token += decltype(tokens)::value;
        };
        if (left >= Body::kMaxTokens) {
          walk(Int<Body::kMaxTokens>{});
          continue;
        }
        if constexpr (Body::kMaxTokens > 4) {
          if (left >= 4) {
            walk(Int<4>{});
            continue;
          }
        }
        if constexpr (Body::kMaxTokens > 1) {
          if (left == 3) {
            walk(Int<3>{});
          } else if (left == 2) {
            walk(Int<2>{});
          } else {
            walk(Int<1>{});
          }
        }
      }
    }
  }
};

// y[token, row : row + count] = activation(scale * sum + bias), count <= R.
SI_INLINE void finish(const SpmmArgs& a, Row::V sum, int64_t token, int64_t row, int count) {
  if (a.w->storage == Storage::kWI8) {
    sum = Row::mul(sum, Row::load_partial(section<float>(a.w, a.w->scales) + row, count));
  }
  with_type(a.dtype, [&](auto type) {
    using T = decltype(type);
    if (a.bias) sum = Row::add(sum, load_bias<Row, T>(a, row, count));
    Row::store_partial(static_cast<T*>(a.y) + token * a.ldy + row, activate<Row>(sum, a.activation), count);
  });
}

// The same for sums[rows] in memory.
static inline void finish_rows(const SpmmArgs& a, const float* sums, int64_t token, int64_t row, int64_t rows) {
  for (int64_t r = 0; r < rows; r += R) {
    const int count = rows - r < R ? static_cast<int>(rows - r) : R;
    finish(a, Row::load_partial(sums + r, count), token, row + r, count);
  }
}

}  // namespace
}  // namespace sparseinfer
