// Packings of the CUDA kernels, and the arithmetic on positions that packers, kernels and decoders share. Everything
// here compiles with any C++17 compiler, so that it is tested on machines without a GPU.
//
// One packing is one blob of bytes in device memory: this header, then sections at the byte offsets it names, each
// 128-byte aligned. The host keeps a copy of the header beside the blob, so a launch reads nothing from the device.
//
// csr   W in lists of units, cut into panels of kPanelColumns columns. A unit is a value and the position of its
//       column in a tile of x (see x_column_offset). Rows are sorted by length, longest first, within windows of
//       kWindowRows rows: neighbours in a warp then have equal work, and their rows of y are still close together.
//       Lists are padded to whole vectors of 16 bytes of values with zeros at the column kPanelColumns of the tile,
//       which holds zeros: padding is never multiplied by NaN or Inf of x.
//         order    uint8  [n]                   row within its window at each position
//         starts   uint32 [panels * n + 1]      first vector of (panel, position)
//         columns  uint16 [vectors * per_vector]
//         values          [vectors * per_vector]
//
// bsr   stored blocks [block, block], each cut into slabs of at most 64 columns, which is what 128 bytes of a row of
//       shared memory hold. Block rows are sorted by length, longest first, and padded to whole stages with slabs of
//       zeros past the last column, where x counts as zero.
//         order    int32  [n / block]           block row at each position
//         starts   uint32 [n / block + 1]       first slab of each position
//         columns  int32  [slabs]               first column / slab_columns, ascending within a block row
//         values          [slabs][block * slab_columns], each swizzled as in shared memory (see swizzle)
//
// bitmap, delta4, delta8   unstructured 16-bit weights, for tensor cores: see gpu_tiles.h.
#pragma once

#include <stdint.h>

#include "sparseinfer/dtypes.h"

#ifdef __CUDACC__
#define SI_HD __host__ __device__ __forceinline__
#else
#define SI_HD inline
#endif

namespace sparseinfer {
namespace gpu {

// Every packing: its number, and its name. Those from bitmap on are tiled.
#define SI_GPU_PACKINGS(X) \
  X(kCsr, csr)             \
  X(kBsr, bsr)             \
  X(kBitmap, bitmap)       \
  X(kDelta4, delta4)       \
  X(kDelta8, delta8)

#define SI_PACKING_NAME(number, name) #name,
enum class Kind : uint32_t { SI_GPU_PACKINGS(SI_NUMBER) };
constexpr const char* kKindNames[] = {SI_GPU_PACKINGS(SI_PACKING_NAME)};
constexpr int kNumKinds = sizeof kKindNames / sizeof *kKindNames;
#undef SI_PACKING_NAME
inline const char* name_of(Kind kind) { return kKindNames[static_cast<int>(kind)]; }
SI_HD constexpr bool is_tiled(Kind kind) { return kind >= Kind::kBitmap; }

constexpr uint64_t kMagic = 0x5550474f46495332ull;
constexpr int64_t kAlign = 128;
constexpr int64_t kMaxSize = int64_t{1} << 31;  // of n, k and the number of vectors or slabs, exclusive

struct Header {
  uint64_t magic;
  Kind kind;
  DType dtype;    // of the values
  int64_t bytes;  // whole blob
  int64_t n, k;
  int64_t nnz;                             // stored values, without filling
  int64_t block;                           // bsr: rows and columns of a block; tiles: kTileRows; csr: 1
  int64_t panels;                          // csr; tiles: pieces of a row of tiles
  int64_t units;                           // csr: vectors; bsr: slabs; tiles: 16 bytes of streams; with filling
  int64_t order, starts, columns, values;  // byte offsets of the sections
};
constexpr int64_t kHeaderBytes = 128;
static_assert(sizeof(Header) <= kHeaderBytes, "the header has its place at the front of a blob");

// csr ---------------------------------------------------------------------------------------------------------------

constexpr int kPanelColumns = 480;  // with the column of zeros, a position fits 16 bits
constexpr int kWindowRows = 64;
constexpr int kTileRowBytes = 128;  // one column of x for 32 tokens of fp32 or 64 of 16 bits
constexpr int kVectorBytes = 16;

SI_HD constexpr int64_t panel_count(int64_t k) { return (k + kPanelColumns - 1) / kPanelColumns; }
SI_HD constexpr int values_per_vector(int64_t value_bytes) { return static_cast<int>(kVectorBytes / value_bytes); }

// Byte offset of column c of a panel in the tile of x, c <= kPanelColumns; tokens lie in 8 chunks of 16 bytes. The low
// bits say where the chunk of the first tokens lies; that of tokens q is at offset ^ (q << 4). Chunks are permuted so
// that a warp that reads 8 x 16 bytes of each of 4 tokens from memory stores them without bank conflicts, whether
// 16 bytes are 4 columns or 8.
SI_HD constexpr uint16_t x_column_offset(int c) {
  return static_cast<uint16_t>(c * kTileRowBytes + (((c >> 2) ^ (c >> 5)) & 7) * kVectorBytes);
}
SI_HD constexpr int x_column(uint16_t offset) { return offset / kTileRowBytes; }
SI_HD constexpr int x_chunk_offset(uint16_t offset, int chunk) { return offset ^ (chunk * kVectorBytes); }

// bsr ---------------------------------------------------------------------------------------------------------------

constexpr int kMaxSlabColumns = 64;
SI_HD constexpr bool block_is_valid(int64_t b) { return b == 16 || b == 32 || b == 64 || b == 128; }
SI_HD constexpr int slab_columns(int64_t block) {
  return block < kMaxSlabColumns ? static_cast<int>(block) : kMaxSlabColumns;
}
SI_HD constexpr int slabs_per_block(int64_t block) { return static_cast<int>(block / slab_columns(block)); }
// Slabs that are loaded together: 64 columns.
SI_HD constexpr int slabs_per_stage(int64_t block) { return kMaxSlabColumns / slab_columns(block); }

// Byte offset in shared memory of byte `offset` of a matrix whose rows are row_bytes = 32, 64 or 128 long: the swizzles
// of the tensor copy engine and of wgmma (PTX ISA, "Swizzling modes"), which exchange chunks of 16 bytes so that 8 rows
// at one column never meet in a bank. The matrix starts at a multiple of 8 * row_bytes.
SI_HD constexpr uint32_t swizzle(uint32_t offset, int row_bytes) {
  return offset ^ (((offset >> 7) & static_cast<uint32_t>(row_bytes / 16 - 1)) << 4);
}

// Items are sorted by work and dealt to `workers` in turns, forwards and backwards: the item of a worker in a round.
SI_HD constexpr int64_t dealt_item(int64_t round, int64_t worker, int64_t workers) {
  return round * workers + (round % 2 == 0 ? worker : workers - 1 - worker);
}

// Host -------------------------------------------------------------------------------------------------------------

// Where the sections of a packing lie. Throws std::invalid_argument for sizes that no kernel takes.
Header layout(Kind kind, DType dtype, int64_t n, int64_t k, int64_t nnz, int64_t block, int64_t units);

// Throws std::invalid_argument unless the first kHeaderBytes are a header that `layout` makes and bytes fit.
const Header* check_header(const void* header, int64_t bytes);

// The same for a whole blob in host memory and every index in it: afterwards a kernel that reads the blob stays inside
// it, inside x and inside y.
const Header* check_blob(const void* data, int64_t bytes);

// The format that a checked blob holds, bit for bit: crow [n / block + 1], col [units of the format], values.
void unpack(const Header* blob, int64_t* crow, int32_t* col, void* values);

template <class T>
SI_HD const T* section(const void* blob, int64_t offset) {
  return reinterpret_cast<const T*>(static_cast<const char*>(blob) + offset);
}

}  // namespace gpu
}  // namespace sparseinfer
