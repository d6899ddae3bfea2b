#include "sparseinfer/registry.h"

namespace sparseinfer {

#define SI_LEVEL(isa)                      \
  extern const SpmmKernel kernels_##isa[]; \
  extern const int kernel_count_##isa;
#include "cpu/levels.inc"
#undef SI_LEVEL

const std::vector<RegisteredKernel>& registry() {
  static const std::vector<RegisteredKernel> all = [] {
    std::vector<RegisteredKernel> list;
    auto add = [&](const char* level, const SpmmKernel* kernels, int count) {
      const std::string name = level;
      for (int isa = 0; isa < kNumIsas; ++isa) {
        if (name != kIsaNames[isa]) continue;
        for (int i = 0; i < count; ++i) {
          list.push_back({kernels[i], static_cast<Isa>(isa), isa_supported(static_cast<Isa>(isa))});
        }
      }
    };
#define SI_LEVEL(isa) add(#isa, kernels_##isa, kernel_count_##isa);
#include "cpu/levels.inc"
#undef SI_LEVEL
    return list;
  }();
  return all;
}

}  // namespace sparseinfer
