// Measures how fast one core of this machine multiplies, and how fast it reads from each of its caches.
#pragma once

#include <stdint.h>

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "sparseinfer/cpu_features.h"
#include "sparseinfer/probe_loop.h"

namespace sparseinfer {

struct Rates {
  std::vector<std::pair<std::string, double>> units;  // 1e9 steps a second (probe_loop.h), by the loop's name
  std::vector<double> reads;                          // GB/s, one for each of the sizes
};

constexpr int64_t kMaxProbeBytes = int64_t{1} << 30;

// Runs the loops of a level for `seconds` in total, each many times for a short time: the fastest time counts, because
// other work on the machine can only slow a loop down. `sizes`: bytes of the buffers to read from again and again.
// `between` is called every few milliseconds and may throw. Throws std::invalid_argument: a level that this machine
// does not support, a size below kProbeBytes or above kMaxProbeBytes, or seconds outside of (0, 60].
Rates probe(Isa isa, const std::vector<int64_t>& sizes, double seconds, const std::function<void()>& between);

}  // namespace sparseinfer
