// The activations of the kernels' epilogue, in fp32, on vectors S. Errors are a few units in the last place of x; NaN
// stays NaN.
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

// x * Phi(x) as max(0, x) - z * Q(z), z = |x| up to 5.3, where Q = 1 - Phi is 0.5 - z * p(z^2). p is a minimax fit (its
// error times z is at most 9e-8) in powers of 2 z^2 / 5.3^2 - 1, moved so that Q is not above 0 at the end: whatever
// lies further out gives exactly 0 or x. There is no exponential and no division in it, which are what takes the time.
template <class S, class V = typename S::V>
SI_INLINE V gelu_erf(V x) {
  constexpr float kEnd = 5.3f;
  const float coefficients[] = {-1.433469937e-3f, 1.925128512e-3f, -5.462931003e-3f, 9.600144811e-3f,
                                -1.339627616e-2f, 1.867415197e-2f, -2.524299175e-2f, 3.211838380e-2f,
                                -3.959507123e-2f, 4.926192760e-2f, -6.651831418e-2f, 1.333926171e-1f};
  const V z = S::min(S::set1(kEnd), S::abs(x));
  const V t = S::fma(S::mul(z, z), S::set1(2.0f / (kEnd * kEnd)), S::set1(-1.0f));
  V p = S::fma(S::set1(-6.520274910e-4f), t, S::set1(1.668356825e-3f));
  SI_UNROLL
  for (int i = 0; i < 12; ++i) p = S::fma(p, t, S::set1(coefficients[i]));
  const V minus_z = S::sub(S::zero(), z);
  const V tail = S::max(S::zero(), S::fma(minus_z, p, S::set1(0.5f)));
  return S::fma(minus_z, tail, S::max(S::zero(), x));
}

template <class S, class V = typename S::V>
SI_INLINE V gelu_tanh(V x) {
  const V cubic = S::fma(S::mul(S::mul(x, x), S::set1(0.044715f)), x, x);
  return gate<S>(x, S::mul(cubic, S::set1(2.0f * 0.79788456f)));
}

// x between 0 and 6.
template <class S, class V = typename S::V>
SI_INLINE V up_to_six(V x) {
  return S::min(S::set1(6.0f), S::max(S::zero(), x));
}

template <class S, class V = typename S::V>
SI_INLINE V hardsigmoid(V x) {
  return S::mul(up_to_six<S>(S::add(x, S::set1(3.0f))), S::set1(1.0f / 6));
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
    case Activation::kRelu6:
      return up_to_six<S>(x);
    case Activation::kHardswish:
      return S::mul(x, hardsigmoid<S>(x));
    case Activation::kSigmoid:
      return gate<S>(S::set1(1.0f), x);
    case Activation::kHardsigmoid:
      return hardsigmoid<S>(x);
    case Activation::kNone:
      break;
  }
  return x;
}

// The same for N vectors, without a decision between them.
template <class S, int N, class V = typename S::V>
SI_INLINE void activate_all(V (&v)[N], Activation activation) {
  switch (activation) {
#define SI_ALL(number, name)                                                  \
  case Activation::number:                                                    \
    SI_UNROLL                                                                 \
    for (int i = 0; i < N; ++i) v[i] = activate<S>(v[i], Activation::number); \
    break;
    SI_ACTIVATIONS(SI_ALL)
#undef SI_ALL
  }
}

}  // namespace
}  // namespace sparseinfer
