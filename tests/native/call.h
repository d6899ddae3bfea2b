// One call of a kernel, in memory where a step outside of what it may read or write shows.
#pragma once

#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "fenced.h"
#include "problem.h"
#include "sparseinfer/registry.h"
#include "sparseinfer/spmm.h"

namespace native_tests {

using namespace sparseinfer;

enum class Bias { kNone, kF32, kAsX };

// How the work is cut: in one piece, in several, or piece by piece from the last to the first.
constexpr int kBackwards = -1;

struct Call {
  const RegisteredKernel& kernel;
  const Problem& problem;
  const PackingHeader* packed;
  DType x_dtype;  // of x and of y; kernels of bf16 pairs round x to bf16
  int64_t m;
  Bias bias = Bias::kNone;
  Activation activation = Activation::kNone;
  int parts = 1;

  DType kernel_x() const { return packed->storage == Storage::kBF16 ? DType::kBF16 : x_dtype; }
  DType bias_dtype() const { return bias == Bias::kAsX ? x_dtype : DType::kF32; }
  std::string text() const {
    const char* biases[] = {"none", "f32", "as x"};
    std::string s = kernel.kernel.name;
    auto add = [&](const char* what, auto value) { s += std::string(" ") + what + "=" + std::to_string(value); };
    add("n", problem.n), add("k", problem.k), add("m", m);
    s += " block=" + std::to_string(problem.block_rows) + "x" + std::to_string(problem.block_cols);
    s += " sparsity=" + std::to_string(problem.sparsity).substr(0, 4);
    s += std::string(" weight=") + kWeightDTypeNames[static_cast<int>(packed->dtype)];
    s += std::string(" x=") + kDTypeNames[static_cast<int>(x_dtype)];
    s += std::string(" bias=") + biases[static_cast<int>(bias)];
    s += std::string(" activation=") + kActivationNames[static_cast<int>(activation)];
    add("panel", packed->panel), add("window", packed->window), add("steps", packed->steps);
    add("splits", packed->splits), add("parts", parts);
    return s;
  }
};

// y, with gaps between the rows.
class Output {
 public:
  explicit Output(const Call& call)
      : n_(call.problem.n),
        ldy_(n_ + 3),
        dtype_(call.x_dtype),
        memory_(call.m > 0 ? ((call.m - 1) * ldy_ + n_) * dtype_bytes(dtype_) : 0) {}
  char* data() const { return memory_.data(); }
  int64_t ldy() const { return ldy_; }
  double at(int64_t token, int64_t row) const {
    return decode(get_bits(memory_.data(), token * ldy_ + row, dtype_), dtype_);
  }
  bool gaps_untouched() const {
    const int64_t size = dtype_bytes(dtype_);
    for (int64_t gap = n_ * size; gap < memory_.size(); gap += ldy_ * size) {
      if (!memory_.untouched(gap, gap + 3 * size)) return false;
    }
    return true;
  }
  bool operator==(const Output& other) const {
    return memory_.size() == other.memory_.size() &&
           std::memcmp(memory_.data(), other.memory_.data(), static_cast<size_t>(memory_.size())) == 0;
  }

 private:
  int64_t n_, ldy_;
  DType dtype_;
  Fenced memory_;
};

// x, with NaN between the rows.
inline Fenced lay_out_x(const Call& call, int64_t ldx) {
  const int64_t k = call.problem.k, count = call.m > 0 ? (call.m - 1) * ldx + k : 0;
  const DType dtype = call.x_dtype;
  Fenced x(count * dtype_bytes(dtype));
  const std::vector<uint32_t>& bits = call.problem.x_bits(dtype);
  for (int64_t t = 0; t < call.m; ++t) {
    for (int64_t c = 0; c < k; ++c) put_bits(x.data(), t * ldx + c, dtype, bits[static_cast<size_t>(t * k + c)]);
  }
  return x;
}

inline SpmmArgs arguments(const Call& call, const char* x, char* y, const char* bias) {
  SpmmArgs args{};
  args.x = x;
  args.y = y;
  args.bias = call.bias == Bias::kNone ? nullptr : bias;
  args.w = call.packed;
  args.m = call.m;
  args.dtype = call.x_dtype;
  args.bias_dtype = call.bias_dtype();
  args.activation = call.activation;
  return args;
}

// Throws where something was written behind workspace or scratch.
inline void run(const Call& call, SpmmArgs args) {
  const SpmmKernel& kernel = call.kernel.kernel;
  const int64_t workspace_bytes = kernel.workspace_bytes(args), scratch_bytes = kernel.scratch_bytes(args);
  if (call.parts != kBackwards) {
    // What an earlier call has left there must not be read.
    std::memset(thread_scratch(ScratchSlot::kWorkspace, workspace_bytes), 0xff, static_cast<size_t>(workspace_bytes));
    std::memset(thread_scratch(ScratchSlot::kThread, scratch_bytes), 0xff, static_cast<size_t>(scratch_bytes));
    run_spmm(kernel, args, Spread{call.parts});
  } else if (call.m > 0 && call.problem.n > 0) {
    const Fenced workspace((workspace_bytes + 63) / 64 * 64), scratch((scratch_bytes + 63) / 64 * 64);
    args.workspace = workspace.data();
    for (int64_t i = kernel.prepare_items(args) - 1; i >= 0; --i) kernel.prepare(args, i, i + 1);
    for (int64_t i = call.packed->splits - 1; i >= 0; --i) kernel.run(args, i, i + 1, scratch.data());
    if (!workspace.untouched(workspace_bytes, workspace.size())) throw std::runtime_error("wrote behind its workspace");
    if (!scratch.untouched(scratch_bytes, scratch.size())) throw std::runtime_error("wrote behind its scratch");
  }
}

// The product. Throws where something was written that is not the kernel's.
inline Output run(const Call& call) {
  const int64_t ldx = call.problem.k + 5, n = call.problem.n;
  const Fenced x = lay_out_x(call, ldx), bias(n * dtype_bytes(call.bias_dtype()));
  for (int64_t r = 0; r < n; ++r) {
    put_bits(bias.data(), r, call.bias_dtype(), encode(call.problem.bias[static_cast<size_t>(r)], call.bias_dtype()));
  }
  Output y(call);
  SpmmArgs args = arguments(call, x.data(), y.data(), bias.data());
  args.ldx = ldx;
  args.ldy = y.ldy();
  run(call, args);
  if (!y.gaps_untouched()) throw std::runtime_error("wrote between the rows of y");
  return y;
}

// Whether the same product, with the rows of W cut into matrices of their own, has the bits of `whole`: those that bit
// i % 64 of `wanted` asks for, each in memory that ends with it, and nothing of the others.
inline bool same_in_parts(const Call& call, const Output& whole, const std::vector<int64_t>& sizes, uint64_t wanted) {
  const int64_t ldx = call.problem.k + 5, n = call.problem.n, bytes = dtype_bytes(call.x_dtype);
  const Fenced x = lay_out_x(call, ldx), bias(n * dtype_bytes(call.bias_dtype()));
  for (int64_t r = 0; r < n; ++r) {
    put_bits(bias.data(), r, call.bias_dtype(), encode(call.problem.bias[static_cast<size_t>(r)], call.bias_dtype()));
  }
  std::vector<Fenced> ys;
  std::vector<OutputPart> parts;
  int64_t row = 0;
  for (size_t i = 0; i < sizes.size(); row += sizes[i++]) {
    ys.emplace_back(call.m * sizes[i] * bytes);
    parts.push_back({(wanted >> i % 64 & 1) != 0 ? ys.back().data() : nullptr, row, sizes[i]});
  }
  SpmmArgs args = arguments(call, x.data(), nullptr, bias.data());
  args.ldx = ldx;
  run_spmm(call.kernel.kernel, args, Spread{call.parts}, parts);
  for (size_t i = 0; i < parts.size(); ++i) {
    if (parts[i].y == nullptr) {
      if (!ys[i].untouched(0, ys[i].size())) return false;
      continue;
    }
    for (int64_t t = 0; t < call.m; ++t) {
      for (int64_t r = 0; r < parts[i].rows; ++r) {
        const uint32_t got = get_bits(ys[i].data(), t * parts[i].rows + r, call.x_dtype);
        if (got != get_bits(whole.data(), t * whole.ldy() + parts[i].row + r, call.x_dtype)) return false;
      }
    }
  }
  return true;
}

}  // namespace native_tests
