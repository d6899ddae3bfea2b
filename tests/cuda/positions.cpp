// The arithmetic of the CUDA kernels on threads, rows and bytes, run on the host against the definitions of the PTX
// ISA. tests/test_cuda_positions.py compiles and runs it.
#include "cuda/positions.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "cuda/sm80/fragments.h"
#include "cuda/sm90/descriptor.h"

namespace {

using namespace sparseinfer::gpu;

int g_checks = 0, g_failures = 0;

void check(bool holds, const std::string& what) {
  ++g_checks;
  if (!holds && ++g_failures <= 20) std::printf("FAILED %s\n", what.c_str());
}

// Whether accesses of `bytes` each, at these addresses, meet in no bank: 32 banks of 4 bytes, 128 bytes at a time.
bool free_of_conflicts(const std::vector<int>& addresses, int bytes) {
  std::set<int> banks;
  for (int address : addresses) {
    for (int word = 0; word < bytes / 4; ++word) banks.insert((address / 4 + word) % 32);
  }
  return banks.size() == addresses.size() * static_cast<size_t>(bytes / 4);
}

// "Swizzling modes": the chunk of 16 bytes of row r moves by the number of the row, of the pair or of the four rows.
int defined_chunk(int row, int chunk, int row_bytes) {
  return chunk ^ (row_bytes == 128 ? row % 8 : row_bytes == 64 ? row / 2 % 4 : row / 4 % 2);
}

void check_swizzle() {
  for (int row_bytes : {32, 64, 128}) {
    for (int row = 0; row < 128; ++row) {
      for (int chunk = 0; chunk < row_bytes / 16; ++chunk) {
        const auto got = swizzle(static_cast<uint32_t>(row * row_bytes + chunk * 16), row_bytes);
        const int wanted = row * row_bytes + defined_chunk(row, chunk, row_bytes) * 16;
        check(got == static_cast<uint32_t>(wanted), "swizzle");
      }
    }
  }
}

// Shared memory that holds which (row, column) lies at a byte, of a swizzled matrix of 16-bit elements.
std::map<uint32_t, std::pair<int, int>> swizzled_matrix(int rows, int row_bytes) {
  std::map<uint32_t, std::pair<int, int>> at;
  for (int row = 0; row < rows; ++row) {
    for (int column = 0; column < row_bytes / 2; ++column) {
      at[swizzle(static_cast<uint32_t>(row * row_bytes + column * 2), row_bytes)] = {row, column};
    }
  }
  check(at.size() == static_cast<size_t>(rows * row_bytes / 2), "swizzle is a permutation");
  return at;
}

// ldmatrix.x4: lane l names row l % 8 of matrix l / 8; register j of lane l gets elements 2 (l % 4) and the next of row
// l / 4 of matrix j. mma.m16n8k16: where element i of an operand of a thread lies.
void check_fragments() {
  for (int row_bytes : {32, 64, 128}) {
    const auto at = swizzled_matrix(128, row_bytes);
    for (int first = 0; first + 16 <= 128; first += 16) {
      for (int column = 0; column + 16 <= row_bytes / 2; column += 16) {
        for (bool tokens : {true, false}) {
          auto address = [&](int lane) {
            return tokens ? token_fragment(lane, first, column, row_bytes)
                          : weight_fragment(lane, first, column, row_bytes);
          };
          for (int matrix = 0; matrix < 4; ++matrix) {
            std::vector<int> rows;
            for (int row = 0; row < 8; ++row) rows.push_back(static_cast<int>(address(8 * matrix + row)));
            check(free_of_conflicts(rows, 16), "ldmatrix without bank conflicts");
            for (int lane = 0; lane < 32; ++lane) {
              for (int half = 0; half < 2; ++half) {
                const uint32_t from = address(8 * matrix + lane / 4) + static_cast<uint32_t>(2 * (lane % 4) + half) * 2;
                const int group = lane / 4, in_group = lane % 4;
                // First operand: a0 a1 | a2 a3 | a4 a5 | a6 a7. Second, of two tiles: b0 b1 | b2 b3 each.
                const int row = tokens ? group + matrix % 2 * 8 : group + matrix / 2 * 8;
                const int k = in_group * 2 + half + (tokens ? matrix / 2 : matrix % 2) * 8;
                check(at.at(from) == std::make_pair(first + row, column + k), "fragment of mma");
              }
            }
          }
        }
      }
    }
  }
}

// "Matrix Descriptor Format" and the K-major layouts of wgmma: rows of a matrix of 8 follow each other at row_bytes,
// the next 8 are a stride further, and the swizzle is applied to the address of a byte.
void check_descriptors() {
  const uint32_t base = 5 * 1024;
  for (int row_bytes : {32, 64, 128}) {
    const auto at = swizzled_matrix(256, row_bytes);
    for (int first = 0; first < 256; first += 64) {
      for (int column = 0; column + 16 <= row_bytes / 2; column += 16) {
        const uint32_t start = base + static_cast<uint32_t>(first * row_bytes + column * 2);
        const uint64_t d = operand_descriptor(start, row_bytes);
        check((d >> 49 & 7) == 0 && (d >> 46 & 7) == 0 && (d >> 14 & 3) == 0 && (d >> 30 & 3) == 0, "bits that are 0");
        const uint64_t mode = d >> 62, address = (d & 0x3fff) << 4, stride = (d >> 32 & 0x3fff) << 4;
        check(mode == (row_bytes == 128 ? 1u : row_bytes == 64 ? 2u : 3u) && address == start, "descriptor");
        for (int row = 0; row < 64; ++row) {
          for (int k = 0; k < 16; ++k) {
            const uint64_t byte =
                address + static_cast<uint64_t>(row / 8) * stride + static_cast<uint64_t>(row % 8 * row_bytes + k * 2);
            const uint64_t moved = byte ^ ((byte >> 7 & static_cast<uint64_t>(row_bytes / 16 - 1)) << 4);
            check(at.at(static_cast<uint32_t>(moved - base)) == std::make_pair(first + row, column + k), "wgmma");
          }
        }
      }
    }
  }
}

// The panel of x: every (column, token) is written once, where a reader of the column looks for it.
void check_tile() {
  std::set<int> offsets;
  for (int c = 0; c <= kPanelColumns; ++c) {
    check(x_column(x_column_offset(c)) == c, "column of an offset");
    offsets.insert(x_column_offset(c));
    std::vector<int> chunks;
    for (int chunk = 0; chunk < 8; ++chunk) chunks.push_back(x_chunk_offset(x_column_offset(c), chunk));
    check(free_of_conflicts(chunks, 16), "8 threads read a column without bank conflicts");
    check(*std::min_element(chunks.begin(), chunks.end()) == c * kTileRowBytes, "a column's own 128 bytes");
  }
  for (int bytes : {4, 2}) {
    const int vector = 16 / bytes, pair = 4 / bytes;
    std::map<int, std::pair<int, int>> written;
    for (int group = 0; group < fill_groups(vector); ++group) {
      for (int i = 0; i < vector; ++i) {
        std::vector<int> words;
        for (int lane = 0; lane < 32; ++lane) {
          const int column = fill_column(group, lane, vector) + i;
          if (column >= kPanelColumns) continue;
          const int at = fill_position(group, lane, column);
          words.push_back(at);
          for (int t = 0; t < pair; ++t) {
            const bool fresh =
                written.emplace(at + t * bytes, std::make_pair(column, fill_token(group, lane, vector, pair) + t))
                    .second;
            check(fresh, "each byte of the tile is written once");
          }
        }
        check(free_of_conflicts(words, 4), "a warp stores without bank conflicts");
      }
    }
    check(written.size() == static_cast<size_t>(kPanelColumns * kTileRowBytes / bytes), "the whole tile is written");
    for (int c = 0; c < kPanelColumns; ++c) {
      for (int token = 0; token < 8 * vector; ++token) {
        const int at = x_chunk_offset(x_column_offset(c), token / vector) + token % vector * bytes;
        check(written[at] == std::make_pair(c, token), "x where its reader looks");
      }
    }
  }
}

void check_rows() {
  for (int turns : {1, 2, 4}) {
    std::vector<int> seen(static_cast<size_t>(turns * 64));
    for (int turn = 0; turn < turns; ++turn) {
      for (int warp = 0; warp < 16; ++warp) {
        for (int lane = 0; lane < 32; lane += 8) {
          const int p = tile_position(turn, warp, 16, lane);
          check(p / kWindowRows == turn && p % 4 == lane / 8, "neighbours in a window");
          ++seen[static_cast<size_t>(p)];
        }
      }
    }
    check(std::all_of(seen.begin(), seen.end(), [](int n) { return n == 1; }), "each row of a tile once");
  }
}

void check_dealing() {
  for (int64_t workers : {1, 7, 132}) {
    for (int64_t items : {0, 1, 6, 131, 132, 133, 1000}) {
      std::vector<int> seen(static_cast<size_t>(items));
      std::vector<int64_t> work(static_cast<size_t>(workers));
      int64_t total = 0;
      for (int64_t worker = 0; worker < workers; ++worker) {
        for (int64_t round = 0; round * workers < items; ++round) {
          const int64_t item = dealt_item(round, worker, workers);
          if (item >= items) continue;
          ++seen[static_cast<size_t>(item)];
          work[static_cast<size_t>(worker)] += items - item;
          total += items - item;
        }
      }
      check(std::all_of(seen.begin(), seen.end(), [](int n) { return n == 1; }), "each item is dealt once");
      // Of sorted items nobody gets more than the mean and one item.
      check(*std::max_element(work.begin(), work.end()) <= total / workers + items, "dealt evenly");
    }
  }
}

// Sums of mma and wgmma: 4 threads exchange theirs, then each writes 8 columns of a token.
void check_stores() {
  std::set<std::pair<int, int>> written;
  for (int quad = 0; quad < 8; ++quad) {
    // Word i of thread q: (token, first column) of its pair of sums, i = 2 * half + tile.
    std::pair<int, int> words[4][4];
    for (int q = 0; q < 4; ++q) {
      for (int i = 0; i < 4; ++i) words[q][i] = {quad + i / 2 * 8, i % 2 * 8 + 2 * q};
    }
    for (int step = 1; step <= 2; step *= 2) {
      std::pair<int, int> sent[4][2];
      for (int q = 0; q < 4; ++q) {
        for (int i = 0; i < 2; ++i) sent[q][i] = words[q][quad_sent(q, step, i)];
      }
      for (int q = 0; q < 4; ++q) {
        for (int i = 0; i < 2; ++i) words[q][quad_sent(q, step, i)] = sent[q ^ step][i];
      }
    }
    for (int q = 0; q < 4; ++q) {
      const int lane = quad * 4 + q;
      for (int i = 0; i < 4; ++i) {
        check(words[q][i] == std::make_pair(stored_token(lane), 8 * stored_tile(lane) + 2 * i), "16 bytes of a token");
        written.insert(words[q][i]);
      }
    }
  }
  check(written.size() == 16 * 8, "all sums are written");
}

}  // namespace

int main() {
  check_swizzle();
  check_fragments();
  check_descriptors();
  check_tile();
  check_rows();
  check_dealing();
  check_stores();
  std::printf("%d checks, %d failed\n", g_checks, g_failures);
  return g_failures == 0 ? 0 : 1;
}
