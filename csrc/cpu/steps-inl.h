// One multiply-accumulate step on an x tile: which x it loads, how a weight is broadcast, what it multiplies.
// kFloat uses one position per step, and widens payloads of two bytes; kPairs interleaves two positions of bf16 and
// multiplies both at once; for kDwords two neighbouring columns of bf16 are already interleaved in the tile. kBytes and
// kQuads are the same for four columns of bytes.
#pragma once

#include "cpu/tiles-inl.h"

namespace sparseinfer {
namespace {

constexpr int kPrefetchBytes = 2048;

// The tokens at a position of the tile. The product is unsigned: a signed one would be extended again for each address.
template <class S, class Element>
SI_INLINE const Element* tokens_of(const Element* x, size_t position) {
  return x + position * S::kTokens;
}

// Columns of x that lie where they are, `plane` elements apart: channels of an image.
struct Planes {
  const float* x;
  size_t plane;
};
template <class S>
SI_INLINE const float* tokens_of(Planes x, size_t position) {
  return x.x + position * x.plane;
}
// The same for lists that are filled up: the position behind the last column of the panel is one of zeros.
struct FilledPlanes {
  Planes columns;
  size_t count;
  const float* zeros;  // [tokens of a tile]
};
template <class S>
SI_INLINE const float* tokens_of(const FilledPlanes& x, size_t position) {
  return position < x.count ? tokens_of<S>(x.columns, position) : x.zeros;
}

// The positions of N units, with one load for every four of them: loads are what binds most steps.
template <int N>
struct Positions {
  uint64_t words[(N + 3) / 4] = {};
  explicit Positions(const uint16_t* offsets) { memcpy(words, offsets, N * sizeof *offsets); }
  template <int I>
  size_t at() const {
    static_assert(I < N);
    constexpr bool kLittle = __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__;
    return static_cast<uint16_t>(words[I / 4] >> 16 * (kLittle ? I % 4 : 3 - I % 4));
  }
};

// How weights are stored that need no widening.
template <TileMode kMode>
struct PlainPayload {
  using type = int8_t;
};
template <>
struct PlainPayload<TileMode::kFloat> {
  using type = float;
};
template <>
struct PlainPayload<TileMode::kPairs> {
  using type = uint16_t;
};
template <>
struct PlainPayload<TileMode::kDwords> {
  using type = uint16_t;
};

template <class S, class Payload = typename PlainPayload<S::kMode>::type, TileMode = S::kMode>
struct Step;

template <class S, class T>
struct Step<S, T, TileMode::kFloat> {
  using Vec = typename S::Vec;
  using V = typename Vec::V;
  using X = V;
  using Payload = T;
  using Quad = decltype(Vec::load_quad(static_cast<const Payload*>(nullptr)));
  static constexpr int kPositions = 1;

  // x of one multiply, the positions of which are those from kFirst on.
  template <int kFirst = 0, class Columns, int N>
  static SI_INLINE void load(const Columns& x, const Positions<N>& positions, V (&out)[S::kSums]) {
    const float* from = tokens_of<S>(x, positions.template at<kFirst>());
    SI_UNROLL
    for (int t = 0; t < S::kSums; ++t) out[t] = Vec::load(from + t * Vec::L);
  }
  static SI_INLINE Quad quad(const Payload* values) { return Vec::load_quad(values); }
  template <int I>
  static SI_INLINE V lane(Quad q) {
    return Vec::template lane<I>(q);
  }
  // Of two bytes three more weights are read behind it, and widened together.
  static SI_INLINE V weight(const Payload* values) {
    if constexpr (sizeof(Payload) == 4) {
      return Vec::set1(*values);
    } else {
      return lane<0>(quad(values));
    }
  }
  static SI_INLINE V multiply(V w, V x, V sum) { return Vec::fma(w, x, sum); }
};

template <class S>
struct Step<S, uint16_t, TileMode::kPairs> {
  using Vec = typename S::Vec;
  using V = typename Vec::V;
  using X = typename Vec::P;
  using Payload = uint16_t;
  using Quad = typename Vec::Quad;
  static constexpr int kPositions = 2;

  template <int kFirst = 0, int N>
  static SI_INLINE void load(const uint16_t* x, const Positions<N>& positions, X (&out)[S::kSums]) {
    const uint16_t* first = tokens_of<S>(x, positions.template at<kFirst>());
    const uint16_t* second = tokens_of<S>(x, positions.template at<kFirst + 1>());
    SI_UNROLL
    for (int t = 0; t < S::kLoads; ++t) {
      X both[2];
      Vec::interleave(Vec::load_pairs(first + 2 * t * Vec::L), Vec::load_pairs(second + 2 * t * Vec::L), both);
      out[2 * t] = both[0];
      out[2 * t + 1] = both[1];
    }
  }
  static SI_INLINE Quad quad(const uint16_t* values) { return Vec::load_quad(reinterpret_cast<const float*>(values)); }
  static SI_INLINE X weight(const uint16_t* values) { return Vec::set1_pair(values); }
  template <int I>
  static SI_INLINE X lane(Quad q) {
    return Vec::template lane_pair<I>(q);
  }
  static SI_INLINE V multiply(X w, X x, V sum) { return Vec::dot(sum, x, w); }
};

template <class S>
struct Step<S, uint16_t, TileMode::kDwords> {
  using Vec = typename S::Vec;
  using V = typename Vec::V;
  using X = typename Vec::P;
  using Payload = uint16_t;

  static SI_INLINE void load(const float* x, X (&out)[S::kSums]) {
    SI_UNROLL
    for (int t = 0; t < S::kSums; ++t) out[t] = Vec::load_pairs(reinterpret_cast<const uint16_t*>(x + t * Vec::L));
  }
  static SI_INLINE X weight(const uint16_t* values) { return Vec::set1_pair(values); }
  static SI_INLINE V multiply(X w, X x, V sum) { return Vec::dot(sum, x, w); }
};

template <class S>
struct Step<S, int8_t, TileMode::kBytes> {
  using Vec = typename S::Vec;
  using V = typename Vec::V;
  using X = typename Vec::P;
  using Payload = int8_t;
  using Quad = typename Vec::Quad;
  static constexpr int kPositions = 4;
  static_assert(S::kLoads == 1, "the order of the tokens is that of one vector (token_at)");

  template <int kFirst = 0, int N>
  static SI_INLINE void load(const uint8_t* x, const Positions<N>& positions, X (&out)[4]) {
    Vec::interleave(Vec::load_bytes(tokens_of<S>(x, positions.template at<kFirst>())),
                    Vec::load_bytes(tokens_of<S>(x, positions.template at<kFirst + 1>())),
                    Vec::load_bytes(tokens_of<S>(x, positions.template at<kFirst + 2>())),
                    Vec::load_bytes(tokens_of<S>(x, positions.template at<kFirst + 3>())), out);
  }
  static SI_INLINE Quad quad(const int8_t* values) { return Vec::load_quad(reinterpret_cast<const float*>(values)); }
  static SI_INLINE typename Vec::W weight(const int8_t* values) { return Vec::set1_quad(values); }
  template <int I>
  static SI_INLINE typename Vec::W lane(Quad q) {
    return Vec::template lane<I>(q);
  }
  static SI_INLINE V multiply(typename Vec::W w, X x, V sum) { return Vec::dot(sum, x, w); }
};

template <class S>
struct Step<S, int8_t, TileMode::kQuads> {
  using Vec = typename S::Vec;
  using V = typename Vec::V;
  using X = typename Vec::P;
  using Payload = int8_t;

  static SI_INLINE void load(const float* x, X (&out)[S::kSums]) {
    SI_UNROLL
    for (int t = 0; t < S::kSums; ++t) out[t] = Vec::load_bytes(x + t * Vec::L);
  }
  static SI_INLINE typename Vec::W weight(const int8_t* values) { return Vec::set1_quad(values); }
  static SI_INLINE V multiply(typename Vec::W w, X x, V sum) { return Vec::dot(sum, x, w); }
};

}  // namespace
}  // namespace sparseinfer
