// The kernels under test and what has been tested of them.
#pragma once

#include <cstdio>
#include <functional>
#include <map>

#include "call.h"
#include "sparseinfer/pack.h"

namespace native_tests {
namespace {

// What is under way, for the message of a crash.
char g_now[512];

template <class Enum, int N>
Enum parse(const char* name, const char* const (&names)[N]) {
  for (int i = 0; i < N; ++i) {
    if (std::strcmp(name, names[i]) == 0) return static_cast<Enum>(i);
  }
  throw std::invalid_argument(std::string("unknown ") + name);
}

struct Tested {
  const RegisteredKernel& kernel;
  PackingKind kind;
  Storage storage;
  int64_t products = 0, round_trips = 0, damaged = 0, refused = 0;
  std::map<std::string, int64_t> checks;
  int64_t turn = 0;

  explicit Tested(const RegisteredKernel& k)
      : kernel(k),
        kind(parse<PackingKind>(k.kernel.packing, kPackingNames)),
        storage(parse<Storage>(k.kernel.storage, kStorageNames)) {}

  std::vector<DType> weight_dtypes() const {
    std::vector<DType> list;
    for (DType d : {DType::kF32, DType::kBF16, DType::kF16, DType::kI8}) {
      if (storage_holds(storage, d)) list.push_back(d);
    }
    return list;
  }
  std::vector<DType> x_dtypes() const {
    if (storage == Storage::kBF16) return {DType::kBF16, DType::kF32};
    return {DType::kF32, DType::kBF16, DType::kF16};
  }
  bool is_int8() const { return storage == Storage::kI8 || storage == Storage::kWI8; }
  bool takes(const Problem& p) const {
    if (is_int8() && !p.int8) return false;
    if (packing_format(kind) == std::string("csr")) return p.block_rows * p.block_cols == 1;
    return p.block_rows % block_rows(kind) == 0 && p.block_cols % block_columns(kind, storage) == 0;
  }
};

std::vector<Tested> g_tested;
int g_failures = 0;

void fail(const std::string& text) {
  if (++g_failures <= 20) std::fprintf(stderr, "FAILED %s\n", text.c_str());
}

// One call, and each of its values: `wanted` from the exact sum with the bias, `allowed` the error before the rounding
// of the dtype.
using Function = std::function<double(double)>;
void check(Tested& tested, const char* name, const Call& call, const Function& wanted, const Function& allowed) {
  const Problem& p = call.problem;
  std::snprintf(g_now, sizeof g_now, "%s", call.text().c_str());
  ++tested.products;
  ++tested.checks[name];
  std::vector<double> bias(static_cast<size_t>(p.n), 0.0);
  for (size_t r = 0; r < bias.size() && call.bias != Bias::kNone; ++r) {
    bias[r] = rounded(p.bias[r], call.bias_dtype());
  }
  try {
    const Output y = run(call);
    for (int64_t t = 0; t < call.m; ++t) {
      for (int64_t r = 0; r < p.n; ++r) {
        const auto i = static_cast<size_t>(t * p.n + r);
        const double scale = tested.is_int8() ? scale_of(r) : 1.0, got = y.at(t, r);
        const bool rounds = tested.storage == Storage::kI8, odd = rounds && p.odd[static_cast<size_t>(t)];
        const double sum = odd ? std::nan("") : p.sums[i] * scale + bias[static_cast<size_t>(r)], exact = wanted(sum);
        if (got == exact || (std::isnan(got) && std::isnan(exact))) continue;
        const double error = std::fabs(got - exact),
                     bound = (p.bounds[i] + (rounds ? p.coarse[i] : 0.0)) * scale + allowed(sum);
        if (got == rounded(exact, call.x_dtype)) continue;
        if (bound > 0.0 && error <= bound + rounding(call.x_dtype) * std::fabs(exact)) continue;
        // Instructions for bf16 take and give zero for subnormal numbers.
        if (call.kernel_x() == DType::kBF16 && std::fabs(exact) < 0x1p-126 && got == 0.0) continue;
        return fail(std::string(name) + ": " + call.text() + ": y[" + std::to_string(t) + ", " + std::to_string(r) +
                    "] expected " + std::to_string(exact) + ", got " + std::to_string(got));
      }
    }
  } catch (const std::exception& error) {
    fail(std::string(name) + ": " + call.text() + ": " + error.what());
  }
}

double same(double v) { return v; }
double none(double) { return 0.0; }

Fenced packed(const Tested& tested, const Format& format, Isa isa, int64_t panel = 0, int64_t max_splits = 64) {
  std::snprintf(g_now, sizeof g_now, "packing for %s", tested.kernel.kernel.name);
  PackOptions options;
  options.storage = tested.storage;
  options.isa = isa;
  options.panel = panel;
  options.max_splits = max_splits;
  const Blob blob = pack(tested.kind, format.view(), options);
  return {blob.data(), blob.size()};
}

const PackingHeader* header(const Fenced& blob) { return check_packing(blob.data(), blob.size()); }

void check_round_trip(Tested& tested, const Format& format, const Fenced& blob) {
  const PackingHeader* h = header(blob);
  ++tested.round_trips;
  ++tested.checks["round trip"];
  std::vector<int64_t> crow(format.crow.size(), -1);
  std::vector<int32_t> col(format.col.size(), -1);
  std::vector<char> values(format.values.size(), 0x5a);
  std::vector<float> scales(format.scales.size(), -1.0f);
  unpack(h, crow.data(), col.data(), values.data(), scales.data());
  const bool same_scales = scales == format.scales;
  if (h->nnz == format.nnz() && crow == format.crow && col == format.col && values == format.values && same_scales)
    return;
  size_t i = 0;
  while (i < values.size() && values[i] == format.values[i]) ++i;
  fail(std::string("round trip: ") + tested.kernel.kernel.name + " n=" + std::to_string(format.n) +
       " k=" + std::to_string(format.k) + " nnz=" + std::to_string(format.nnz()) + ": byte " + std::to_string(i) +
       " of the values, or an index");
}

// Packs a problem in every way that makes a difference to a kernel and calls f(header, dtype of x).
template <class F>
void for_packings(Tested& tested, const Problem& p, bool all_dtypes, const std::vector<int64_t>& panels,
                  int64_t max_splits, F f) {
  std::vector<std::pair<DType, DType>> dtypes;
  for (DType w : tested.weight_dtypes()) {
    for (DType x : tested.x_dtypes()) dtypes.emplace_back(w, x);
  }
  if (!all_dtypes) dtypes = {dtypes[static_cast<size_t>(tested.turn++) % dtypes.size()]};
  // A packing made for one level may be read at another.
  std::vector<Isa> isas{tested.kernel.isa};
  if (tested.kind == PackingKind::kSell ||
      (tested.kind == PackingKind::kBsr && (tested.storage == Storage::kBF16 || tested.storage == Storage::kI8))) {
    for (int i = 0; i < kNumIsas; ++i) {
      if (static_cast<Isa>(i) != tested.kernel.isa) isas.push_back(static_cast<Isa>(i));
    }
  }
  const bool has_panels =
      tested.kind == PackingKind::kRowgroup || tested.kind == PackingKind::kRowlist ||
      (tested.kind == PackingKind::kBsr && p.block_cols > 1) ||
      ((tested.kind == PackingKind::kGrouplist || tested.kind == PackingKind::kGrouptile) && p.block_cols == 1);
  for (auto [w, x] : dtypes) {
    const Format format(p, w);
    for (Isa isa : isas) {
      for (int64_t panel : has_panels ? panels : std::vector<int64_t>{0}) {
        const Fenced blob = packed(tested, format, isa, panel, max_splits);
        check_round_trip(tested, format, blob);
        f(header(blob), x);
      }
    }
  }
}

}  // namespace
}  // namespace native_tests
