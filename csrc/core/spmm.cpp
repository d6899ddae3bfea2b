#include "sparseinfer/spmm.h"

#include <algorithm>
#include <atomic>
#include <new>

#include "sparseinfer/memory.h"

namespace sparseinfer {
namespace {

// The repacked x of one pass; 16 MB keeps it in a server's last-level cache and holds 1024 tokens of 4096 columns.
constexpr int64_t kMaxWorkspace = int64_t{16} << 20;
constexpr int64_t kPassTokens = 64;  // passes are cut at multiples of the widest tile

// Below this many multiply-adds a parallel region (5-12 us) costs more than a second core saves.
constexpr double kSerialWork = 1.0e6;

// The same for copying x, in elements.
constexpr int64_t kSerialPrepare = int64_t{1} << 16;

// There are two ways to share work. Threads may split the rows of W over one repacked x, which is written to and read
// from the last-level cache by all of them. Or each takes tokens of its own and multiplies all rows by them, and its x
// never leaves its L2. At 64 rows of density 0.2, usual in convolutions, an element of x is multiplied 13 times, 0.4
// cycles of two cores with vectors of 16, and its 6 bytes a core come and go in 0.23 (98 GB/s at 3.7 GHz on Zen 4). The
// second way is taken for as many tokens as come out even, this many tiles a thread or more, and the rest goes the
// first way. Linear layers have more rows, so x matters less.
constexpr int64_t kOwnTilesConv = 2, kOwnTiles = 4;
constexpr int64_t kMaxOwnWorkspace = int64_t{4} << 20;  // beyond it no L2 holds the tile, and every thread keeps one

struct Region {
  const SpmmKernel* kernel;
  const SpmmArgs* args;
  std::atomic<bool> out_of_memory{false};
};

// From the first element of y to behind the last.
int64_t y_bytes(const SpmmArgs& args) {
  const int64_t rows = args.conv != nullptr ? args.conv->batch - 1 : args.m - 1;
  const int64_t last = args.conv != nullptr ? args.w->n * args.conv->out_h * args.conv->out_w : args.w->n;
  const int64_t step = args.conv != nullptr ? args.conv->y_image : args.ldy;
  return (rows * step + last) * dtype_bytes(args.dtype);
}

// Tokens [first, first + count) of a call.
SpmmArgs tokens_of(SpmmArgs args, int64_t first, int64_t count) {
  args.m = count;
  if (args.conv != nullptr) {
    args.first_token += first;
  } else {
    args.x = static_cast<const char*>(args.x) + first * args.ldx * dtype_bytes(args.dtype);
    args.y = static_cast<char*>(args.y) + first * args.ldy * dtype_bytes(args.dtype);
  }
  return args;
}

void prepare_range(int64_t begin, int64_t end, void* ctx) {
  const Region& region = *static_cast<Region*>(ctx);
  region.kernel->prepare(*region.args, begin, end);
}

void run_range(int64_t begin, int64_t end, void* ctx) {
  Region& region = *static_cast<Region*>(ctx);
  try {
    char* scratch = thread_scratch(ScratchSlot::kThread, region.kernel->scratch_bytes(*region.args));
    region.kernel->run(*region.args, begin, end, scratch);
  } catch (const std::bad_alloc&) {
    region.out_of_memory = true;
  }
}

// Passes [begin, end) from repacking x to y.
void run_passes(int64_t begin, int64_t end, void* ctx) {
  Region& region = *static_cast<Region*>(ctx);
  const SpmmKernel& kernel = *region.kernel;
  try {
    for (int64_t pass = begin; pass < end; ++pass) {
      SpmmArgs args = tokens_of(*region.args, pass * kPassTokens, kPassTokens);
      args.workspace = thread_scratch(ScratchSlot::kWorkspace, kernel.workspace_bytes(args));
      char* scratch = thread_scratch(ScratchSlot::kThread, kernel.scratch_bytes(args));
      kernel.prepare(args, 0, kernel.prepare_items(args));
      kernel.run(args, 0, args.w->splits, scratch);
    }
  } catch (const std::bad_alloc&) {
    region.out_of_memory = true;
  }
}

// How many passes the threads share, each from beginning to end: none, or the same number for every thread.
int64_t own_passes(const SpmmKernel& kernel, const SpmmArgs& args, int64_t pass_bytes, Spread spread) {
  const bool cut_alike = kernel.tile_tokens > 0 && kPassTokens % kernel.tile_tokens == 0;
  if (!cut_alike || pass_bytes > kMaxOwnWorkspace) return 0;
  const int64_t ranges = num_ranges(spread), each = args.m / kPassTokens / ranges;
  return each >= (args.conv != nullptr ? kOwnTilesConv : kOwnTiles) ? each * ranges : 0;
}

}  // namespace

void run_spmm(const SpmmKernel& kernel, const SpmmArgs& call, Spread spread) {
  const int64_t tokens = call.m;
  if (tokens == 0 || call.w->n == 0) return;
  // y has just been allocated, and large ones come straight from the system.
  prefer_huge_pages(call.y, y_bytes(call));
  const double work = static_cast<double>(tokens) * static_cast<double>(call.w->nnz + call.w->n);
  if (spread.parts == 0 && work < kSerialWork) spread = Spread::serial();

  const int64_t pass_bytes =
      std::max<int64_t>(1, kernel.workspace_bytes(tokens_of(call, 0, std::min(tokens, kPassTokens))));
  const int64_t own = own_passes(kernel, call, pass_bytes, spread);
  if (own > 0) {
    Region region{&kernel, &call};
    parallel_for(own, spread, run_passes, &region);
    if (region.out_of_memory) throw std::bad_alloc();
  }

  const int64_t pass = kPassTokens * std::max<int64_t>(1, kMaxWorkspace / pass_bytes);
  for (int64_t done = own * kPassTokens; done < tokens; done += pass) {
    SpmmArgs args = tokens_of(call, done, std::min(pass, tokens - done));
    args.workspace = thread_scratch(ScratchSlot::kWorkspace, kernel.workspace_bytes(args));
    Region region{&kernel, &args};
    const bool small = spread.parts == 0 && args.m * args.w->k < kSerialPrepare;
    parallel_for(kernel.prepare_items(args), small ? Spread::serial() : spread, prepare_range, &region);
    parallel_for(args.w->splits, spread, run_range, &region);
    if (region.out_of_memory) throw std::bad_alloc();
  }
}

}  // namespace sparseinfer
