// The binding of attention. Callers check dtypes and that shapes and strides belong to the addresses.
#include "bindings/bind.h"

#include <array>
#include <string>
#include <tuple>

#include "bindings/parse.h"
#include "bindings/structs.h"
#include "sparseinfer/attention.h"

namespace py = pybind11;

namespace sparseinfer {
namespace bindings {
namespace {

// q, k, v, y or a mask [batch, heads, tokens, ...], and how far apart these are, in elements.
struct Heads {
  uintptr_t address;
  int64_t batch, head, token;
  static constexpr auto fields() {
    return std::make_tuple(&Heads::address, &Heads::batch, &Heads::head, &Heads::token);
  }
  HeadStrides strides() const { return {batch, head, token}; }
};

struct AttentionSizes {
  int64_t batch, heads, queries, keys, dim;
  static constexpr auto fields() {
    return std::make_tuple(&AttentionSizes::batch, &AttentionSizes::heads, &AttentionSizes::queries,
                           &AttentionSizes::keys, &AttentionSizes::dim);
  }
};

// The order of MaskKind.
constexpr const char* kMaskKinds[] = {"none", "added", "kept"};

void attention(const std::array<Heads, 4>& qkvy, const Heads& mask, const std::string& kind,
               const AttentionSizes& sizes, double scale, int64_t parts) {
  constexpr int64_t kMost = int64_t{1} << 31;
  const int64_t all[] = {sizes.batch, sizes.heads, sizes.queries, sizes.keys, sizes.dim};
  for (const int64_t size : all) {
    if (size < 0 || size > kMost) throw std::invalid_argument("sizes: expected 0 to 2^31, got " + std::to_string(size));
  }
  if (sizes.keys == 0) throw std::invalid_argument("sizes: expected keys, got none");
  const auto& [q, k, v, y] = qkvy;
  AttentionArgs args{};
  args.q = pointer<const float>(q.address);
  args.k = pointer<const float>(k.address);
  args.v = pointer<const float>(v.address);
  args.y = pointer<float>(y.address);
  args.mask = pointer<const void>(mask.address);
  args.q_strides = q.strides();
  args.k_strides = k.strides();
  args.v_strides = v.strides();
  args.y_strides = y.strides();
  args.mask_strides = mask.strides();
  args.kind = parse<MaskKind>(kind, kMaskKinds, "kind");
  args.batch = sizes.batch;
  args.heads = sizes.heads;
  args.queries = sizes.queries;
  args.keys = sizes.keys;
  args.dim = sizes.dim;
  args.scale = static_cast<float>(scale);
  py::gil_scoped_release release;
  run_attention(args, Spread{static_cast<int>(parts)});
}

}  // namespace

void bind_attention(py::module_& m) {
  m.def("attention", &attention, py::arg("qkvy"), py::arg("mask"), py::arg("kind"), py::arg("sizes"), py::arg("scale"),
        py::arg("parts") = 0);
}

}  // namespace bindings
}  // namespace sparseinfer
