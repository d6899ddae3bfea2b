// The shape of a tile of tokens: number and length of its vectors, and the layout of x in it.
#pragma once

#include <stdint.h>

namespace sparseinfer {
namespace {

enum class TileMode {
  kFloat,   // [columns][tokens] fp32
  kPairs,   // [columns][tokens] bf16; two columns are interleaved in registers
  kDwords,  // [columns / 2][tokens][2] bf16, for weights that come in pairs of neighbouring columns
  kBytes,   // [columns][tokens] bytes; four columns are interleaved in registers
  kQuads,   // [columns / 4][tokens][4] bytes, for weights that come in fours of neighbouring columns
};

constexpr bool is_int8(TileMode mode) { return mode == TileMode::kBytes || mode == TileMode::kQuads; }

template <TileMode>
struct TileElement {
  using type = float;
};
template <>
struct TileElement<TileMode::kPairs> {
  using type = uint16_t;
};

template <>
struct TileElement<TileMode::kBytes> {
  using type = uint8_t;
};

template <class Vec_, int kT, TileMode kMode_>
struct Shape {
  using Vec = Vec_;
  using Element = typename TileElement<kMode_>::type;
  static constexpr TileMode kMode = kMode_;
  static constexpr int kLoads = kT;  // vectors of x per column
  static constexpr int kSums = kT * (kMode == TileMode::kBytes ? 4 : kMode == TileMode::kPairs ? 2 : 1);  // per row
  static constexpr int kTokens = kSums * Vec::L;
};

}  // namespace
}  // namespace sparseinfer
