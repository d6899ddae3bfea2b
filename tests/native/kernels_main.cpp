// Every kernel that this machine can run, against products in fp64: without Python, so that it also runs under an
// emulator, under sanitizers and under valgrind.
//
//   native_tests [level ...]    the levels named must be among those that ran
#include <unistd.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <set>

#include "attentions.h"
#include "convolutions.h"
#include "damage.h"
#include "exact.h"
#include "networks.h"
#include "tested.h"
#include "tile_unit.h"
#include "windows.h"

namespace native_tests {
namespace {

[[maybe_unused]] void crashed(int) {
  const char text[] = "native tests: crashed in ";
  if (write(2, text, sizeof text - 1) < 0 || write(2, g_now, std::strlen(g_now)) < 0 || write(2, "\n", 1) < 0) _exit(3);
  _exit(2);
}

const std::vector<int64_t> kManyTokens = {0,  1,  2,  3,  4,  5,  7,  8,  9,  12, 15, 16,
                                          17, 24, 31, 32, 33, 48, 49, 63, 64, 65, 129};

const std::vector<std::pair<int64_t, int64_t>> kBlocks = {{1, 4}, {4, 1}, {2, 2}, {4, 4}, {3, 5}, {8, 8}, {12, 20}};

void check_sizes() {
  check_exact("tokens", filled(24, 40, 129, Values::kIntegers, 0.6), kManyTokens, {true});
  for (auto [r, c] : kBlocks)
    check_exact("tokens", filled(24, 40, 129, Values::kIntegers, 0.6, r, c), kManyTokens, {true});
  check_exact("tokens", filled(48, 40, 129, Values::kIntegers, 0.6, 16, 1), kManyTokens, {true});
  const std::vector<std::pair<int64_t, int64_t>> sizes = {{1, 1},    {3, 127},  {4, 128},  {5, 129}, {15, 255},
                                                          {16, 256}, {17, 257}, {64, 64},  {65, 15}, {63, 17},
                                                          {129, 16}, {1, 1000}, {1000, 2}, {31, 385}};
  for (auto [n, k] : sizes) {
    for (double sparsity : {0.0, 0.5, 0.95, 1.0}) {
      check_exact("sizes", filled(n, k, 65, Values::kIntegers, sparsity), {1, 2, 7, 16, 17, 65});
    }
  }
  const std::vector<std::pair<int64_t, int64_t>> empty = {{0, 8}, {8, 0}, {0, 0}};
  for (auto [n, k] : empty) {
    for (auto [r, c] : {std::pair<int64_t, int64_t>{1, 1}, {4, 4}, {16, 1}}) {
      if (n % r != 0) continue;
      check_exact("empty", filled(n, k, 17, Values::kIntegers, 0.5, r, c), {0, 1, 17});
    }
  }
  for (auto [r, c] : {std::pair<int64_t, int64_t>{1, 2},
                      {6, 10},
                      {16, 1},
                      {48, 5},
                      {16, 16},
                      {16, 32},
                      {16, 64},
                      {32, 32},
                      {48, 64},
                      {64, 64},
                      {192, 320}}) {
    check_exact("blocks", filled(192, 320, 100, Values::kIntegers, 0.7, r, c), {1, 20, 100});
  }
  check_exact("panels", filled(40, 800, 70, Values::kIntegers, 0.6), {1, 16, 70}, {false, {16, 48, 384, 800, 2048}});
  check_exact("panels", filled(64, 640, 70, Values::kIntegers, 0.6, 32, 64), {1, 70}, {false, {64, 192, 640}});
  // More of x than stays in L1, for each number of tokens that one pass takes.
  check_exact("panels", filled(35, 9800, 9, Values::kIntegers, 0.7), {1, 2, 3, 4, 8, 9});
  // Splits as long as they may be, and more rows than one chunk of sums.
  check_exact("rows", filled(1300, 24, 65, Values::kIntegers, 0.8), {3, 65}, {false, {0}, 1});
  check_exact("rows", filled(1300, 24, 65, Values::kIntegers, 0.8, 4, 4), {3, 65}, {false, {0}, 1});
  check_exact("rows", filled(1296, 32, 65, Values::kIntegers, 0.8, 16, 32), {3, 65}, {false, {0}, 1});
  check_exact("rows", filled(1296, 24, 65, Values::kIntegers, 0.8, 16, 1), {3, 65}, {false, {0}, 1});
  check_exact("panels", filled(48, 2000, 70, Values::kIntegers, 0.6, 16, 1), {1, 7, 16, 70}, {false, {16, 384, 2000}});
  // More columns than 16 bits count, and more of x than one pass holds.
  check_exact("columns", filled(8, (1 << 16) + 200, 3, Values::kIntegers, 0.999), {3});
  check_exact("columns", filled(8, (1 << 16) + 200, 3, Values::kIntegers, 0.999, 4, 4), {3});
  check_exact("columns", filled(16, (1 << 16) + 200, 3, Values::kIntegers, 0.999, 16, 1), {3});
  check_exact("passes", filled(5, 33000, 65, Values::kIntegers, 0.999), {65});
  // Enough tokens that every thread packs its own, and some are left.
  check_exact("own tokens", filled(20, 40, 600, Values::kIntegers, 0.8), {64, 256, 600});
}

void check_hostile() {
  const std::vector<std::pair<int64_t, int64_t>> sizes = {{24, 40}, {17, 257}, {64, 64}, {5, 129}, {130, 500}};
  for (auto [n, k] : sizes) {
    for (double sparsity : {0.5, 0.9}) {
      for (Values values : {Values::kHostile, Values::kHostileX}) {
        check_exact("NaN and infinity", filled(n, k, 65, values, sparsity), {1, 3, 4, 17, 65});
      }
    }
  }
  for (auto [r, c] : kBlocks) {
    for (Values values : {Values::kHostile, Values::kHostileX}) {
      check_exact("NaN and infinity", filled(24, 40, 65, values, 0.6, r, c), {1, 3, 17, 65});
    }
  }
  check_exact("NaN and infinity", filled(64, 96, 65, Values::kHostile, 0.6, 16, 32), {1, 3, 17, 65});
  check_exact("NaN and infinity", filled(64, 1100, 65, Values::kHostile, 0.995), {1, 17, 40, 65});
  for (int64_t k : {40, 1600}) {
    for (Values values : {Values::kHostile, Values::kHostileX}) {
      check_exact("NaN and infinity", filled(48, k, 65, values, 0.6, 16, 1), {1, 3, 5, 17, 65});
    }
  }
}

// One weight of 1 in every row: all numbers of 16 bits go in as x or as weights, and come out.
void check_every_half() {
  for (DType dtype : {DType::kBF16, DType::kF16}) {
    Problem in(16, 16, 4096), out(1 << 16, 1, 1);
    for (int64_t i = 0; i < 16; ++i) in.store(i, i, 1.0);
    out.x[0] = 1.0;
    for (uint32_t bits = 0; bits < 1u << 16; ++bits) {
      in.x[bits] = decode(bits, dtype);
      out.store(bits, 0, decode(bits, dtype));
    }
    in.finish();
    out.finish();
    for (Tested& tested : g_tested) {
      if (!tested.takes(in) || tested.storage == Storage::kI8) continue;  // which would round them
      for (DType w : tested.weight_dtypes()) {
        if (tested.storage != Storage::kBF16 || dtype == DType::kBF16) {
          const Fenced blob = packed(tested, Format(in, w), tested.kernel.isa);
          check(tested, "halves", {tested.kernel, in, header(blob), dtype, in.m}, same, none);
        }
        if (w == dtype) {
          const Fenced blob = packed(tested, Format(out, w), tested.kernel.isa);
          check(tested, "halves", {tested.kernel, out, header(blob), tested.x_dtypes()[0], 1}, same, none);
        }
      }
    }
  }
}

// The same bits however the work is cut, near the exact sums.
void check_splits() {
  for (auto [r, c] : {std::pair<int64_t, int64_t>{1, 1}, {4, 4}, {16, 32}, {16, 1}}) {
    const Problem reals = filled(400, 160, 70, Values::kReals, 0.7, r, c);
    const Problem real_x = filled(400, 160, 70, Values::kRealX, 0.7, r, c);
    for (Tested& tested : g_tested) {
      const Problem& p = tested.is_int8() ? real_x : reals;
      if (!tested.takes(p)) continue;
      for_packings(tested, p, false, {0}, 64, [&](const PackingHeader* h, DType x) {
        for (int64_t m : {int64_t{3}, int64_t{70}}) {
          Call call{tested.kernel, p, h, x, m, Bias::kF32};
          check(tested, "reals", call, same, none);
          const Output whole = run(call);
          for (int parts : {2, 7, kBackwards}) {
            call.parts = parts;
            ++tested.checks["splits"];
            if (!(run(call) == whole)) fail("splits: " + call.text() + ": other bits than in one part");
          }
        }
      });
    }
  }
}

// Rows as matrices of their own, which end where splits end, within them, or after a single row.
void check_parts() {
  const std::vector<std::vector<int64_t>> cuts = {
      {96}, {32, 64}, {1, 95}, {95, 1}, {17, 3, 5, 1, 70}, {16, 16, 16, 48}, std::vector<int64_t>(96, 1)};
  for (auto [r, c] : {std::pair<int64_t, int64_t>{1, 1}, {8, 4}, {16, 1}}) {
    const Problem reals = filled(96, 72, 600, Values::kReals, 0.8, r, c);
    const Problem real_x = filled(96, 72, 600, Values::kRealX, 0.8, r, c);
    for (Tested& tested : g_tested) {
      const Problem& p = tested.is_int8() ? real_x : reals;
      if (!tested.takes(p)) continue;
      for (int64_t max_splits : {64, 3}) {
        for_packings(tested, p, false, {0}, max_splits, [&](const PackingHeader* h, DType x) {
          for (int64_t m : {0, 1, 5, 64, 65, 600}) {
            const int64_t turn = tested.turn++;
            Call call{tested.kernel, p, h, x, m, static_cast<Bias>(turn % 3)};
            const Output whole = run(call);
            const std::vector<int64_t>& sizes = cuts[static_cast<size_t>(turn) % cuts.size()];
            for (int parts : {1, 2, 7}) {
              call.parts = parts;
              std::snprintf(g_now, sizeof g_now, "parts %d: %s", static_cast<int>(turn), call.text().c_str());
              ++tested.checks["parts"];
              const uint64_t wanted = parts == 2 ? 0x5555555555555555u : parts == 7 ? ~uint64_t{2} : ~uint64_t{0};
              if (!same_in_parts(call, whole, sizes, wanted)) {
                fail("parts: " + call.text() + " in " + std::to_string(sizes.size()) + ": other bits than as a whole");
              }
            }
          }
        });
      }
    }
  }
}

double activated(double v, Activation activation) {
  switch (activation) {
    case Activation::kRelu:
      return v < 0.0 ? 0.0 : v;
    case Activation::kGelu:
      return 0.5 * v * std::erfc(-v * std::sqrt(0.5));
    case Activation::kGeluTanh:
      return 0.5 * v * (1.0 + std::tanh(0.7978845608028654 * (v + 0.044715 * v * v * v)));
    case Activation::kSilu:
      return v / (1.0 + std::exp(-v));
    case Activation::kRelu6:
      return std::min(std::max(v, 0.0), 6.0);
    case Activation::kHardswish:
      return v * std::min(std::max(v + 3.0, 0.0), 6.0) / 6.0;
    case Activation::kSigmoid:
      return 1.0 / (1.0 + std::exp(-v));
    case Activation::kHardsigmoid:
      return std::min(std::max(v + 3.0, 0.0), 6.0) / 6.0;
    default:
      return v;
  }
}

// One weight in every row. Of int8 it is an integer, and so is x but for the scales.
Problem diagonal(bool int8, int64_t r, int64_t c) {
  const int64_t size = r == 16 ? 32 : 20;
  Problem p(size, size, 40, r, c);
  for (int64_t i = 0; i < p.n; ++i) {
    for (int64_t row = i / r * r; row < i / r * r + r; ++row) {
      for (int64_t block = i / c * c, j = block; j < block + c; ++j)
        p.stored[static_cast<size_t>(row * size + j)] = true;
    }
    p.store(i, i, 1.0 + (int8 ? static_cast<double>(i % 3) : static_cast<double>(i) / 128));
    p.bias[static_cast<size_t>(i)] = static_cast<double>(i % 5) / 8;
  }
  Random random(1);
  for (double& v : p.x) v = static_cast<double>(random.between(-240, 240)) / (random.chance(0.2) ? 1024 : 8);
  if (int8) {
    for (double& v : p.x) v = std::floor(v);
    p.span(random);
  }
  p.x[static_cast<size_t>(3 * size + 19)] = p.x[static_cast<size_t>(9 * size)] =
      std::numeric_limits<double>::quiet_NaN();
  p.finish();
  return p;
}

void check_activations() {
  for (auto [r, c] : {std::pair<int64_t, int64_t>{1, 1}, {2, 2}, {2, 4}, {16, 1}}) {
    const Problem floats = diagonal(false, r, c), integers = diagonal(true, r, c);
    for (Tested& tested : g_tested) {
      const Problem& p = tested.is_int8() ? integers : floats;
      if (!tested.takes(p)) continue;
      for_packings(tested, p, true, {0}, 64, [&](const PackingHeader* h, DType x) {
        for (int i = 1; i < kNumActivations; ++i) {
          const auto activation = static_cast<Activation>(i);
          check(
              tested, "activations", {tested.kernel, p, h, x, p.m, static_cast<Bias>(i % 3), activation},
              [&](double v) { return activated(v, activation); },
              [&](double v) { return (0x1p-21 + rounding(x)) * std::fabs(v); });
        }
      });
    }
  }
}

// Any bits come back from a packing.
void check_bits() {
  Random random(7);
  for (auto [r, c] : {std::pair<int64_t, int64_t>{1, 1}, {4, 4}, {6, 2}, {16, 1}, {48, 5}, {32, 64}}) {
    const Problem p = filled(96, 320, 0, Values::kIntegers, 0.6, r, c);
    for (Tested& tested : g_tested) {
      if (!tested.takes(p)) continue;
      for (DType w : tested.weight_dtypes()) {
        Format format(p, w);
        for (char& byte : format.values) byte = static_cast<char>(random.next());
        check_round_trip(tested, format, packed(tested, format, tested.kernel.isa));
      }
    }
  }
}

// A damaged packing is refused, or the kernel gets through it.
void check_damage(const Problem& p, bool own_level) {
  for (Tested& tested : g_tested) {
    if (!tested.takes(p)) continue;
    const Isa isa = own_level ? tested.kernel.isa : Isa::kScalar;
    const Fenced good = packed(tested, Format(p, tested.weight_dtypes()[0]), isa, 0, 3);
    for (uint64_t trial = 0; trial < 250; ++trial) {
      const Fenced copy(good.data(), good.size());
      Damage(copy.data(), copy.size(), trial);
      ++tested.damaged;
      ++tested.checks["damage"];
      try {
        std::snprintf(g_now, sizeof g_now, "the check for %s of damage %d", tested.kernel.kernel.name,
                      static_cast<int>(trial));
        const PackingHeader* h = check_packing(copy.data(), copy.size());
        if (h->kind != tested.kind || h->storage != tested.storage) continue;  // callers look at these
        if (h->n == p.n && h->k == p.k) {
          for (int64_t m : {int64_t{3}, int64_t{20}}) {
            const Call call{tested.kernel, p, h, tested.x_dtypes()[0], m, Bias::kF32, Activation::kNone, kBackwards};
            std::snprintf(g_now, sizeof g_now, "damage %d: %s", static_cast<int>(trial), call.text().c_str());
            run(call);
          }
        }
        std::snprintf(g_now, sizeof g_now, "unpacking %s with damage %d", tested.kernel.kernel.name,
                      static_cast<int>(trial));
        const Fenced crow((h->n / h->block_rows + 1) * 8), col(h->nnz / (h->block_rows * h->block_cols) * 4);
        const Fenced values(h->nnz * dtype_bytes(h->dtype)), scales(h->n * 4);
        unpack(h, reinterpret_cast<int64_t*>(crow.data()), reinterpret_cast<int32_t*>(col.data()), values.data(),
               reinterpret_cast<float*>(scales.data()));
      } catch (const std::invalid_argument&) {
        ++tested.refused;
      } catch (const std::exception& error) {
        fail(std::string(g_now) + ": " + error.what());
      }
    }
  }
}

void check_damage() {
  for (auto [n, k, r, c] : {std::array<int64_t, 4>{70, 200, 1, 1},
                            {1100, 24, 1, 1},
                            {72, 200, 4, 2},
                            {512, 40, 8, 2},
                            {72, 200, 4, 4},
                            {80, 200, 16, 1},
                            {96, 128, 16, 32}}) {
    Problem p = filled(n, k, 20, Values::kIntegers, 0.7, r, c);
    // Zeros, because a check that runs on into them meets nothing that it would refuse.
    std::fill(p.weight.begin(), p.weight.end(), 0.0);
    check_damage(p, k > 24);
  }
}

int main_(int argc, char** argv) {
  for (const RegisteredKernel& kernel : registry()) {
    if (kernel.available) g_tested.emplace_back(kernel);
  }
#if !defined(__SANITIZE_ADDRESS__)
  for (int signal : {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT}) std::signal(signal, crashed);
#endif
  check_tile_unit();
  check_sizes();
  check_extremes();
  check_empty_tiles();
  check_hostile();
  check_every_half();
  check_splits();
  check_parts();
  check_activations();
  check_bits();
  check_damage();
  check_convolutions();
  check_bad_convolutions();
  check_networks();
  check_attention();
  check_windows();

  const bool any = std::any_of(g_tested.begin(), g_tested.end(), [](Tested& t) { return t.checks["networks"] > 0; });
  if (!any) fail("no network ran");
  std::set<std::string> levels;
  int64_t products = 0, round_trips = 0, damaged = 0, refused = 0;
  for (const Tested& t : g_tested) {
    levels.insert(t.kernel.kernel.isa);
    products += t.products, round_trips += t.round_trips, damaged += t.damaged, refused += t.refused;
    for (const char* name : {"tokens", "empty", "rows", "columns", "NaN and infinity", "reals", "splits", "parts",
                             "activations", "round trip", "damage"}) {
      if (t.checks.count(name) == 0) fail(std::string(t.kernel.kernel.name) + ": did not run: " + name);
    }
    if (t.kernel.kernel.takes_conv && t.checks.count("convolutions") == 0) {
      fail(std::string(t.kernel.kernel.name) + ": did not run: convolutions");
    }
    if (t.refused == 0 || t.refused == t.damaged) fail(std::string(t.kernel.kernel.name) + ": damage had no effect");
  }
  for (int i = 1; i < argc; ++i) {
    if (levels.count(argv[i]) == 0) fail(std::string("no kernel ran at level ") + argv[i]);
  }
  std::string names;
  for (const std::string& level : levels) names += " " + level;
  std::printf(
      "native tests: %zu kernels at%s; %lld products, %lld round trips, %lld damaged packings (%lld refused): %s\n",
      g_tested.size(), names.c_str(), static_cast<long long>(products), static_cast<long long>(round_trips),
      static_cast<long long>(damaged), static_cast<long long>(refused),
      g_failures == 0 ? "ok" : (std::to_string(g_failures) + " FAILED").c_str());
  return g_failures == 0 && !g_tested.empty() ? 0 : 1;
}

}  // namespace
}  // namespace native_tests

int main(int argc, char** argv) { return native_tests::main_(argc, argv); }
