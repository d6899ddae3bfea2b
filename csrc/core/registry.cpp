// Lists the kernels of every instruction-set level in this build, slowest level first.
#include "sparseinfer/registry.h"

#include <cstring>

namespace sparseinfer {

#define SI_OTHER_LEVEL(...)
#define SI_LEVEL(number, name, ...)         \
  extern const SpmmKernel kernels_##name[]; \
  extern const int kernel_count_##name;     \
  extern const ImageOps image_ops_##name;   \
  extern const AttentionOps attention_ops_##name;
#include "sparseinfer/levels.inc"
#undef SI_LEVEL

const std::vector<RegisteredKernel>& registry() {
  static const std::vector<RegisteredKernel> all = [] {
    std::vector<RegisteredKernel> list;
    auto add = [&](Isa isa, const SpmmKernel* kernels, int count) {
      for (int i = 0; i < count; ++i) list.push_back({kernels[i], isa, isa_supported(isa)});
    };
#define SI_LEVEL(number, name, ...) add(Isa::number, kernels_##name, kernel_count_##name);
#include "sparseinfer/levels.inc"
#undef SI_LEVEL
    return list;
  }();
  return all;
}

namespace {

// What a level has beside kernels.
struct LevelOps {
  const ImageOps& images;
  const AttentionOps& attention;
};

LevelOps ops_of(Isa isa) {
#define SI_LEVEL(number, name, ...) \
  if (isa == Isa::number) return {image_ops_##name, attention_ops_##name};
#include "sparseinfer/levels.inc"
#undef SI_LEVEL
  return {image_ops_scalar, attention_ops_scalar};
}
#undef SI_OTHER_LEVEL

}  // namespace

const ImageOps& image_ops(Isa isa) { return ops_of(isa).images; }
const AttentionOps& attention_ops(Isa isa) { return ops_of(isa).attention; }

bool has_kernels(PackingKind packing, Storage storage) {
  // [packing] bit `storage`
  static const std::vector<uint32_t> storages = [] {
    std::vector<uint32_t> bits(kNumPackings, 0);
    for (const RegisteredKernel& row : registry()) {
      for (int p = 0; p < kNumPackings; ++p) {
        for (int s = 0; s < kNumStorages; ++s) {
          const bool reads = std::strcmp(row.kernel.packing, kPackingNames[p]) == 0 &&
                             std::strcmp(row.kernel.storage, kStorageNames[s]) == 0;
          if (reads) bits[static_cast<size_t>(p)] |= uint32_t{1} << s;
        }
      }
    }
    return bits;
  }();
  return storages[static_cast<size_t>(packing)] >> static_cast<uint32_t>(storage) & 1;
}

}  // namespace sparseinfer
