// The kernels at level scalar; compiled with that level's flags (cmake/IsaFlags.cmake).
#include "cpu/simd_scalar.h"

// The bodies are written against Simd, so they come after it.
#include "cpu/bsr-inl.h"
#include "cpu/csr-inl.h"
#include "cpu/rowgroup-inl.h"
#include "cpu/rowlist-inl.h"
#include "cpu/sell-inl.h"

#define SI_ISA scalar
#include "cpu/table-inl.h"
