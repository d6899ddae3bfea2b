// Memory that ends where the process may not go: reading or writing one byte too far crashes, with and without
// sanitizers.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <new>
#include <utility>

namespace native_tests {

class Fenced {
 public:
  // Every byte is 0xff, which is NaN in every float type. Aligned as far as `bytes` is a multiple of the alignment.
  explicit Fenced(int64_t bytes) : bytes_(bytes) {
    const int64_t page = sysconf(_SC_PAGESIZE), pages = (bytes + page - 1) / page * page;
    mapped_ = static_cast<size_t>(pages + page);
    base_ = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base_ == MAP_FAILED) throw std::bad_alloc();
    char* end = static_cast<char*>(base_) + pages;
    if (mprotect(end, static_cast<size_t>(page), PROT_NONE) != 0) throw std::bad_alloc();
    data_ = end - bytes;
    std::memset(data_, 0xff, static_cast<size_t>(bytes));
  }
  Fenced(const void* from, int64_t bytes) : Fenced(bytes) { std::memcpy(data_, from, static_cast<size_t>(bytes)); }
  Fenced(Fenced&& other) noexcept
      : base_(std::exchange(other.base_, MAP_FAILED)),
        mapped_(other.mapped_),
        data_(other.data_),
        bytes_(other.bytes_) {}
  ~Fenced() {
    if (base_ != MAP_FAILED) munmap(base_, mapped_);
  }
  char* data() const { return data_; }
  int64_t size() const { return bytes_; }
  bool untouched(int64_t first, int64_t last) const {
    for (int64_t i = first; i < last; ++i) {
      if (static_cast<unsigned char>(data_[i]) != 0xff) return false;
    }
    return true;
  }

 private:
  void* base_;
  size_t mapped_;
  char* data_;
  int64_t bytes_;
};

}  // namespace native_tests
