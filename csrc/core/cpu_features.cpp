#include "sparseinfer/cpu_features.h"

#include <cstdint>
#include <cstdlib>
#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace sparseinfer {
namespace {

#if defined(__x86_64__)
struct Cpuid {
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Cpuid cpuid(uint32_t leaf, uint32_t subleaf) {
  Cpuid r;
  __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);
  return r;
}

// Which register state the operating system saves: the CPU's own feature bits do not say.
uint64_t xcr0() {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<uint64_t>(high) << 32 | low;
}

bool has(uint32_t reg, std::initializer_list<int> bits) {
  for (int bit : bits) {
    if (!(reg >> bit & 1)) return false;
  }
  return true;
}

bool detect(Isa isa) {
  if (isa == Isa::kScalar) return true;
  const Cpuid leaf1 = cpuid(1, 0), leaf7 = cpuid(7, 0);
  const bool osxsave = has(leaf1.ecx, {27});
  // avx2: AVX, FMA, F16C; AVX2; xmm and ymm state
  const bool avx2 = osxsave && (xcr0() & 0x6) == 0x6 && has(leaf1.ecx, {12, 28, 29}) && has(leaf7.ebx, {5});
  if (isa == Isa::kAvx2) return avx2;
  // avx512: F, DQ, BW, VL; opmask and zmm state
  const bool avx512 = avx2 && (xcr0() & 0xe6) == 0xe6 && has(leaf7.ebx, {16, 17, 30, 31});
  if (isa == Isa::kAvx512) return avx512;
  // avx512bf16: BF16, and VBMI, VBMI2 to move 16-bit values
  return isa == Isa::kAvx512Bf16 && avx512 && has(leaf7.ecx, {1, 6}) && has(cpuid(7, 1).eax, {5});
}
#elif defined(__aarch64__)
bool detect(Isa isa) { return isa == Isa::kScalar || isa == Isa::kNeon; }
#else
bool detect(Isa isa) { return isa == Isa::kScalar; }
#endif

Isa choose() {
  const char* forced = std::getenv("SPARSEINFER_ISA");
  if (forced == nullptr || *forced == '\0') {
    for (int i = kNumIsas - 1; i > 0; --i) {
      if (isa_supported(static_cast<Isa>(i))) return static_cast<Isa>(i);
    }
    return Isa::kScalar;
  }
  std::string valid;
  for (const std::string& name : supported_isa_names()) {
    if (name == forced) {
      for (int i = 0; i < kNumIsas; ++i) {
        if (name == kIsaNames[i]) return static_cast<Isa>(i);
      }
    }
    valid += (valid.empty() ? "" : ", ") + name;
  }
  throw std::invalid_argument("SPARSEINFER_ISA: expected one of " + valid + " on this machine, got " + forced);
}

}  // namespace

bool isa_supported(Isa isa) {
  static const std::vector<bool> supported = [] {
    std::vector<bool> found;
    for (int i = 0; i < kNumIsas; ++i) found.push_back(detect(static_cast<Isa>(i)));
    return found;
  }();
  return supported[static_cast<size_t>(isa)];
}

std::vector<std::string> supported_isa_names() {
  std::vector<std::string> names;
  for (int i = 0; i < kNumIsas; ++i) {
    if (isa_supported(static_cast<Isa>(i))) names.emplace_back(kIsaNames[i]);
  }
  return names;
}

Isa active_isa() {
  static const Isa isa = choose();
  return isa;
}

}  // namespace sparseinfer
