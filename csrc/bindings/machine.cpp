// Bindings that describe this build and machine: names, instruction-set levels, kernels, threads.
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "bindings/bind.h"
#include "bindings/parse.h"
#include "sparseinfer/cpu_features.h"
#include "sparseinfer/pack.h"
#include "sparseinfer/parallel.h"
#include "sparseinfer/probe.h"
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
    row["tiles"] = r.kernel.tiles;
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
    row["block_rows"] = block_rows(packing);
    row["block_columns"] = block_columns(packing, parse<Storage>(r.kernel.storage, kStorageNames, "storage"));
    list.append(row);
  }
  return list;
}

template <int N>
py::tuple tuple_of(const char* const (&names)[N]) {
  return py::tuple(py::cast(std::vector<std::string>(names, names + N)));
}

// Ctrl-C ends it between two loops.
py::tuple probe_rates(const std::string& isa, const std::vector<int64_t>& sizes, double seconds) {
  const auto level = parse<Isa>(isa, kIsaNames, "isa");
  const Rates rates = [&] {
    py::gil_scoped_release release;
    return probe(level, sizes, seconds, [] {
      py::gil_scoped_acquire acquire;
      if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    });
  }();
  py::dict units;
  for (const auto& [name, rate] : rates.units) units[name.c_str()] = rate;
  return py::make_tuple(units, rates.reads);
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
  m.def("probe", &probe_rates, py::arg("isa"), py::arg("sizes"), py::arg("seconds"));
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
