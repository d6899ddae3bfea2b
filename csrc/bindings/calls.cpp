// Bindings of the CPU's products and convolutions. Everything that could make a kernel access memory out of bounds is
// checked here, except the contents of a packing, which callers check once (check_packing).
#include "bindings/bind.h"

#include <array>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings/checks.h"
#include "bindings/parse.h"
#include "bindings/structs.h"
#include "sparseinfer/block.h"
#include "sparseinfer/network.h"
#include "sparseinfer/registry.h"
#include "sparseinfer/spmm.h"

namespace py = pybind11;

namespace sparseinfer {
namespace bindings {
namespace {

// Images x [batch, channels, height, width] and y, contiguous.
struct Images {
  uintptr_t x, y;
  int64_t dtype;
  std::array<int64_t, 4> x_shape, y_shape;
  static constexpr auto fields() {
    return std::make_tuple(&Images::x, &Images::y, &Images::dtype, &Images::x_shape, &Images::y_shape);
  }
};

// Of a convolution; (height, width) each. Padding is of zeros, at the top and at the left.
struct Window {
  std::array<int64_t, 2> kernel_size, stride, padding, dilation;
  static constexpr auto fields() {
    return std::make_tuple(&Window::kernel_size, &Window::stride, &Window::padding, &Window::dilation);
  }
};

// A step of a network; addresses of fp32 vectors and of packings, which callers have checked and keep alive.
struct Step {
  std::string kind;
  int64_t x, other, activation;
  Window window;
  std::array<int64_t, 2> padding_after;
  int64_t kernel;
  std::vector<uintptr_t> packed;
  uintptr_t weights;
  int64_t n;
  uintptr_t factors, bias;
  static constexpr auto fields() {
    return std::make_tuple(&Step::kind, &Step::x, &Step::other, &Step::activation, &Step::window, &Step::padding_after,
                           &Step::kernel, &Step::packed, &Step::weights, &Step::n, &Step::factors, &Step::bias);
  }
};

// An address and a shape [channels, height, width].
struct ImagesAt {
  uintptr_t address;
  std::array<int64_t, 3> shape;
  static constexpr auto fields() { return std::make_tuple(&ImagesAt::address, &ImagesAt::shape); }
};

void spmm(int64_t kernel, const Tokens& x, uintptr_t packed, const Epilogue& epilogue, const Matrix& y, int64_t parts) {
  const SpmmKernel& k = checked_kernel(kernel);
  SpmmArgs args = checked_product(k, x, packed, epilogue, y.address, y.ld);
  args.ldy = y.ld;
  py::gil_scoped_release release;
  run_spmm(k, args, Spread{static_cast<int>(parts)});
}

// The same, with the rows of W cut into matrices y [m, rows], each contiguous; `ys` are pairs of an address and rows.
void spmm_parts(int64_t kernel, const Tokens& x, uintptr_t packed, const Bias& bias,
                const std::vector<std::pair<uintptr_t, int64_t>>& ys, int64_t parts) {
  const SpmmKernel& k = checked_kernel(kernel);
  constexpr int64_t kMostRows = int64_t{1} << 40;
  std::vector<OutputPart> outputs;
  int64_t n = 0;
  for (const auto& [y, rows] : ys) {
    if (rows < 1 || rows > kMostRows - n) {
      throw std::invalid_argument("ys: expected rows in each, got " + std::to_string(rows));
    }
    outputs.push_back({pointer<void>(y), n, rows});
    n += rows;
  }
  const SpmmArgs args = checked_product(k, x, packed, {bias.address, bias.dtype, 0}, 0, n);
  py::gil_scoped_release release;
  run_spmm(k, args, Spread{static_cast<int>(parts)}, outputs);
}

Product checked_block_product(const BlockProduct& product, const Tokens& x) {
  const SpmmKernel& k = checked_kernel(product.kernel);
  const Epilogue epilogue{product.bias, product.bias_dtype, product.activation};
  return {&k, checked_product(k, x, product.packed, epilogue, 0, product.n)};
}

// One product or two, whose result may be added to a residual and normalized; y is contiguous and overlaps no input.
void block(const Tokens& x, const BlockProduct& first, const std::optional<BlockProduct>& second,
           const std::optional<ResidualNorm>& norm, uintptr_t y, int64_t parts) {
  Block block;
  block.first = checked_block_product(first, x);
  if (second) block.second = checked_block_product(*second, {0, x.dtype, x.m, first.n, 0});
  SpmmArgs& last = second ? block.second.args : block.first.args;
  last.y = pointer<void>(y);
  last.ldy = last.w->n;
  RowNorm rows{};
  if (norm) {
    check_numbers(x.dtype, norm->dtype, 0);
    rows.residual = pointer<const void>(norm->residual);
    rows.ld = norm->ld;
    rows.weight = pointer<const void>(norm->weight);
    rows.bias = pointer<const void>(norm->bias);
    rows.dtype = static_cast<DType>(norm->dtype);
    rows.eps = norm->eps;
    block.norm = &rows;
  }
  py::gil_scoped_release release;
  run_block(block, Spread{static_cast<int>(parts)});
}

// One packing for each group.
void conv(int64_t kernel, const Images& images, const std::vector<uintptr_t>& packed, const Epilogue& epilogue,
          const Window& window, int64_t parts) {
  const SpmmKernel& k = checked_kernel(kernel);
  if (!k.takes_conv) {
    throw std::invalid_argument(std::string("kernel: expected one that takes a convolution, got ") + k.name);
  }
  const SpmmArgs args = checked_args(k, images.x, images.dtype, images.y, epilogue);
  std::vector<const PackingHeader*> groups;
  for (uintptr_t group : packed) groups.push_back(checked_packing(k, group));
  const ConvSizes sizes{images.x_shape, images.y_shape, window.kernel_size,
                        window.stride,  window.padding, window.dilation};
  py::gil_scoped_release release;
  run_conv(k, args, sizes, groups, Spread{static_cast<int>(parts)});
}

NetworkStep step_of(const Step& s) {
  check_numbers(0, 0, s.activation);
  NetworkStep step{};
  step.kind = parse<StepKind>(s.kind, kStepKindNames, "kind");
  step.x = s.x;
  step.other = s.other;
  step.activation = static_cast<Activation>(s.activation);
  step.kernel_size = s.window.kernel_size;
  step.stride = s.window.stride;
  step.padding = s.window.padding;
  step.dilation = s.window.dilation;
  step.padding_after = s.padding_after;
  step.weights = pointer<const float>(s.weights);
  step.n = s.n;
  step.factors = pointer<const float>(s.factors);
  step.bias = pointer<const float>(s.bias);
  if (step.kind == StepKind::kConv) {
    step.kernel = &checked_kernel(s.kernel);
    for (uintptr_t group : s.packed) step.groups.push_back(checked_packing(*step.kernel, group));
  }
  return step;
}

Network make_network(int64_t inputs, const std::vector<Step>& steps, const std::vector<int64_t>& outputs) {
  std::vector<NetworkStep> made;
  for (const Step& step : steps) made.push_back(step_of(step));
  return {inputs, std::move(made), outputs};
}

void run_network(const Network& network, int64_t batch, const std::vector<ImagesAt>& inputs,
                 const std::vector<ImagesAt>& outputs, int64_t parts) {
  std::vector<InputImages> xs;
  std::vector<OutputImages> ys;
  for (const ImagesAt& x : inputs) xs.push_back({pointer<const float>(x.address), x.shape});
  for (const ImagesAt& y : outputs) ys.push_back({pointer<float>(y.address), y.shape});
  py::gil_scoped_release release;
  network.run(batch, xs, ys, Spread{static_cast<int>(parts)});
}

// Whether four vectors of `bytes` each, or none where the address is 0, hold what lies in `kept` one after another.
bool same_vectors(uintptr_t kept, uintptr_t a, uintptr_t b, uintptr_t c, uintptr_t d, int64_t bytes) {
  const char* at = pointer<const char>(kept);
  for (const uintptr_t vector : {a, b, c, d}) {
    if (bytes > 0 && vector != 0 && std::memcmp(at, pointer<const void>(vector), static_cast<size_t>(bytes)) != 0) {
      return false;
    }
    at += bytes;
  }
  return true;
}

}  // namespace

void bind_calls(py::module_& m) {
  m.def("spmm", &spmm, py::arg("kernel"), py::arg("x"), py::arg("packed"), py::arg("epilogue"), py::arg("y"),
        py::arg("parts") = 0);
  m.def("spmm_parts", &spmm_parts, py::arg("kernel"), py::arg("x"), py::arg("packed"), py::arg("bias"), py::arg("ys"),
        py::arg("parts") = 0);
  m.def("block", &block, py::arg("x"), py::arg("first"), py::arg("second"), py::arg("norm"), py::arg("y"),
        py::arg("parts") = 0);
  m.def("conv", &conv, py::arg("kernel"), py::arg("images"), py::arg("packed"), py::arg("epilogue"), py::arg("window"),
        py::arg("parts") = 0);
  py::class_<Network>(m, "Network")
      .def(py::init(&make_network), py::arg("inputs"), py::arg("steps"), py::arg("outputs"))
      .def("output_shapes", &Network::output_shapes, py::arg("inputs"))
      .def("run", &run_network, py::arg("batch"), py::arg("inputs"), py::arg("outputs"), py::arg("parts") = 0);
  m.def("same_vectors", &same_vectors, py::arg("kept"), py::arg("a"), py::arg("b"), py::arg("c"), py::arg("d"),
        py::arg("nbytes"));
}

}  // namespace bindings
}  // namespace sparseinfer
