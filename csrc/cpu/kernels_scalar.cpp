// The kernels at level scalar; compiled with that level's flags (cmake/IsaFlags.cmake).
#include "cpu/simd_scalar.h"

#include "cpu/bsr-inl.h"
#include "cpu/csr-inl.h"
#include "cpu/rowgroup-inl.h"
#include "cpu/rowlist-inl.h"

#define SI_ISA scalar
#include "cpu/table-inl.h"
