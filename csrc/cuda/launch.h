// Launches a kernel from the host. All arguments are checked first, so that no input can cause an error on the device
// that would make the CUDA context unusable.
#pragma once

#include <string>

#include "cuda/kernel.h"

namespace sparseinfer {
namespace gpu {

struct Device {
  std::string name;
  int capability;  // 10 * major + minor
  int multiprocessors;
  int shared_bytes;  // that a block of threads may ask for
};

// Throws std::runtime_error where there is no driver, one older than this module needs, or no such device.
const Device& device_of(int index);

bool runs_on(const Kernel& kernel, const Device& device);

// Queues the kernel on args.stream of args.device; device, multiprocessors and shared_bytes are filled in here. Leaves
// the calling thread's device as it was. Throws std::invalid_argument for arguments that do not belong together, and
// std::runtime_error, which names kernel, sizes and device, where the kernel cannot run there or is refused.
void launch(const Kernel& kernel, Args args, DType x_dtype);

}  // namespace gpu
}  // namespace sparseinfer
