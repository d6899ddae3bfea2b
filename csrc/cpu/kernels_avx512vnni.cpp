// The CPU kernels for the instruction-set level avx512vnni, compiled with that level's flags (cmake/IsaFlags.cmake).
#include "cpu/simd_avx512.h"

#define SI_ISA avx512vnni
#include "cpu/table-inl.h"
