// Times the loops of cpu/probe-inl.h.
#include "sparseinfer/probe.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>

#include "sparseinfer/memory.h"

namespace sparseinfer {

#define SI_OTHER_LEVEL(...)
#define SI_LEVEL(number, name, ...)            \
  extern const ProbeLoop probe_loops_##name[]; \
  extern const int probe_loop_count_##name;
#include "sparseinfer/levels.inc"
#undef SI_LEVEL

namespace {

// Seconds of one run of a loop: shorter than a turn of the scheduler, so that most runs are not interrupted, and much
// longer than it takes to read the clock.
constexpr double kRunSeconds = 1e-3;
// The loops take turns so often: what disturbs one for some time seldom disturbs all of its turns.
constexpr int kRounds = 5;

std::vector<ProbeLoop> loops_of(Isa isa) {
#define SI_LEVEL(number, name, ...) \
  if (isa == Isa::number) return {probe_loops_##name, probe_loops_##name + probe_loop_count_##name};
#include "sparseinfer/levels.inc"
#undef SI_LEVEL
  return {};
}
#undef SI_OTHER_LEVEL

struct Free {
  void operator()(float* p) const { std::free(p); }
};
using Buffer = std::unique_ptr<float, Free>;

// All 0.5f. Huge pages: what is measured is the cache, and not the look-up of addresses.
Buffer buffer(int64_t bytes) {
  const int64_t rounded = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  Buffer data(static_cast<float*>(std::aligned_alloc(static_cast<size_t>(kHugePage), static_cast<size_t>(rounded))));
  if (data == nullptr) throw std::bad_alloc();
  prefer_huge_pages(data.get(), rounded);
  std::fill_n(data.get(), rounded / static_cast<int64_t>(sizeof(float)), 0.5f);
  return data;
}

// One loop, or one size to read; `run(times)` does the same work so often.
struct Work {
  double steps;
  std::function<void(int64_t)> run;
  double best_rate = 0;  // 1e9 steps a second
};

void time(Work& work, double seconds, const std::function<void()>& between) {
  using Clock = std::chrono::steady_clock;
  auto timed = [&](int64_t times) {
    const auto start = Clock::now();
    work.run(times);
    return std::max(std::chrono::duration<double>(Clock::now() - start).count(), 1e-9);
  };
  int64_t times = 1;
  double taken = timed(times);
  while (taken < kRunSeconds / 2) taken = timed(times *= 2);
  for (double spent = 0; spent < seconds; spent += taken) {
    between();
    taken = timed(times);
    work.best_rate = std::max(work.best_rate, 1e-9 * work.steps * static_cast<double>(times) / taken);
  }
}

void check(Isa isa, const std::vector<int64_t>& sizes, double seconds) {
  if (!isa_supported(isa)) throw std::invalid_argument("isa: expected a level of this machine");
  if (!(seconds > 0 && seconds <= 60)) throw std::invalid_argument("seconds: expected a number from 0 to 60");
  for (int64_t size : sizes) {
    if (size >= kProbeBytes && size <= kMaxProbeBytes) continue;
    throw std::invalid_argument("sizes: expected bytes from " + std::to_string(kProbeBytes) + " to " +
                                std::to_string(kMaxProbeBytes) + ", got " + std::to_string(size));
  }
}

}  // namespace

Rates probe(Isa isa, const std::vector<int64_t>& sizes, double seconds, const std::function<void()>& between) {
  check(isa, sizes, seconds);
  int64_t most = kProbeBytes;
  for (int64_t size : sizes) most = std::max(most, size);
  const Buffer memory = buffer(most), result = buffer(kProbeBytes);
  const float* x = memory.get();
  float* y = result.get();

  const std::vector<ProbeLoop> loops = loops_of(isa);
  std::vector<Work> units, reads;
  for (const ProbeLoop& loop : loops) {
    const auto run = loop.run;
    if (std::strcmp(loop.name, "read") != 0) {
      units.push_back({loop.steps, [=](int64_t times) { run(times, x, y); }});
      continue;
    }
    for (int64_t size : sizes) {
      const auto iterations = static_cast<int64_t>(static_cast<double>(size) / loop.steps);
      reads.push_back({loop.steps * static_cast<double>(iterations), [=](int64_t times) {
                         for (int64_t i = 0; i < times; ++i) run(iterations, x, y);
                       }});
    }
  }
  const double each = seconds / kRounds / static_cast<double>(units.size() + reads.size());
  for (int round = 0; round < kRounds; ++round) {
    for (Work& work : units) time(work, each, between);
    for (Work& work : reads) time(work, each, between);
  }

  Rates rates;
  size_t unit = 0;
  for (const ProbeLoop& loop : loops) {
    if (std::strcmp(loop.name, "read") != 0) rates.units.emplace_back(loop.name, units[unit++].best_rate);
  }
  for (const Work& work : reads) rates.reads.push_back(work.best_rate);
  return rates;
}

}  // namespace sparseinfer
