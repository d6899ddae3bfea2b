// Unpacks any packing, the exact inverse of `pack`: the packing's own file returns its payloads in the order of the
// format; payloads that were widened for storage f32 are narrowed here.
#include <vector>

#include "packings/packing.h"
#include "sparseinfer/halves.h"

namespace sparseinfer {

void unpack(const PackingHeader* h, int64_t* crow, int32_t* col, void* values) {
  const Packing& packing = packing_of(h->kind);
  if (h->storage != Storage::kF32) return packing.unpack[payload_bytes(h->storage) == 2](*h, crow, col, values);
  if (h->dtype == DType::kF32) return packing.unpack[0](*h, crow, col, values);
  std::vector<float> wide(static_cast<size_t>(h->nnz));
  packing.unpack[0](*h, crow, col, wide.data());
  with_type(h->dtype, [&](auto type) {
    for (size_t i = 0; i < wide.size(); ++i) narrow_back(wide[i], static_cast<decltype(type)*>(values) + i);
  });
}

}  // namespace sparseinfer
