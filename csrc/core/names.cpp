#include "sparseinfer/cpu_features.h"
#include "sparseinfer/dtypes.h"
#include "sparseinfer/packings.h"

namespace sparseinfer {

const char* const kDTypeNames[kNumDTypes] = {"f32", "bf16", "f16"};
const char* const kStorageNames[kNumStorages] = {"f32", "bf16", "wbf16", "wf16"};
const char* const kActivationNames[kNumActivations] = {"none", "relu", "gelu", "gelu_tanh", "silu"};
const char* const kPackingNames[kNumPackings] = {"csr", "rowgroup", "rowlist", "bsr", "sell", "bitmap"};
const char* const kIsaNames[kNumIsas] = {"scalar", "avx2", "avx512", "avx512bf16", "neon"};

}  // namespace sparseinfer
