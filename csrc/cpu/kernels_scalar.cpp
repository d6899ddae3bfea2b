// The CPU kernels for the instruction-set level scalar, compiled with that level's flags (cmake/IsaFlags.cmake).
#include "cpu/simd_scalar.h"

#define SI_ISA scalar
#include "cpu/table-inl.h"
