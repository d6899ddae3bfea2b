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
#include "sparseinfer/parallel.h"
#include "sparseinfer/row_split.h"

namespace sparseinfer {
namespace {

int64_t align(int64_t bytes) { return (bytes + kPackingAlign - 1) / kPackingAlign * kPackingAlign; }

// What is particular to a kind of packing.
struct Traits {
  int64_t row_multiple;  // splits begin at multiples of this many rows
  int64_t min_rows;      // below this a split has too few rows to be worth a thread's trouble
  int64_t panel;         // units
  int64_t count_bytes;
  void (*pack_split)(const PackingHeader&, const SparseView&, int64_t, int64_t, SplitStreams&);
};

Traits traits(PackingKind kind, const SparseView& w) {
  switch (kind) {
    case PackingKind::kRowgroup:
      // One byte counts up to 255 units; x[128 units][64 tokens] is 32 KB, the L1 of current x86 cores.
      return {kGroupRows, 16, 128, sizeof(PatternCounts), pack_rowgroup_split};
    case PackingKind::kRowlist:
      // More rows in a cell mean longer runs of equal length.
      return {1, 128, 128, sizeof(Run), pack_rowlist_split};
    case PackingKind::kSell:
      return {kSliceRows, 32, std::max<int64_t>(1, w.k), 1, pack_sell_split};
    case PackingKind::kBsr:
      return {strip_rows(w.block_rows), 16, std::max<int64_t>(1, 128 / w.block_cols) * w.block_cols, 1, pack_bsr_split};
    case PackingKind::kCsr:
      break;
  }
  return {1, 1, 1, 8, nullptr};
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

PackingHeader make_header(PackingKind kind, const SparseView& w, const std::vector<int64_t>& bounds) {
  PackingHeader h{};
  h.magic = kPackingMagic;
  h.kind = kind;
  h.dtype = w.dtype;
  h.n = w.n;
  h.k = w.k;
  h.nnz = w.nnz;
  h.unit = 1;
  h.block_rows = w.block_rows;
  h.block_cols = w.block_cols;
  h.splits = static_cast<int64_t>(bounds.size()) - 1;
  return h;
}

template <class T>
void write(const Blob& blob, int64_t offset, const T* data, size_t count) {
  if (count > 0) std::memcpy(blob.data() + offset, data, count * sizeof(T));
}

Blob pack_csr(const SparseView& w, const std::vector<int64_t>& bounds) {
  PackingHeader h = make_header(PackingKind::kCsr, w, bounds);
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
  const Traits* traits;
  const std::vector<int64_t>* bounds;
  std::vector<SplitStreams>* streams;
  std::atomic<bool> out_of_memory{false};
};

void pack_range(int64_t begin, int64_t end, void* ctx) {
  auto& job = *static_cast<PackJob*>(ctx);
  try {
    for (int64_t s = begin; s < end; ++s) {
      const auto i = static_cast<size_t>(s);
      job.traits->pack_split(*job.header, *job.view, (*job.bounds)[i], (*job.bounds)[i + 1], (*job.streams)[i]);
    }
  } catch (const std::bad_alloc&) {
    job.out_of_memory = true;
  }
}

void check_view(PackingKind kind, const SparseView& w) {
  if (w.dtype != DType::kF32)
    throw std::invalid_argument(std::string("values: expected f32, got ") + kDTypeNames[static_cast<int>(w.dtype)]);
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
  check_compressed(w.crow, w.col, w.n / w.block_rows, w.k / w.block_cols, w.nnz / (w.block_rows * w.block_cols));
}

}  // namespace

Blob::Blob(int64_t bytes) : data_(nullptr), size_(bytes) {
  data_ =
      static_cast<char*>(std::aligned_alloc(kPackingAlign, static_cast<size_t>(align(std::max<int64_t>(1, bytes)))));
  if (data_ == nullptr) throw std::bad_alloc();
  std::memset(data_, 0, static_cast<size_t>(bytes));
}
Blob::~Blob() { std::free(data_); }
Blob::Blob(Blob&& other) noexcept : data_(other.data_), size_(other.size_) { other.data_ = nullptr; }

void read_row(const SparseView& w, int64_t row, UnitRow& out) {
  const int64_t begin = w.crow[row], end = w.crow[row + 1];
  const auto* values = static_cast<const uint32_t*>(w.values);
  out.units.assign(w.col + begin, w.col + end);
  out.payloads.assign(values + begin, values + end);
}

Blob pack(PackingKind kind, const SparseView& w, const PackOptions& options) {
  check_view(kind, w);
  const Traits t = traits(kind, w);
  const std::vector<int64_t> bounds = row_bounds(w, t, std::max<int64_t>(1, options.max_splits));
  if (kind == PackingKind::kCsr) return pack_csr(w, bounds);

  PackingHeader h = make_header(kind, w, bounds);
  h.panel = options.panel > 0 ? options.panel : t.panel;
  const int64_t widest = kind == PackingKind::kRowlist ? kMaxPanel : std::max<int64_t>(255, t.panel);
  if (h.panel > widest || h.panel % w.block_cols != 0) {
    throw std::invalid_argument("panel: expected at most " + std::to_string(widest) + " units in whole blocks, got " +
                                std::to_string(h.panel));
  }
  h.panels = (w.k + h.panel - 1) / h.panel;

  std::vector<SplitStreams> streams(static_cast<size_t>(h.splits));
  PackJob job{&h, &w, &t, &bounds, &streams};
  parallel_for(h.splits, Spread::pool(), pack_range, &job);
  if (job.out_of_memory) throw std::bad_alloc();

  std::vector<Cell> cells;
  cells.reserve(static_cast<size_t>(h.splits * h.panels + 1));
  Cell at{};
  for (const SplitStreams& s : streams) {
    for (const Cell& c : s.cells) {
      cells.push_back(
          {at.values + c.values, at.offsets + c.offsets, at.counts + c.counts / t.count_bytes, at.rows + c.rows});
    }
    at.values += static_cast<int64_t>(s.values.size());
    at.offsets += static_cast<int64_t>(s.offsets.size());
    at.counts += static_cast<int64_t>(s.counts.size()) / t.count_bytes;
    at.rows += static_cast<int64_t>(s.rows.size());
  }
  cells.push_back(at);

  Layout layout;
  h.units = at.offsets;
  h.split_rows = layout.add(static_cast<int64_t>(bounds.size()) * 8);
  h.cells = layout.add(static_cast<int64_t>(cells.size() * sizeof(Cell)));
  h.counts = layout.add(at.counts * t.count_bytes);
  h.rows = layout.add(at.rows * 2);
  h.offsets = layout.add(at.offsets);
  h.values = layout.add(at.values * 4);
  h.bytes = layout.size();
  Blob blob(h.bytes);
  write(blob, 0, &h, 1);
  write(blob, h.split_rows, bounds.data(), bounds.size());
  write(blob, h.cells, cells.data(), cells.size());
  at = Cell{};
  for (SplitStreams& s : streams) {
    write(blob, h.counts + at.counts, s.counts.data(), s.counts.size());
    write(blob, h.rows + at.rows * 2, s.rows.data(), s.rows.size());
    write(blob, h.offsets + at.offsets, s.offsets.data(), s.offsets.size());
    write(blob, h.values + at.values * 4, s.values.data(), s.values.size());
    at.counts += static_cast<int64_t>(s.counts.size());
    at.rows += static_cast<int64_t>(s.rows.size());
    at.offsets += static_cast<int64_t>(s.offsets.size());
    at.values += static_cast<int64_t>(s.values.size());
    s = SplitStreams{};
  }
  return blob;
}

}  // namespace sparseinfer
