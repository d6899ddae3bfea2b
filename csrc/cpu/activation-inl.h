// Activations of the epilogue, in fp32. Errors are a few units in the last place of x; NaN stays NaN.
#pragma once

#include "cpu/unroll.h"
#include "sparseinfer/dtypes.h"

namespace sparseinfer {
namespace {

using V = Simd::V;

// e^x by range reduction to 2^n * e^r, |r| <= ln(2)/2, and the Taylor polynomial of degree 7 (relative error 1e-8).
// Clamped to where the result is a normal float; the clamp passes NaN on.
SI_INLINE V exp_v(V x) {
  x = Simd::min(Simd::set1(88.0f), Simd::max(Simd::set1(-87.0f), x));
  const V n = Simd::round(Simd::mul(x, Simd::set1(1.44269504f)));
  V r = Simd::fma(n, Simd::set1(-0.693359375f), x);
  r = Simd::fma(n, Simd::set1(2.12194440e-4f), r);
  V p = Simd::set1(1.0f / 5040);
  const float coefficients[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
  SI_UNROLL
  for (int i = 0; i < 7; ++i) p = Simd::fma(p, r, Simd::set1(coefficients[i]));
  return Simd::scale(p, n);
}

// x * sigmoid(a)
SI_INLINE V gate(V x, V a) {
  const V one = Simd::set1(1.0f);
  return Simd::div(x, Simd::add(one, exp_v(Simd::sub(Simd::zero(), a))));
}

// x * Phi(x), with Phi's tail from Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26
// (absolute error of erf 1.5e-7).
SI_INLINE V gelu_erf(V x) {
  const V one = Simd::set1(1.0f);
  const V z = Simd::mul(Simd::abs(x), Simd::set1(0.70710678f));
  const V t = Simd::div(one, Simd::fma(z, Simd::set1(0.3275911f), one));
  V p = Simd::set1(1.061405429f);
  p = Simd::fma(p, t, Simd::set1(-1.453152027f));
  p = Simd::fma(p, t, Simd::set1(1.421413741f));
  p = Simd::fma(p, t, Simd::set1(-0.284496736f));
  p = Simd::fma(p, t, Simd::set1(0.254829592f));
  const V tail =
      Simd::mul(Simd::mul(Simd::mul(p, t), Simd::set1(0.5f)), exp_v(Simd::sub(Simd::zero(), Simd::mul(z, z))));
  return Simd::mul(x, Simd::select_negative(x, tail, Simd::sub(one, tail)));
}

SI_INLINE V gelu_tanh(V x) {
  const V cubic = Simd::fma(Simd::mul(Simd::mul(x, x), Simd::set1(0.044715f)), x, x);
  return gate(x, Simd::mul(cubic, Simd::set1(2.0f * 0.79788456f)));
}

SI_INLINE V activate(V x, Activation activation) {
  switch (activation) {
    case Activation::kRelu:
      return Simd::max(Simd::zero(), x);
    case Activation::kGelu:
      return gelu_erf(x);
    case Activation::kGeluTanh:
      return gelu_tanh(x);
    case Activation::kSilu:
      return gate(x, x);
    case Activation::kNone:
      break;
  }
  return x;
}

}  // namespace
}  // namespace sparseinfer
