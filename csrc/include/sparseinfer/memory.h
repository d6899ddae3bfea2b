// Asks the operating system for huge pages, where it grants them on request.
#pragma once

#include <stdint.h>

namespace sparseinfer {

constexpr int64_t kHugePage = int64_t{2} << 20;

// For memory that is about to be touched for the first time, or read from end to end again and again: 2 MB then cost
// one page fault, or one walk through the page tables, instead of 512. Only whole huge pages inside the range count,
// and ranges of less than two of them are left alone.
void prefer_huge_pages(void* data, int64_t bytes);

}  // namespace sparseinfer
