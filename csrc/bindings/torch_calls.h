// The C functions of torch that an operator without Python needs: torch's own interface for libraries that are built
// without it (torch/csrc/stable/c/shim.h, torch >= 2.10). Addresses come from Python, as those for threads do.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

namespace sparseinfer {
namespace bindings {

// A tensor of torch by a pointer to an owner of it, which whoever has it must delete.
using TensorHandle = struct AtenTensorOpaque*;
// An argument or result of an operator in 64 bits: an int, a TensorHandle, or, for what may be None, 0 or a pointer to
// another one, made by operator new, which is the receiver's to delete.
using StableIValue = uint64_t;
using OperatorFn = void (*)(StableIValue* stack, uint64_t arguments, uint64_t results);

struct TorchCalls {
  int32_t (*init_impl)(const char* name_space, const char* key, const char* file, uint32_t line, void** library);
  int32_t (*impl)(void* library, const char* name, OperatorFn fn, uint64_t version);
  int32_t (*remove)(TensorHandle tensor);
  int32_t (*data_ptr)(TensorHandle tensor, void** address);
  int32_t (*dim)(TensorHandle tensor, int64_t* dim);
  int32_t (*sizes)(TensorHandle tensor, int64_t** sizes);
  int32_t (*strides)(TensorHandle tensor, int64_t** strides);
  int32_t (*dtype)(TensorHandle tensor, int32_t* dtype);
  int32_t (*device_type)(TensorHandle tensor, int32_t* type);
  int32_t (*empty)(int64_t dim, const int64_t* sizes, const int64_t* strides, int32_t dtype, int32_t device_type,
                   int32_t device_index, TensorHandle* made);
  int32_t (*copy)(TensorHandle to, TensorHandle from, int32_t non_blocking);
  int32_t (*cpu)();
  int32_t (*float32)();
  int32_t (*bfloat16)();
  int32_t (*float16)();
  int32_t (*int64)();

  // act(name, function) for each.
  template <class Do>
  void each(Do&& act) {
    act("aoti_torch_library_init_impl", init_impl);
    act("torch_library_impl", impl);
    act("aoti_torch_delete_tensor_object", remove);
    act("aoti_torch_get_data_ptr", data_ptr);
    act("aoti_torch_get_dim", dim);
    act("aoti_torch_get_sizes", sizes);
    act("aoti_torch_get_strides", strides);
    act("aoti_torch_get_dtype", dtype);
    act("aoti_torch_get_device_type", device_type);
    act("aoti_torch_empty_strided", empty);
    act("aoti_torch_copy_", copy);
    act("aoti_torch_device_type_cpu", cpu);
    act("aoti_torch_dtype_float32", float32);
    act("aoti_torch_dtype_bfloat16", bfloat16);
    act("aoti_torch_dtype_float16", float16);
    act("aoti_torch_dtype_int64", int64);
  }
};

inline std::vector<std::string> torch_call_names() {
  std::vector<std::string> names;
  TorchCalls{}.each([&](const char* name, auto&) { names.emplace_back(name); });
  return names;
}

// From the addresses of those names. Throws std::invalid_argument where one is missing.
inline TorchCalls torch_calls_at(const std::vector<uintptr_t>& addresses) {
  TorchCalls calls{};
  size_t next = 0;
  calls.each([&](const char* name, auto& function) {
    const uintptr_t address = next < addresses.size() ? addresses[next] : 0;
    if (address == 0) throw std::invalid_argument(std::string("torch: expected the function ") + name);
    function = reinterpret_cast<std::decay_t<decltype(function)>>(address);
    ++next;
  });
  return calls;
}

}  // namespace bindings
}  // namespace sparseinfer
