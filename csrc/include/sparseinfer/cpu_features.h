// Instruction-set levels of this build and of this machine. A level is a named set of CPU feature bits.
#pragma once

#include <string>
#include <vector>

namespace sparseinfer {

enum class Isa : int { kScalar = 0, kAvx2 = 1, kAvx512 = 2, kAvx512Bf16 = 3, kNeon = 4 };  // ascending speed
constexpr int kNumIsas = 5;
extern const char* const kIsaNames[kNumIsas];

bool isa_supported(Isa isa);
std::vector<std::string> supported_isa_names();

// The best supported level, or the one SPARSEINFER_ISA names; read once. Throws std::invalid_argument, which lists
// the valid names, when the variable names an unknown or unsupported level.
Isa active_isa();

}  // namespace sparseinfer
