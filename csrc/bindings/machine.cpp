// Bindings that describe this build and machine: names, instruction-set levels, kernels, threads.
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "bindings/bind.h"
#include "bindings/parse.h"
#include "sparseinfer/cpu_features.h"
#include "sparseinfer/pack.h"
#include "sparseinfer/parallel.h"
#include "sparseinfer/registry.h"

namespace py = pybind11;

namespace sparseinfer {
namespace bindings {
namespace {

// Every kernel of every level of this build; the id of a kernel is its position.
py::list kernels() {
  py::list list;
  for (const RegisteredKernel& r : registry()) {
    py::dict row;
    row["name"] = r.kernel.name;
    row["op"] = "spmm";
    row["packing"] = r.kernel.packing;
    row["storage"] = r.kernel.storage;
    row["tile"] = r.kernel.tile;
    row["isa"] = r.kernel.isa;
    row["conv"] = r.kernel.takes_conv;
    row["available"] = r.available;
    row["native"] = r.kernel.native;
    row["min_tokens"] = r.kernel.min_tokens;
    row["bucket_tokens"] = r.kernel.bucket_tokens;
    row["max_tokens"] = r.kernel.max_tokens;
    row["min_sparsity"] = r.kernel.min_sparsity;
    row["max_sparsity"] = r.kernel.max_sparsity;
    row["wide_panel"] = r.kernel.wide_panel;
    row["tile_tokens"] = r.kernel.tile_tokens;
    const auto packing = parse<PackingKind>(r.kernel.packing, kPackingNames, "packing");
    row["format"] = packing_format(packing);
    row["panelled"] = has_panels(packing);
    row["block_columns"] = block_columns(packing, parse<Storage>(r.kernel.storage, kStorageNames, "storage"));
    list.append(row);
  }
  return list;
}

template <int N>
py::tuple tuple_of(const char* const (&names)[N]) {
  return py::tuple(py::cast(std::vector<std::string>(names, names + N)));
}

}  // namespace

void bind_machine(py::module_& m) {
  m.attr("activations") = tuple_of(kActivationNames);
  m.attr("dtypes") = tuple_of(kDTypeNames);
  m.attr("storages") = tuple_of(kStorageNames);
  m.attr("packings") = tuple_of(kPackingNames);
  m.def("isa_levels", &supported_isa_names);
  m.def(
      "isa_refusal", [](const std::string& isa) { return isa_refusal(parse<Isa>(isa, kIsaNames, "isa")); },
      py::arg("isa"));
  m.attr("emulates_tiles") = tiles_are_emulated();
  m.def("active_isa", [] { return std::string(kIsaNames[static_cast<int>(active_isa())]); });
  m.def("kernels", &kernels);
  m.def(
      "set_parallel_for",
      [](uintptr_t address, uintptr_t num_threads) {
        set_parallel_for(reinterpret_cast<ParallelForFn>(address), reinterpret_cast<NumThreadsFn>(num_threads));
      },
      py::arg("address"), py::arg("num_threads"));
  m.def("has_parallel_for", &has_parallel_for);
}

}  // namespace bindings
}  // namespace sparseinfer
