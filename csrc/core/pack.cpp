#include "sparseinfer/pack.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <stdexcept>
#include <string>

#include "pack_streams.h"
#include "sparseinfer/halves.h"
#include "sparseinfer/memory.h"
#include "sparseinfer/parallel.h"
#include "sparseinfer/row_split.h"

namespace sparseinfer {
namespace {

int64_t align(int64_t bytes) { return (bytes + kPackingAlign - 1) / kPackingAlign * kPackingAlign; }

// What is particular to a kind of packing.
struct Traits {
  int64_t row_multiple;                          // splits begin at multiples of this many rows
  int64_t min_rows;                              // below this a split has too few rows to be worth a thread's trouble
  int64_t panel;                                 // columns, where the caller does not choose
  int64_t count_bytes, row_bytes, offset_bytes;  // of one element of these sections
  PackSplit pack_split[2];                       // of 4-byte and 2-byte payloads
};

Traits traits(PackingKind kind, const SparseView& w, Storage storage) {
  // Measured on Zen 4. x[128 columns][64 tokens] of fp32 and the streams share an L1 of 32 KB. In pairs two loads of x
  // feed four multiplies, and fewer, longer lists are worth more than an L1 that holds them. Blocks read x in long
  // runs, which come from L2 as fast as they are multiplied.
  const int64_t panel = storage == Storage::kBF16 ? 384 : 128, block_panel = 768;
  switch (kind) {
    case PackingKind::kRowgroup:
      return {kGroupRows,
              16,
              panel,
              sizeof(PatternCounts),
              1,
              2,
              {pack_rowgroup_split<uint32_t>, pack_rowgroup_split<uint16_t>}};
    case PackingKind::kRowlist:
      // More rows in a cell mean longer runs of equal length.
      return {1, 128, panel, sizeof(Run), 2, 2, {pack_rowlist_split<uint32_t>, pack_rowlist_split<uint16_t>}};
    case PackingKind::kSell:
      return {
          kSliceRows, 32, std::max<int64_t>(1, w.k), 4, 4, 1, {pack_sell_split<uint32_t>, pack_sell_split<uint16_t>}};
    case PackingKind::kBitmap:
      return {1, 32, std::max<int64_t>(1, w.k), 1, 8, 1, {pack_bitmap_split<uint32_t>, pack_bitmap_split<uint16_t>}};
    case PackingKind::kBsr:
      return {strip_rows(w.block_rows),
              16,
              std::max<int64_t>(1, std::min<int64_t>(255, block_panel / w.block_cols)) * w.block_cols,
              1,
              1,
              1,
              {pack_bsr_split<uint32_t>, pack_bsr_split<uint16_t>}};
    case PackingKind::kCsr:
      break;
  }
  return {1, 1, 1, 8, 1, 4, {nullptr, nullptr}};
}

// The widest panel that a packing can have: it is cut by the offsets' range and by the steps of its counts.
int64_t widest_panel(PackingKind kind, const SparseView& w, int64_t standard) {
  if (kind == PackingKind::kSell || kind == PackingKind::kBitmap) return standard;
  return kind == PackingKind::kBsr ? std::max(255 * w.block_cols, standard) : kMaxPanel;
}

std::vector<int64_t> row_bounds(const SparseView& w, const Traits& t, int64_t max_splits) {
  std::vector<int64_t> work(static_cast<size_t>((w.n + t.row_multiple - 1) / t.row_multiple));
  for (size_t g = 0; g < work.size(); ++g) {
    const int64_t begin = static_cast<int64_t>(g) * t.row_multiple, end = std::min(w.n, begin + t.row_multiple);
    work[g] = 8 * t.row_multiple;  // a row costs its epilogue even when it is empty
    for (int64_t r = begin; r < end; ++r) work[g] += w.crow[r / w.block_rows + 1] - w.crow[r / w.block_rows];
  }
  std::vector<int64_t> bounds =
      split_rows(work, max_splits, std::max<int64_t>(1, t.min_rows / t.row_multiple), kMaxSplitRows / t.row_multiple);
  for (int64_t& b : bounds) b = std::min(w.n, b * t.row_multiple);
  return bounds;
}

// Assigns section offsets one after another.
class Layout {
 public:
  int64_t add(int64_t bytes) {
    const int64_t offset = size_;
    size_ = align(size_ + bytes);
    return offset;
  }
  int64_t size() const { return size_; }

 private:
  int64_t size_ = align(sizeof(PackingHeader));
};

PackingHeader make_header(PackingKind kind, const SparseView& w, DType dtype, Storage storage,
                          const std::vector<int64_t>& bounds) {
  PackingHeader h{};
  h.magic = kPackingMagic;
  h.kind = kind;
  h.dtype = dtype;
  h.storage = storage;
  h.n = w.n;
  h.k = w.k;
  h.nnz = w.nnz;
  h.block_rows = w.block_rows;
  h.block_cols = w.block_cols;
  h.splits = static_cast<int64_t>(bounds.size()) - 1;
  return h;
}

template <class T>
void write(const Blob& blob, int64_t offset, const T* data, size_t count) {
  if (count > 0) std::memcpy(blob.data() + offset, data, count * sizeof(T));
}

Blob pack_csr(const SparseView& w, PackingHeader h, const std::vector<int64_t>& bounds) {
  Layout layout;
  h.units = w.nnz;
  h.split_rows = layout.add(static_cast<int64_t>(bounds.size()) * 8);
  h.counts = layout.add((w.n + 1) * 8);
  h.offsets = layout.add(w.nnz * 4);
  h.values = layout.add(w.nnz * 4);
  h.bytes = layout.size();
  Blob blob(h.bytes);
  write(blob, 0, &h, 1);
  write(blob, h.split_rows, bounds.data(), bounds.size());
  write(blob, h.counts, w.crow, static_cast<size_t>(w.n + 1));
  write(blob, h.offsets, w.col, static_cast<size_t>(w.nnz));
  write(blob, h.values, static_cast<const uint32_t*>(w.values), static_cast<size_t>(w.nnz));
  return blob;
}

struct PackJob {
  const PackingHeader* header;
  const SparseView* view;
  PackSplit pack_split;
  const std::vector<int64_t>* bounds;
  std::vector<SplitStreams>* streams;
  std::atomic<bool> out_of_memory{false};
};

void pack_range(int64_t begin, int64_t end, void* ctx) {
  auto& job = *static_cast<PackJob*>(ctx);
  try {
    for (int64_t s = begin; s < end; ++s) {
      const auto i = static_cast<size_t>(s);
      job.pack_split(*job.header, *job.view, (*job.bounds)[i], (*job.bounds)[i + 1], (*job.streams)[i]);
    }
  } catch (const std::bad_alloc&) {
    job.out_of_memory = true;
  }
}

// Where each split's streams lie in the finished blob, in bytes of each section.
struct CopyJob {
  const Blob* blob;
  const PackingHeader* header;
  std::vector<SplitStreams>* streams;
  std::vector<Cell> starts;
};

void copy_range(int64_t begin, int64_t end, void* ctx) {
  auto& job = *static_cast<CopyJob*>(ctx);
  for (int64_t s = begin; s < end; ++s) {
    SplitStreams& from = (*job.streams)[static_cast<size_t>(s)];
    const Cell& to = job.starts[static_cast<size_t>(s)];
    const PackingHeader& h = *job.header;
    write(*job.blob, h.counts + to.counts, from.counts.data(), static_cast<size_t>(from.counts.size()));
    write(*job.blob, h.rows + to.rows, from.rows.data(), static_cast<size_t>(from.rows.size()));
    write(*job.blob, h.offsets + to.offsets, from.offsets.data(), static_cast<size_t>(from.offsets.size()));
    write(*job.blob, h.values + to.values, from.values.data(), static_cast<size_t>(from.values.size()));
    from = SplitStreams{};
  }
}

struct WidenJob {
  const SparseView* view;
  float* out;
};

void widen_range(int64_t begin, int64_t end, void* ctx) {
  const auto& job = *static_cast<WidenJob*>(ctx);
  constexpr int64_t kStep = 1 << 16;
  for (int64_t i = begin * kStep; i < std::min(job.view->nnz, end * kStep); ++i) {
    job.out[i] = job.view->dtype == DType::kBF16 ? widen(static_cast<const BF16*>(job.view->values)[i])
                                                 : widen(static_cast<const F16*>(job.view->values)[i]);
  }
}

void check_view(PackingKind kind, const SparseView& w, Storage storage) {
  if (!storage_holds(storage, w.dtype)) {
    throw std::invalid_argument(std::string("storage: expected one that holds ") +
                                kDTypeNames[static_cast<int>(w.dtype)] + " values exactly, got " +
                                kStorageNames[static_cast<int>(storage)]);
  }
  const bool widened = storage == Storage::kWBF16 || storage == Storage::kWF16;
  const bool few_tokens = kind == PackingKind::kSell || kind == PackingKind::kBitmap;
  if ((widened && !few_tokens) || (kind == PackingKind::kCsr && storage != Storage::kF32)) {
    throw std::invalid_argument(std::string("storage: expected one that packing ") +
                                kPackingNames[static_cast<int>(kind)] + " has kernels for, got " +
                                kStorageNames[static_cast<int>(storage)]);
  }
  const int64_t limit = std::numeric_limits<int32_t>::max();
  if (w.n < 0 || w.k < 0 || w.n > limit || w.k > limit)
    throw std::invalid_argument("shape: expected sizes in [0, 2**31)");
  const bool blocks = kind == PackingKind::kBsr;
  if (w.block_rows < 1 || w.block_cols < 1 || (!blocks && w.block_rows * w.block_cols != 1)) {
    throw std::invalid_argument(std::string("packing ") + kPackingNames[static_cast<int>(kind)] +
                                ": expected a csr format, got blocks");
  }
  if (w.n % w.block_rows != 0 || w.k % w.block_cols != 0)
    throw std::invalid_argument("block_size: expected one that divides the shape");
  if (blocks && w.block_cols % columns_per_step(storage) != 0)
    throw std::invalid_argument("block_size: expected an even number of columns for storage bf16");
  check_compressed(w.crow, w.col, w.n / w.block_rows, w.k / w.block_cols, w.nnz / (w.block_rows * w.block_cols));
}

}  // namespace

Blob::Blob(int64_t bytes) : data_(nullptr), size_(bytes) {
  // Weights are read from end to end at every call.
  const bool huge = bytes >= 2 * kHugePage;
  const auto alignment = static_cast<size_t>(huge ? kHugePage : kPackingAlign);
  const size_t rounded = (static_cast<size_t>(std::max<int64_t>(1, bytes)) + alignment - 1) / alignment * alignment;
  data_ = static_cast<char*>(std::aligned_alloc(alignment, rounded));
  if (data_ == nullptr) throw std::bad_alloc();
  prefer_huge_pages(data_, static_cast<int64_t>(rounded));
  std::memset(data_, 0, static_cast<size_t>(bytes));
}
Blob::~Blob() { std::free(data_); }
Blob::Blob(Blob&& other) noexcept : data_(other.data_), size_(other.size_) { other.data_ = nullptr; }

Blob pack(PackingKind kind, const SparseView& given, const PackOptions& options) {
  check_view(kind, given, options.storage);
  SparseView w = given;
  std::vector<float> widened;
  if (options.storage == Storage::kF32 && given.dtype != DType::kF32) {
    widened.resize(static_cast<size_t>(given.nnz));
    WidenJob job{&given, widened.data()};
    parallel_for((given.nnz >> 16) + 1, Spread::pool(), widen_range, &job);
    w.values = widened.data();
  }
  const Traits t = traits(kind, w, options.storage);
  const std::vector<int64_t> bounds = row_bounds(w, t, std::max<int64_t>(1, options.max_splits));
  PackingHeader h = make_header(kind, w, given.dtype, options.storage, bounds);
  if (kind == PackingKind::kCsr) return pack_csr(w, h, bounds);

  h.panel = options.panel > 0 ? options.panel : t.panel;
  const int64_t widest = widest_panel(kind, w, t.panel);
  if (h.panel > widest || h.panel % w.block_cols != 0) {
    throw std::invalid_argument("panel: expected at most " + std::to_string(widest) + " columns in whole blocks, got " +
                                std::to_string(h.panel));
  }
  h.panels = (w.k + h.panel - 1) / h.panel;
  if (kind == PackingKind::kSell) choose_sell_window(w, options.isa, h);

  std::vector<SplitStreams> streams(static_cast<size_t>(h.splits));
  const int64_t value_bytes = payload_bytes(h.storage);
  PackJob job{&h, &w, t.pack_split[value_bytes == 2], &bounds, &streams};
  parallel_for(h.splits, Spread::pool(), pack_range, &job);
  if (job.out_of_memory) throw std::bad_alloc();

  std::vector<Cell> cells;
  cells.reserve(static_cast<size_t>(h.splits * h.panels + 1));
  CopyJob copy{nullptr, &h, &streams, {}};
  Cell at{};  // in bytes
  auto elements = [&](const Cell& bytes) {
    return Cell{bytes.values / value_bytes, bytes.offsets / t.offset_bytes, bytes.counts / t.count_bytes,
                bytes.rows / t.row_bytes};
  };
  for (const SplitStreams& s : streams) {
    const Cell start = elements(at);
    for (const Cell& c : s.cells) {
      cells.push_back(
          {start.values + c.values, start.offsets + c.offsets, start.counts + c.counts, start.rows + c.rows});
    }
    copy.starts.push_back(at);
    at.values += s.values.size();
    at.offsets += s.offsets.size();
    at.counts += s.counts.size();
    at.rows += s.rows.size();
  }
  cells.push_back(elements(at));

  Layout layout;
  h.units = elements(at).offsets;
  h.split_rows = layout.add(static_cast<int64_t>(bounds.size()) * 8);
  h.cells = layout.add(static_cast<int64_t>(cells.size() * sizeof(Cell)));
  h.counts = layout.add(at.counts);
  h.rows = layout.add(at.rows);
  h.offsets = layout.add(at.offsets);
  h.values = layout.add(at.values + kValuesSlack);
  h.bytes = layout.size();
  Blob blob(h.bytes);
  write(blob, 0, &h, 1);
  write(blob, h.split_rows, bounds.data(), bounds.size());
  write(blob, h.cells, cells.data(), cells.size());
  copy.blob = &blob;
  parallel_for(h.splits, Spread::pool(), copy_range, &copy);
  return blob;
}

}  // namespace sparseinfer
