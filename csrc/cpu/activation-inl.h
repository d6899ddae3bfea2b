// Activations of the epilogue, in fp32, on vectors S. Errors are a few units in the last place of x; NaN stays NaN.
#pragma once

#include "cpu/unroll.h"
#include "sparseinfer/dtypes.h"

namespace sparseinfer {
namespace {

// e^x by range reduction to 2^n * e^r, |r| <= ln(2)/2, and the Taylor polynomial of degree 7 (relative error 1e-8).
// Clamped to where the result is a normal float; the clamp passes NaN on.
template <class S, class V = typename S::V>
SI_INLINE V exp_v(V x) {
  x = S::min(S::set1(88.0f), S::max(S::set1(-87.0f), x));
  const V n = S::round(S::mul(x, S::set1(1.44269504f)));
  V r = S::fma(n, S::set1(-0.693359375f), x);
  r = S::fma(n, S::set1(2.12194440e-4f), r);
  V p = S::set1(1.0f / 5040);
  const float coefficients[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
  SI_UNROLL
  for (int i = 0; i < 7; ++i) p = S::fma(p, r, S::set1(coefficients[i]));
  return S::scale(p, n);
}

// x * sigmoid(a)
template <class S, class V = typename S::V>
SI_INLINE V gate(V x, V a) {
  const V one = S::set1(1.0f);
  return S::div(x, S::add(one, exp_v<S>(S::sub(S::zero(), a))));
}

// x * Phi(x), with Phi's tail from Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26
// (absolute error of erf 1.5e-7).
template <class S, class V = typename S::V>
SI_INLINE V gelu_erf(V x) {
  const V one = S::set1(1.0f);
  const V z = S::mul(S::abs(x), S::set1(0.70710678f));
  const V t = S::div(one, S::fma(z, S::set1(0.3275911f), one));
  V p = S::set1(1.061405429f);
  p = S::fma(p, t, S::set1(-1.453152027f));
  p = S::fma(p, t, S::set1(1.421413741f));
  p = S::fma(p, t, S::set1(-0.284496736f));
  p = S::fma(p, t, S::set1(0.254829592f));
  // Far out the tail is no number of x's size any more; it stays a normal one, because others are slow.
  const V exponent = S::max(S::set1(-80.0f), S::sub(S::zero(), S::mul(z, z)));
  const V tail = S::mul(S::mul(S::mul(p, t), S::set1(0.5f)), exp_v<S>(exponent));
  return S::mul(x, S::select_negative(x, tail, S::sub(one, tail)));
}

template <class S, class V = typename S::V>
SI_INLINE V gelu_tanh(V x) {
  const V cubic = S::fma(S::mul(S::mul(x, x), S::set1(0.044715f)), x, x);
  return gate<S>(x, S::mul(cubic, S::set1(2.0f * 0.79788456f)));
}

template <class S, class V = typename S::V>
SI_INLINE V activate(V x, Activation activation) {
  switch (activation) {
    case Activation::kRelu:
      return S::max(S::zero(), x);
    case Activation::kGelu:
      return gelu_erf<S>(x);
    case Activation::kGeluTanh:
      return gelu_tanh<S>(x);
    case Activation::kSilu:
      return gate<S>(x, x);
    case Activation::kNone:
      break;
  }
  return x;
}

// The same for N vectors, without a decision between them.
template <class S, int N, class V = typename S::V>
SI_INLINE void activate_all(V (&v)[N], Activation activation) {
  switch (activation) {
    case Activation::kRelu:
      for (int i = 0; i < N; ++i) v[i] = activate<S>(v[i], Activation::kRelu);
      break;
    case Activation::kGelu:
      for (int i = 0; i < N; ++i) v[i] = gelu_erf<S>(v[i]);
      break;
    case Activation::kGeluTanh:
      for (int i = 0; i < N; ++i) v[i] = gelu_tanh<S>(v[i]);
      break;
    case Activation::kSilu:
      for (int i = 0; i < N; ++i) v[i] = gate<S>(v[i], v[i]);
      break;
    case Activation::kNone:
      break;
  }
}

}  // namespace
}  // namespace sparseinfer
