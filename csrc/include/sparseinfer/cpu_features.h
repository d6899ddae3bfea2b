// Instruction-set levels of this build and of this machine. A level is a named set of CPU feature bits; levels.inc
// lists all levels.
#pragma once

#include <stdint.h>

#include <string>
#include <vector>

#include "sparseinfer/dtypes.h"

namespace sparseinfer {

// Ascending in speed.
#define SI_LEVEL(number, name, ...) number,
#define SI_OTHER_LEVEL SI_LEVEL
enum class Isa : int {
#include "sparseinfer/levels.inc"
};
#undef SI_LEVEL
#define SI_LEVEL(number, name, ...) #name,
constexpr const char* kIsaNames[] = {
#include "sparseinfer/levels.inc"
};
#undef SI_LEVEL
#undef SI_OTHER_LEVEL
constexpr int kNumIsas = sizeof kIsaNames / sizeof *kIsaNames;

// A way for `sell` to lay weights out: columns of x in registers at a time, and steps before they move on.
struct SellWindow {
  int64_t window, steps;
  double cycles;  // of one step, as measured (levels.inc)
};

// Those of a level, for lookups one by one, in pairs of bf16 or in fours of int8; they end at the first without steps.
constexpr int kMaxSellWindows = 8;
const SellWindow* sell_windows(Isa isa, Storage storage);

bool isa_supported(Isa isa);

// Why this machine cannot run a level of this build; empty if it can, or if the build does not have it.
const std::string& isa_refusal(Isa isa);

// Whether plain C++ stands in for the tile instructions of level amx (cpu/amx_emulated.h), for tests.
bool tiles_are_emulated();

std::vector<std::string> supported_isa_names();

// The best supported level, or the one SPARSEINFER_ISA names; read once. Throws std::invalid_argument, which lists
// the valid names, when the variable names an unknown or unsupported level.
Isa active_isa();

}  // namespace sparseinfer
