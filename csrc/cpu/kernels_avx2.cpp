// The CPU kernels for the instruction-set level avx2, compiled with that level's flags (cmake/IsaFlags.cmake).
#include "cpu/simd_avx2.h"

#define SI_ISA avx2
#include "cpu/table-inl.h"
