#include "cuda/launch.h"

#include <cstring>
#include <map>
#include <mutex>
#include <stdexcept>

namespace sparseinfer {
namespace gpu {

namespace {

std::string version(int number) { return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10); }
std::string capability_text(int number) { return std::to_string(number / 10) + "." + std::to_string(number % 10); }

void require_driver() {
  int driver = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
    throw std::runtime_error("cuda: expected an NVIDIA driver, got none");
  }
  // Within a major version a runtime works with drivers older than itself.
  constexpr int kNeeded = CUDART_VERSION / 1000 * 1000;
  if (driver < kNeeded) {
    throw std::runtime_error("cuda: expected a driver for CUDA " + version(kNeeded) + " or newer, got one for " +
                             version(driver) + " (update the NVIDIA driver, or build with an older CUDA toolkit)");
  }
}

Device read_device(int index) {
  require_driver();
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) throw std::runtime_error(std::string("cuda: ") + cudaGetErrorString(error));
  if (index < 0 || index >= count) {
    throw std::runtime_error("device: expected one of " + std::to_string(count) + ", got " + std::to_string(index));
  }
  cudaDeviceProp p{};
  if (const cudaError_t failed = cudaGetDeviceProperties(&p, index)) {
    throw std::runtime_error(std::string("cuda: ") + cudaGetErrorString(failed));
  }
  return {p.name, 10 * p.major + p.minor, p.multiProcessorCount, static_cast<int>(p.sharedMemPerBlockOptin)};
}

std::string on(const Kernel& kernel, const Device& device) {
  return std::string(kernel.name) + " on " + device.name + " (compute capability " +
         capability_text(device.capability) + ")";
}

// The thread's device for the time of a launch.
class OnDevice {
 public:
  explicit OnDevice(int index) {
    if (cudaGetDevice(&before_) != cudaSuccess) before_ = index;
    if (before_ != index && cudaSetDevice(index) != cudaSuccess) {
      throw std::runtime_error("device: expected one that can be used, got " + std::to_string(index));
    }
    changed_ = before_ != index;
  }
  ~OnDevice() {
    if (changed_) cudaSetDevice(before_);
  }
  OnDevice(const OnDevice&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

bool aligned(const void* base, int64_t stride, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(base) % 16 == 0 && stride * bytes % 16 == 0;
}

void require(bool holds, const std::string& message) {
  if (!holds) throw std::invalid_argument(message);
}

void check(const Kernel& kernel, const Args& a, DType x_dtype) {
  const std::string name = kernel.name;
  const int64_t bytes = dtype_bytes(a.w.dtype), columns = std::strcmp(kernel.op, "spmm") == 0 ? a.w.n : a.w.k;
  require(std::strcmp(kernel.packing, kKindNames[static_cast<int>(a.w.kind)]) == 0 && kernel.block == a.w.block &&
              std::strcmp(kernel.dtype, kDTypeNames[static_cast<int>(a.w.dtype)]) == 0,
          "kernel: expected a packing " + std::string(kernel.packing) + " of " + kernel.dtype + " in blocks of " +
              std::to_string(kernel.block) + " for " + name + ", got " + kKindNames[static_cast<int>(a.w.kind)] +
              " of " + kDTypeNames[static_cast<int>(a.w.dtype)] + " in blocks of " + std::to_string(a.w.block));
  require(a.ldy >= columns, "y: expected rows of at least " + std::to_string(columns) + " elements");
  if (std::strcmp(kernel.op, "spmm") != 0) {
    require(aligned(a.y, a.ldy, bytes), "y: expected rows that begin at multiples of 16 bytes for " + name);
    return;
  }
  require(x_dtype == a.w.dtype, "x: expected " + std::string(kernel.dtype) + " for " + name + ", got " +
                                    kDTypeNames[static_cast<int>(x_dtype)]);
  // Kernels count rows, tokens and tiles in 32 bits, up to the end of their last tile.
  constexpr int64_t kMost = (int64_t{1} << 31) - (1 << 16);
  require(a.w.n < kMost, name + ": expected fewer rows, got " + std::to_string(a.w.n));
  require(a.m >= 0 && a.m < kMost && (a.m + 31) / 32 * (a.w.n / 16 + 1) < kMost,
          "x: expected fewer tokens, got " + std::to_string(a.m));
  require(kernel.most_tokens == 0 || a.m <= kernel.most_tokens,
          "x: expected at most " + std::to_string(kernel.most_tokens) + " tokens for " + name + ", got " +
              std::to_string(a.m));
  require(a.ldx >= a.w.k, "x: expected rows of at least " + std::to_string(a.w.k) + " elements");
  if (a.w.kind == Kind::kBsr) {
    require(aligned(a.x, a.ldx, bytes) && aligned(a.y, a.ldy, bytes),
            "x: expected rows that begin at multiples of 16 bytes for " + name);
  }
  if (is_tiled(a.w.kind)) {
    require(aligned(a.x, a.ldx, bytes) && a.ldx >= (a.w.k + 7) / 8 * 8,
            "x: expected rows that begin at multiples of 16 bytes for " + name);
  }
}

}  // namespace

const Device& device_of(int index) {
  static std::mutex lock;
  static std::map<int, Device> known;
  const std::lock_guard<std::mutex> guard(lock);
  const auto found = known.find(index);
  return found != known.end() ? found->second : known.emplace(index, read_device(index)).first->second;
}

bool runs_on(const Kernel& kernel, const Device& device) {
  return device.capability >= kernel.capability &&
         (kernel.next_capability == 0 || device.capability < kernel.next_capability);
}

void launch(const Kernel& kernel, Args args, DType x_dtype) {
  check(kernel, args, x_dtype);
  const Device& device = device_of(args.device);
  if (!runs_on(kernel, device)) {
    throw std::runtime_error("kernel: expected one for this device, got " + on(kernel, device) + ", which needs " +
                             capability_text(kernel.capability) + (kernel.next_capability == 0 ? " or newer" : ""));
  }
  const bool spmm = std::strcmp(kernel.op, "spmm") == 0;
  if (args.w.n == 0 || (spmm ? args.m == 0 : args.w.k == 0)) return;
  args.multiprocessors = device.multiprocessors;
  args.shared_bytes = device.shared_bytes;
  const OnDevice here(args.device);
  if (const cudaError_t error = kernel.launch(args)) {
    throw std::runtime_error(on(kernel, device) + ": m=" + std::to_string(args.m) + ", n=" + std::to_string(args.w.n) +
                             ", k=" + std::to_string(args.w.k) + ": " + cudaGetErrorString(error));
  }
}

}  // namespace gpu
}  // namespace sparseinfer
