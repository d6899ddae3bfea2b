// The CPU kernels for the instruction-set level neon, compiled with that level's flags (cmake/IsaFlags.cmake).
#include "cpu/simd_neon.h"

#define SI_ISA neon
#include "cpu/table-inl.h"
