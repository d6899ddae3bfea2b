// Packings as a broken caller might hand them over.
#pragma once

#include <cstring>
#include <iterator>

#include "problem.h"
#include "sparseinfer/packings.h"

namespace native_tests {

using sparseinfer::PackingHeader;

// Changes places of a packing: whole integers of the header, of the row splits and of the cells to values at the edges
// of what is valid, single bytes anywhere.
class Damage {
 public:
  Damage(char* blob, int64_t bytes, uint64_t seed) : blob_(blob), bytes_(bytes), random_(seed) {
    std::memcpy(&h_, blob, sizeof h_);
    const bool overstated = seed % 4 == 0 && h_.cells > 0;
    for (int64_t places = overstated ? 0 : random_.between(1, 3); places > 0; --places) change();
    if (overstated) overstate();
  }

 private:
  void change() {
    switch (random_.below(6)) {
      case 0:
        return replace(0, sizeof h_ / 8);
      case 1:
        return replace(h_.split_rows, h_.splits + 1);
      case 2:
        // csr has no cells, but row offsets.
        return h_.cells > 0 ? replace(h_.cells, cells() * 4) : replace(h_.counts, h_.n + 1);
      case 3:
        return flip(0, bytes_);
      case 4:
        return flip(h_.counts, h_.values);  // rows and offsets too
      default:
        return flip(h_.counts, h_.rows > h_.counts ? h_.rows : h_.offsets);
    }
  }

  // A cell that claims to end far behind its sections, and a count that relies on it.
  void overstate() {
    const int64_t cell = random_.between(1, cells() - 1);
    for (int64_t field = 0; field < 4; ++field) {
      if (random_.chance(0.5)) put(h_.cells + (cell * 4 + field) * 8, uint64_t{1} << 40);
    }
    const int64_t end = h_.rows > h_.counts ? h_.rows : h_.offsets;
    for (int64_t bytes = random_.between(0, 4); bytes > 0; --bytes) {
      if (end > h_.counts) blob_[h_.counts + random_.below(end - h_.counts)] = static_cast<char>(random_.next());
    }
  }

  int64_t cells() const { return h_.splits * h_.panels + 1; }
  void put(int64_t at, uint64_t value) { std::memcpy(blob_ + at, &value, sizeof value); }
  void replace(int64_t first, int64_t count) {
    const int64_t at = first + 8 * random_.below(count);
    uint64_t old;
    std::memcpy(&old, blob_ + at, sizeof old);
    const int64_t sizes[] = {h_.n, h_.k, h_.nnz, h_.splits, h_.bytes, h_.values};
    const uint64_t others[] = {0,
                               ~uint64_t{0},
                               old - 1,
                               old + 1,
                               old + 64,
                               2 * old,
                               0 - old,
                               old ^ uint64_t{1} << random_.below(64),
                               uint64_t{1} << 31,
                               uint64_t{1} << 40,
                               uint64_t{1} << 63,
                               ~uint64_t{0} >> 1,
                               static_cast<uint64_t>(sizes[random_.below(6)])};
    put(at, others[random_.below(static_cast<int64_t>(std::size(others)))]);
  }
  void flip(int64_t first, int64_t last) {
    if (last > first) blob_[first + random_.below(last - first)] ^= static_cast<char>(1 << random_.below(8));
  }

  char* blob_;
  int64_t bytes_;
  Random random_;
  PackingHeader h_;
};

}  // namespace native_tests
