#include "sparseinfer/spmm.h"

#include <algorithm>
#include <atomic>
#include <new>

namespace sparseinfer {
namespace {

// The repacked x of one pass; 16 MB keeps it in a server's last-level cache and holds 1024 tokens of 4096 columns.
constexpr int64_t kMaxWorkspace = int64_t{16} << 20;
constexpr int64_t kPassTokens = 64;  // passes are cut at multiples of the widest tile

// Below this many multiply-adds a parallel region (5-12 us) costs more than a second core saves.
constexpr double kSerialWork = 1.0e6;

// The same for copying x, in elements.
constexpr int64_t kSerialPrepare = int64_t{1} << 16;

struct Region {
  const SpmmKernel* kernel;
  const SpmmArgs* args;
  std::atomic<bool> out_of_memory{false};
};

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

}  // namespace

void run_spmm(const SpmmKernel& kernel, SpmmArgs args, Spread spread) {
  const int64_t tokens = args.m;
  if (tokens == 0 || args.w->n == 0) return;
  const double work = static_cast<double>(tokens) * static_cast<double>(args.w->nnz + args.w->n);
  if (spread.parts == 0 && work < kSerialWork) spread = Spread::serial();

  args.m = std::min(tokens, kPassTokens);
  const int64_t per_pass = std::max<int64_t>(1, kernel.workspace_bytes(args));
  const int64_t pass = kPassTokens * std::max<int64_t>(1, kMaxWorkspace / per_pass);

  const char* x = static_cast<const char*>(args.x);
  char* y = static_cast<char*>(args.y);
  const int64_t element = dtype_bytes(args.x_dtype);
  for (int64_t done = 0; done < tokens; done += pass) {
    args.m = std::min(pass, tokens - done);
    args.x = x + done * args.ldx * element;
    args.y = y + done * args.ldy * element;
    args.workspace = thread_scratch(ScratchSlot::kWorkspace, kernel.workspace_bytes(args));
    Region region{&kernel, &args};
    const bool small = spread.parts == 0 && args.m * args.w->k < kSerialPrepare;
    parallel_for(kernel.prepare_items(args), small ? Spread::serial() : spread, prepare_range, &region);
    parallel_for(args.w->splits, spread, run_range, &region);
    if (region.out_of_memory) throw std::bad_alloc();
  }
}

}  // namespace sparseinfer
