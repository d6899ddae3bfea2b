// The Python module sparseinfer._core, which passes only integers and addresses. Callers (sparseinfer/ops) own the
// memory and check dtypes, shapes and devices; the contents of buffers are checked here.
#include "bindings/bind.h"

PYBIND11_MODULE(_core, m) {
  using namespace sparseinfer::bindings;
  m.doc() = "Native kernels of sparseinfer. Private: use sparseinfer.ops.";
  m.attr("__version__") = SPARSEINFER_VERSION;
  bind_machine(m);
  bind_packings(m);
  bind_calls(m);
  bind_attention(m);
  bind_held_linear(m);
  bind_gpu_packings(m);
}
