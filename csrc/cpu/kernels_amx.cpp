// The CPU kernels for the instruction-set level amx: those that multiply on tiles. They decode and finish with the
// vectors of avx512bf16.
#include "cpu/amx.h"
#include "cpu/simd_avx512.h"

#define SI_ISA amx
#include "cpu/table-inl.h"
