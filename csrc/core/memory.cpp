// Requests huge pages, if the operating system supports them.
#include "sparseinfer/memory.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace sparseinfer {

void prefer_huge_pages(void* data, int64_t bytes) {
#if defined(__linux__)
  if (bytes < 2 * kHugePage) return;
  const auto page = static_cast<uintptr_t>(kHugePage);
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + static_cast<uintptr_t>(bytes)) / page * page;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data;
  (void)bytes;
#endif
}

}  // namespace sparseinfer
