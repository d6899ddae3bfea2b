// Detects the instruction-set levels this machine supports: compares levels.inc with CPUID and the operating system.
//
// Linux saves the state of tiles, 8 KB a thread, only for processes that ask for it, once and for all their threads.
#include "sparseinfer/cpu_features.h"

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace sparseinfer {
namespace {

// What a level needs of an x86 CPU; nothing of other CPUs. All bits that are set must be there.
struct LevelNeeds {
  uint64_t xcr0 = 0;  // register state that the operating system saves: the CPU's own feature bits do not say
  uint32_t leaf1_ecx = 0, leaf7_ebx = 0, leaf7_ecx = 0, leaf7_edx = 0, leaf71_eax = 0;
};

struct LevelRow {
  bool compiled;  // in this build
  LevelNeeds needs;
  SellWindow windows[kMaxSellWindows + 1];
  SellWindow pair_windows[kMaxSellWindows + 1];
  SellWindow quad_windows[kMaxSellWindows + 1];
};

[[maybe_unused]] constexpr uint32_t bits(std::initializer_list<int> numbers) {
  uint32_t mask = 0;
  for (int number : numbers) mask |= uint32_t{1} << number;
  return mask;
}

#define SI_LIST(...) {__VA_ARGS__}
#define SI_LEVEL(number, name, needs, windows, pair_windows, quad_windows) \
  LevelRow{true, SI_LIST needs, SI_LIST windows, SI_LIST pair_windows, SI_LIST quad_windows},
#define SI_OTHER_LEVEL(number, name, needs, windows, pair_windows, quad_windows) \
  LevelRow{false, SI_LIST needs, SI_LIST windows, SI_LIST pair_windows, SI_LIST quad_windows},
constexpr LevelRow kLevels[] = {
#include "sparseinfer/levels.inc"
};
#undef SI_LEVEL
#undef SI_OTHER_LEVEL
#undef SI_LIST

constexpr bool every_level_has_windows() {
  for (const LevelRow& level : kLevels) {
    for (const SellWindow* list : {level.windows, level.pair_windows, level.quad_windows}) {
      if (list[0].steps == 0) return false;
    }
  }
  return true;
}
static_assert(every_level_has_windows(), "levels.inc: a level must say how sell lays weights out for it");

#if defined(__x86_64__)
struct Cpuid {
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Cpuid cpuid(uint32_t leaf, uint32_t subleaf) {
  Cpuid r;
  __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);
  return r;
}

uint64_t xcr0() {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<uint64_t>(high) << 32 | low;
}

template <class T>
bool has(T reg, T needed) {
  return (reg & needed) == needed;
}

constexpr uint64_t kTileState = uint64_t{3} << 17;
[[maybe_unused]] constexpr uint32_t kTileFeatures = bits({22, 24, 25});  // of leaf 7 edx

// Why the operating system keeps tiles from this process; empty if it does not.
std::string tiles_refusal() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  if (syscall(SYS_arch_prctl, kRequestPermission, kTileData) != 0) {
    return std::string("the operating system refuses the state of tiles: ") + std::strerror(errno);
  }
#endif
  return "";
}

std::string refusal(LevelNeeds needs) {
#if defined(SPARSEINFER_EMULATE_TILES)
  needs.xcr0 &= ~kTileState;
  needs.leaf7_edx &= ~kTileFeatures;
#endif
  const Cpuid leaf1 = cpuid(1, 0), leaf7 = cpuid(7, 0), leaf71 = cpuid(7, 1);
  if (!has(leaf1.ecx, needs.leaf1_ecx) || !has(leaf7.ebx, needs.leaf7_ebx) || !has(leaf7.ecx, needs.leaf7_ecx) ||
      !has(leaf7.edx, needs.leaf7_edx) || !has(leaf71.eax, needs.leaf71_eax)) {
    return "this CPU does not have its instructions";
  }
  constexpr uint32_t kOsxsave = uint32_t{1} << 27;  // without it there is no xgetbv
  if (needs.xcr0 != 0 && (!has(leaf1.ecx, kOsxsave) || !has(xcr0(), needs.xcr0))) {
    return "the operating system does not save its registers";
  }
  return (needs.xcr0 & kTileState) != 0 ? tiles_refusal() : "";
}
#else
std::string refusal(const LevelNeeds&) { return ""; }
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

const SellWindow* sell_windows(Isa isa, Storage storage) {
  const LevelRow& level = kLevels[static_cast<int>(isa)];
  const int64_t columns = columns_per_step(storage);
  return columns == 4 ? level.quad_windows : columns == 2 ? level.pair_windows : level.windows;
}

const std::string& isa_refusal(Isa isa) {
  static const std::vector<std::string> refusals = [] {
    std::vector<std::string> levels;
    for (const LevelRow& level : kLevels) levels.push_back(level.compiled ? refusal(level.needs) : "");
    return levels;
  }();
  return refusals[static_cast<size_t>(isa)];
}

bool isa_supported(Isa isa) { return kLevels[static_cast<int>(isa)].compiled && isa_refusal(isa).empty(); }

bool tiles_are_emulated() {
#if defined(SPARSEINFER_EMULATE_TILES)
  return true;
#else
  return false;
#endif
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
