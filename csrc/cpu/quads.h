// How vectors of int32 sums take weights of int8: four of one row, for four columns, in every 32 bits.
#pragma once

#include <stdint.h>

namespace sparseinfer {
namespace {

// A base of `Vector`, which has `set1_quad`: four weights as its `dot` wants them.
template <class Vector>
struct Quads {
  // Weights of four multiplies.
  using Quad = const int8_t*;
  static Quad load_quad(const float* p) { return reinterpret_cast<Quad>(p); }
  template <int I>
  static auto lane(Quad q) {
    return Vector::set1_quad(q + 4 * I);
  }
};

}  // namespace
}  // namespace sparseinfer
