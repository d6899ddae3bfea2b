// Common code of the CUDA kernels' packings: reads and checks the header and the sections of any of them.
#include <cstring>

#include "packings/gpu/packing.h"

namespace sparseinfer {
namespace gpu {
namespace {

const Packing& packing_of(Kind kind) {
#define SI_PACKING(number, name) &name##_packing,
  static constexpr const Packing* kTable[] = {SI_GPU_PACKINGS(SI_PACKING)};
#undef SI_PACKING
  return *kTable[static_cast<int>(kind)];
}

}  // namespace

Header layout(Kind kind, DType dtype, int64_t n, int64_t k, int64_t nnz, int64_t block, int64_t units) {
  if (n < 0 || n >= kMaxSize) refuse("n in [0, 2^31)", n);
  if (k < 0 || k >= kMaxSize) refuse("k in [0, 2^31)", k);
  if (units < 0 || units >= kMaxSize) refuse("at most 2^31 vectors or slabs", units);
  if (nnz < 0 || (k == 0 ? nnz != 0 : nnz / k > n)) refuse("nnz of a matrix of this size", nnz);
  Header h{};
  h.magic = kMagic;
  h.kind = kind;
  h.dtype = dtype;
  h.n = n;
  h.k = k;
  h.nnz = nnz;
  h.block = block;
  h.units = units;
  SectionPlaces places;
  packing_of(kind).lay_out(h, places);
  h.bytes = places.size();
  return h;
}

const Header* check_header(const void* header, int64_t bytes) {
  if (bytes < kHeaderBytes) refuse("at least " + std::to_string(kHeaderBytes) + " bytes", bytes);
  const auto* h = static_cast<const Header*>(header);
  require(h->magic == kMagic, "a packing of the CUDA kernels (its first bytes differ)");
  require(static_cast<uint32_t>(h->kind) < kNumKinds, "a known kind");
  require(static_cast<uint32_t>(h->dtype) < kNumDTypes, "a known dtype");
  const Header wanted = layout(h->kind, h->dtype, h->n, h->k, h->nnz, h->block, h->units);
  require(std::memcmp(&wanted, h, sizeof wanted) == 0, "sections where a packing has them");
  if (h->bytes != bytes) refuse(std::to_string(h->bytes) + " bytes", bytes);
  return h;
}

const Header* check_blob(const void* data, int64_t bytes) {
  const Header* h = check_header(data, bytes);
  packing_of(h->kind).check(*h);
  return h;
}

void unpack(const Header* blob, int64_t* crow, int32_t* col, void* values) {
  packing_of(blob->kind).unpack(*blob, crow, col, static_cast<char*>(values));
}

}  // namespace gpu
}  // namespace sparseinfer
