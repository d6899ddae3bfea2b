// From a number to a type, for the dtypes of x and y.
#pragma once

#include "sparseinfer/halves.h"
#include "cpu/unroll.h"
#include "sparseinfer/dtypes.h"

namespace sparseinfer {
namespace {

// Calls f with a value of the C++ type of the dtype.
template <class F>
SI_INLINE void with_type(DType dtype, F f) {
  switch (dtype) {
    case DType::kF32:
      return f(float{});
    case DType::kBF16:
      return f(BF16{});
    case DType::kF16:
      return f(F16{});
  }
}

}  // namespace
}  // namespace sparseinfer
