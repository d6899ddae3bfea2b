// One multiply-accumulate step on an x tile: which x it loads, how a weight is broadcast, what it multiplies.
// kFloat uses one position per step; kPairs interleaves two positions of bf16 and multiplies both at once; for kDwords
// two neighbouring columns of bf16 are already interleaved in the tile. kBytes and kQuads are the same for four columns
// of bytes.
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

template <class S, TileMode = S::kMode>
struct Step;

template <class S>
struct Step<S, TileMode::kFloat> {
  using Vec = typename S::Vec;
  using V = typename Vec::V;
  using X = V;
  using Payload = float;
  static constexpr int kPositions = 1;

  static SI_INLINE void load(const float* x, const uint16_t* offsets, V (&out)[S::kSums]) {
    const float* from = tokens_of<S>(x, offsets[0]);
    SI_UNROLL
    for (int t = 0; t < S::kSums; ++t) out[t] = Vec::load(from + t * Vec::L);
  }
  static SI_INLINE V weight(const float* values) { return Vec::set1(*values); }
  template <int I>
  static SI_INLINE V lane(typename Vec::Quad q) {
    return Vec::template lane<I>(q);
  }
  static SI_INLINE V multiply(V w, V x, V sum) { return Vec::fma(w, x, sum); }
};

template <class S>
struct Step<S, TileMode::kPairs> {
  using Vec = typename S::Vec;
  using V = typename Vec::V;
  using X = typename Vec::P;
  using Payload = uint16_t;
  static constexpr int kPositions = 2;

  static SI_INLINE void load(const uint16_t* x, const uint16_t* offsets, X (&out)[S::kSums]) {
    const uint16_t* first = tokens_of<S>(x, offsets[0]);
    const uint16_t* second = tokens_of<S>(x, offsets[1]);
    SI_UNROLL
    for (int t = 0; t < S::kLoads; ++t) {
      X both[2];
      Vec::interleave(Vec::load_pairs(first + 2 * t * Vec::L), Vec::load_pairs(second + 2 * t * Vec::L), both);
      out[2 * t] = both[0];
      out[2 * t + 1] = both[1];
    }
  }
  static SI_INLINE X weight(const uint16_t* values) { return Vec::set1_pair(values); }
  template <int I>
  static SI_INLINE X lane(typename Vec::Quad q) {
    return Vec::template lane_pair<I>(q);
  }
  static SI_INLINE V multiply(X w, X x, V sum) { return Vec::dot(sum, x, w); }
};

template <class S>
struct Step<S, TileMode::kDwords> {
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
struct Step<S, TileMode::kBytes> {
  using Vec = typename S::Vec;
  using V = typename Vec::V;
  using X = typename Vec::P;
  using Payload = int8_t;
  static constexpr int kPositions = 4;
  static_assert(S::kLoads == 1, "the order of the tokens is that of one vector (token_at)");

  static SI_INLINE void load(const uint8_t* x, const uint16_t* offsets, X (&out)[4]) {
    Vec::interleave(Vec::load_bytes(tokens_of<S>(x, offsets[0])), Vec::load_bytes(tokens_of<S>(x, offsets[1])),
                    Vec::load_bytes(tokens_of<S>(x, offsets[2])), Vec::load_bytes(tokens_of<S>(x, offsets[3])), out);
  }
  static SI_INLINE typename Vec::W weight(const int8_t* values) { return Vec::set1_quad(values); }
  template <int I>
  static SI_INLINE typename Vec::W lane(typename Vec::Quad q) {
    return Vec::template lane<I>(q);
  }
  static SI_INLINE V multiply(typename Vec::W w, X x, V sum) { return Vec::dot(sum, x, w); }
};

template <class S>
struct Step<S, TileMode::kQuads> {
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
