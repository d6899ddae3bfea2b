// Unpacks any packing, the exact inverse of `pack`: the packing's own file returns its payloads in the order of the
// format; payloads that were widened for storage f32 are narrowed here.
#include <cstring>
#include <vector>

#include "packings/packing.h"
#include "sparseinfer/halves.h"

namespace sparseinfer {

void unpack(const PackingHeader* h, int64_t* crow, int32_t* col, void* values, float* scales) {
  const Packing& packing = packing_of(h->kind);
  if (h->scales != 0 && scales != nullptr && h->n > 0) {
    std::memcpy(scales, section<float>(h, h->scales), static_cast<size_t>(h->n) * sizeof(float));
  }
  if (h->storage != Storage::kF32) return packing.unpack[payload_size(h->storage)](*h, crow, col, values);
  if (h->dtype == DType::kF32) return packing.unpack[0](*h, crow, col, values);
  std::vector<float> wide(static_cast<size_t>(h->nnz));
  packing.unpack[0](*h, crow, col, wide.data());
  with_type(h->dtype, [&](auto type) {
    for (size_t i = 0; i < wide.size(); ++i) narrow_back(wide[i], static_cast<decltype(type)*>(values) + i);
  });
}

}  // namespace sparseinfer
