// Loops over registers must be unrolled whole, or the register arrays go to memory.
#pragma once

#if defined(SI_LEVEL_SCALAR)
#define SI_UNROLL  // nothing to keep in registers, and slices of 16 vectors to unroll
#elif defined(__clang__)
#define SI_UNROLL _Pragma("clang loop unroll(full)")
#else
#define SI_UNROLL _Pragma("GCC unroll 64")
#endif
#define SI_INLINE inline __attribute__((always_inline))
