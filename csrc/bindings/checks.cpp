// What is checked before a kernel runs: kernel, packing, sizes and dtypes belong together.
#include "bindings/checks.h"

#include <cstring>
#include <stdexcept>
#include <string>

namespace sparseinfer {
namespace bindings {

const SpmmKernel& checked_kernel(int64_t id) {
  const auto& all = registry();
  if (id < 0 || id >= static_cast<int64_t>(all.size()) || !all[static_cast<size_t>(id)].available) {
    throw std::invalid_argument("kernel: expected the id of an available kernel, got " + std::to_string(id));
  }
  return all[static_cast<size_t>(id)].kernel;
}

const PackingHeader* checked_packing(const SpmmKernel& k, uintptr_t packed) {
  const auto* h = pointer<const PackingHeader>(packed);
  if (std::strcmp(name_of(h->kind), k.packing) != 0 || std::strcmp(name_of(h->storage), k.storage) != 0) {
    throw std::invalid_argument(std::string("kernel: expected a ") + k.packing + " packing of " + k.storage + " for " +
                                k.name + ", got " + name_of(h->kind) + " of " + name_of(h->storage));
  }
  return h;
}

SpmmArgs checked_args(const SpmmKernel& k, uintptr_t x, int64_t dtype, uintptr_t y, const Epilogue& epilogue) {
  check_numbers(dtype, epilogue.bias_dtype, epilogue.activation);
  SpmmArgs args{};
  args.x = pointer<const void>(x);
  args.y = pointer<void>(y);
  args.bias = pointer<const void>(epilogue.bias);
  args.dtype = static_cast<DType>(dtype);
  args.bias_dtype = static_cast<DType>(epilogue.bias_dtype);
  args.activation = static_cast<Activation>(epilogue.activation);
  const bool in_pairs = std::strcmp(k.storage, name_of(Storage::kBF16)) == 0;
  if (in_pairs && args.dtype != DType::kF32 && args.dtype != DType::kBF16) {
    throw std::invalid_argument(std::string("x: expected fp32 or bf16 for ") + k.name + ", got " + name_of(args.dtype));
  }
  return args;
}

SpmmArgs checked_product(const SpmmKernel& k, const Tokens& x, uintptr_t packed, const Epilogue& epilogue, uintptr_t y,
                         int64_t n) {
  const PackingHeader* header = checked_packing(k, packed);
  check_in_features(header->k, x.k);
  check_out_features(header->n, n);
  SpmmArgs args = checked_args(k, x.address, x.dtype, y, epilogue);
  args.w = header;
  args.m = x.m;
  args.ldx = x.ldx;
  return args;
}

}  // namespace bindings
}  // namespace sparseinfer
