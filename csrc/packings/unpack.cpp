// Unpacks any packing, the exact inverse of `pack`: the packing's own file returns its payloads in the order of the
// format; payloads that were widened for storage f32 are narrowed here.
#include <vector>

#include "packings/packing.h"
#include "sparseinfer/halves.h"

namespace sparseinfer {
namespace {

// The 16 bits that were widened to this float, NaN payloads too.
uint16_t narrow_back(float wide, DType dtype) {
  const uint32_t bits = to_bits(wide);
  if (dtype == DType::kBF16) return static_cast<uint16_t>(bits >> 16);
  if (wide != wide) return static_cast<uint16_t>((bits >> 16 & 0x8000) | 0x7c00 | (bits >> 13 & 0x3ff));
  F16 half;
  narrow(wide, &half);
  return half.bits;
}

}  // namespace

void unpack(const PackingHeader* h, int64_t* crow, int32_t* col, void* values) {
  const Packing& packing = packing_of(h->kind);
  if (h->storage != Storage::kF32) return packing.unpack[payload_bytes(h->storage) == 2](*h, crow, col, values);
  if (h->dtype == DType::kF32) return packing.unpack[0](*h, crow, col, values);
  std::vector<float> wide(static_cast<size_t>(h->nnz));
  packing.unpack[0](*h, crow, col, wide.data());
  for (size_t i = 0; i < wide.size(); ++i) static_cast<uint16_t*>(values)[i] = narrow_back(wide[i], h->dtype);
}

}  // namespace sparseinfer
