// Loop unrolling for arrays of registers, which the compiler would spill to memory if a loop were not unrolled.
#pragma once

#if defined(SI_LEVEL_SCALAR)
#define SI_UNROLL  // nothing to keep in registers, and slices of 16 vectors to unroll
#elif defined(__clang__)
#define SI_UNROLL _Pragma("clang loop unroll(full)")
#else
#define SI_UNROLL _Pragma("GCC unroll 64")
#endif
#define SI_INLINE inline __attribute__((always_inline))
