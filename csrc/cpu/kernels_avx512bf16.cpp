// The CPU kernels for the instruction-set level avx512bf16, compiled with that level's flags (cmake/IsaFlags.cmake).
#include "cpu/simd_avx512.h"

#define SI_ISA avx512bf16
#include "cpu/table-inl.h"
