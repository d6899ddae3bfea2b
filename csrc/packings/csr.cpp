// The packing `csr`: plain CSR in fp32 with splits, without cells. For the baseline kernel.
//
//   counts   int64 [n + 1]: row offsets
//   offsets  uint32 [nnz]: columns
//   values   fp32 [nnz]
//   rows     unused
#include "packings/packing.h"

namespace sparseinfer {
namespace {

Blob pack_csr(const Packing&, const PackInput& input) {
  const SparseView& w = input.w;
  PackingHeader h = input.h;
  SectionPlaces places;
  h.units = w.nnz;
  h.split_rows = places.add(static_cast<int64_t>(input.bounds.size()) * 8);
  h.counts = places.add((w.n + 1) * 8);
  h.offsets = places.add(w.nnz * 4);
  h.values = places.add(w.nnz * 4);
  h.bytes = places.size();
  Blob blob(h.bytes);
  write(blob, 0, &h, 1);
  write(blob, h.split_rows, input.bounds.data(), input.bounds.size());
  write(blob, h.counts, w.crow, static_cast<size_t>(w.n + 1));
  write(blob, h.offsets, w.col, static_cast<size_t>(w.nnz));
  write(blob, h.values, static_cast<const uint32_t*>(w.values), static_cast<size_t>(w.nnz));
  return blob;
}

void check(const Packing& packing, const PackingHeader& h) {
  check_split_rows(h, packing.row_multiple(h));
  check_section(h, h.counts, h.n + 1, 8, "offsets");
  check_section(h, h.offsets, h.nnz, 4, "columns");
  check_section(h, h.values, h.nnz, 4, "values");
  check_compressed(section<int64_t>(&h, h.counts), section<int32_t>(&h, h.offsets), h.n, h.k, h.nnz);
}

template <class Payload>
void unpack_csr(const PackingHeader& h, int64_t* crow, int32_t* col, void* values) {
  std::memcpy(crow, section<int64_t>(&h, h.counts), static_cast<size_t>(h.n + 1) * 8);
  if (h.nnz == 0) return;  // col and values may be null
  std::memcpy(col, section<int32_t>(&h, h.offsets), static_cast<size_t>(h.nnz) * 4);
  std::memcpy(values, section<Payload>(&h, h.values), static_cast<size_t>(h.nnz) * sizeof(Payload));
}

}  // namespace

constexpr Packing csr_packing = [] {
  Packing packing;
  packing.format = "csr";
  packing.pack = pack_csr;
  packing.check = check;
  packing.unpack[0] = unpack_csr<uint32_t>;
  packing.unpack[1] = unpack_csr<uint16_t>;
  return packing;
}();

}  // namespace sparseinfer
