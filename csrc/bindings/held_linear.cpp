// The operator held_linear(x, handle, bias, n), which torch's dispatcher calls without Python: in a compiled graph it
// costs what an operator of torch costs. `handle` holds the number of a HeldLinear of this process.
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <utility>

#include "bindings/bind.h"
#include "bindings/checks.h"
#include "bindings/torch_calls.h"

namespace py = pybind11;

namespace sparseinfer {
namespace bindings {
namespace {

// Up to `max_tokens` tokens, or any number where it is negative, run this kernel on this packing.
struct HeldBucket {
  int64_t max_tokens, kernel;
  uintptr_t packed;
  static constexpr auto fields() {
    return std::make_tuple(&HeldBucket::max_tokens, &HeldBucket::kernel, &HeldBucket::packed);
  }
};

// What handles stand for. A call keeps its own alive, so it owns the Python object that owns the packings.
struct Held {
  std::vector<HeldBucket> buckets;
  PyObject* owner;
  Held(std::vector<HeldBucket> all, const py::object& packings) : buckets(std::move(all)), owner(packings.ptr()) {
    Py_INCREF(owner);
  }
  Held(const Held&) = delete;
  Held& operator=(const Held&) = delete;
  ~Held() {
    const py::gil_scoped_acquire gil;
    Py_DECREF(owner);
  }
};

// Never destroyed: the interpreter may end first.
struct HeldTable {
  std::mutex mutex;
  std::unordered_map<int64_t, std::shared_ptr<const Held>> held;
  int64_t next = 0;
};
HeldTable& table() {
  static auto* const the_table = new HeldTable;
  return *the_table;
}

// Keeps a number valid as long as it lives.
class HeldLinear {
 public:
  HeldLinear(std::vector<HeldBucket> buckets, const py::object& packings) {
    if (buckets.empty() || buckets.back().max_tokens >= 0) {
      throw std::invalid_argument("buckets: expected some, the last one for any number of tokens");
    }
    for (const HeldBucket& bucket : buckets) checked_packing(checked_kernel(bucket.kernel), bucket.packed);
    auto held = std::make_shared<const Held>(std::move(buckets), packings);
    const std::lock_guard<std::mutex> lock(table().mutex);
    number_ = table().next++;
    table().held.emplace(number_, std::move(held));
  }
  HeldLinear(const HeldLinear&) = delete;
  HeldLinear& operator=(const HeldLinear&) = delete;
  ~HeldLinear() {
    std::shared_ptr<const Held> last;  // destroyed without the lock: it takes that of the interpreter
    const std::lock_guard<std::mutex> lock(table().mutex);
    const auto at = table().held.find(number_);
    last = std::move(at->second);
    table().held.erase(at);
  }
  int64_t number() const { return number_; }

 private:
  int64_t number_;
};

std::shared_ptr<const Held> held_of(int64_t number) {
  const std::lock_guard<std::mutex> lock(table().mutex);
  const auto at = table().held.find(number);
  if (at == table().held.end()) {
    throw std::invalid_argument("handle: expected one of a layer of this process, got " + std::to_string(number));
  }
  return at->second;
}

TorchCalls g_torch;

void check(int32_t error) {
  if (error != 0) throw std::runtime_error("torch: a call of sparseinfer::held_linear failed");
}

// A tensor that this call owns.
class Owned {
 public:
  explicit Owned(TensorHandle tensor) : tensor_(tensor) {}
  explicit Owned(StableIValue value) : tensor_(pointer<AtenTensorOpaque>(value)) {}
  Owned(Owned&& other) noexcept : tensor_(std::exchange(other.tensor_, nullptr)) {}
  Owned& operator=(Owned&& other) noexcept {
    std::swap(tensor_, other.tensor_);
    return *this;
  }
  ~Owned() {
    if (tensor_ != nullptr) g_torch.remove(tensor_);
  }

  // As an operator gets a tensor or None.
  static Owned optional(StableIValue value) {
    const std::unique_ptr<StableIValue> inner(pointer<StableIValue>(value));
    return Owned(inner == nullptr ? StableIValue{0} : *inner);
  }

  explicit operator bool() const { return tensor_ != nullptr; }
  TensorHandle get() const { return tensor_; }
  StableIValue release() { return reinterpret_cast<StableIValue>(std::exchange(tensor_, nullptr)); }

  int64_t dim() const {
    int64_t dim = 0;
    check(g_torch.dim(tensor_, &dim));
    return dim;
  }
  const int64_t* sizes() const {
    int64_t* sizes = nullptr;
    check(g_torch.sizes(tensor_, &sizes));
    return sizes;
  }
  const int64_t* strides() const {
    int64_t* strides = nullptr;
    check(g_torch.strides(tensor_, &strides));
    return strides;
  }
  int32_t dtype() const {
    int32_t dtype = 0;
    check(g_torch.dtype(tensor_, &dtype));
    return dtype;
  }
  uintptr_t address() const {
    void* data = nullptr;
    check(g_torch.data_ptr(tensor_, &data));
    return reinterpret_cast<uintptr_t>(data);
  }
  void check_on_cpu(const char* name) const {
    int32_t type = 0;
    check(g_torch.device_type(tensor_, &type));
    if (type != g_torch.cpu()) throw std::invalid_argument(std::string(name) + ": expected a tensor on the CPU");
  }

 private:
  TensorHandle tensor_;
};

// Contiguous, on the CPU, not initialized.
Owned empty(const std::vector<int64_t>& sizes, int32_t dtype) {
  std::vector<int64_t> strides(sizes.size());
  int64_t step = 1;
  for (size_t d = sizes.size(); d-- > 0; step *= std::max<int64_t>(1, sizes[d])) strides[d] = step;
  TensorHandle made = nullptr;
  check(
      g_torch.empty(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), dtype, g_torch.cpu(), 0, &made));
  return Owned(made);
}

int64_t dtype_number(const Owned& tensor, const char* name) {
  const int32_t dtype = tensor.dtype();
  if (dtype == g_torch.float32()) return static_cast<int64_t>(DType::kF32);
  if (dtype == g_torch.bfloat16()) return static_cast<int64_t>(DType::kBF16);
  if (dtype == g_torch.float16()) return static_cast<int64_t>(DType::kF16);
  throw py::type_error(std::string(name) + ": expected dtype float32, bfloat16 or float16");
}

// x [..., k] as rows, copied where they do not lie a step apart.
Tokens rows_of(Owned& x) {
  const int64_t dim = x.dim();
  if (dim < 1) throw std::invalid_argument("x: expected at least 1 dimension, got a scalar");
  const int64_t dtype = dtype_number(x, "x"), k = x.sizes()[dim - 1];
  int64_t m = 1;
  for (int64_t d = 0; d < dim - 1; ++d) m *= x.sizes()[d];
  const bool steps_1 = k <= 1 || x.strides()[dim - 1] == 1;
  if (dim == 2 && steps_1) return {x.address(), dtype, m, k, x.strides()[0]};
  bool contiguous = steps_1;
  int64_t step = k;
  for (int64_t d = dim - 1; d-- > 0 && contiguous; step *= x.sizes()[d]) {
    contiguous = x.sizes()[d] == 1 || x.strides()[d] == step;
  }
  if (!contiguous && m > 0 && k > 0) {
    Owned copy = empty({x.sizes(), x.sizes() + dim}, x.dtype());
    check(g_torch.copy(copy.get(), x.get(), 0));
    x = std::move(copy);
  }
  return {x.address(), dtype, m, k, k};
}

Epilogue epilogue_of(const Owned& bias, int64_t n) {
  if (!bias) return {0, 0, 0};
  bias.check_on_cpu("bias");
  if (bias.dim() != 1 || bias.sizes()[0] != n || (n > 1 && bias.strides()[0] != 1)) {
    throw std::invalid_argument("bias: expected a contiguous vector of " + std::to_string(n));
  }
  return {bias.address(), dtype_number(bias, "bias"), 0};
}

int64_t number_in(const Owned& handle) {
  handle.check_on_cpu("handle");
  if (handle.dim() != 0 || handle.dtype() != g_torch.int64()) {
    throw std::invalid_argument("handle: expected an int64 tensor of no dimensions");
  }
  return *pointer<const int64_t>(handle.address());
}

// held_linear(Tensor x, Tensor handle, Tensor? bias, int n) -> Tensor
void held_linear(StableIValue* stack, uint64_t, uint64_t) {
  Owned x(stack[0]);
  const Owned handle(stack[1]), bias = Owned::optional(stack[2]);
  const auto n = static_cast<int64_t>(stack[3]);
  x.check_on_cpu("x");
  const std::shared_ptr<const Held> held = held_of(number_in(handle));
  std::vector<int64_t> y_sizes(x.sizes(), x.sizes() + x.dim());
  const Tokens rows = rows_of(x);
  auto bucket = held->buckets.begin();
  while (bucket->max_tokens >= 0 && bucket->max_tokens < rows.m) ++bucket;
  const SpmmKernel& kernel = checked_kernel(bucket->kernel);
  SpmmArgs args = checked_product(kernel, rows, bucket->packed, epilogue_of(bias, n), 0, n);
  y_sizes.back() = n;
  Owned y = empty(y_sizes, x.dtype());
  args.y = pointer<void>(y.address());
  args.ldy = n;
  run_spmm(kernel, args, Spread{});
  stack[0] = y.release();
}

}  // namespace

void bind_held_linear(py::module_& m) {
  py::class_<HeldLinear>(m, "HeldLinear")
      .def(py::init<std::vector<HeldBucket>, const py::object&>(), py::arg("buckets"), py::arg("packings"))
      .def_property_readonly("number", &HeldLinear::number);
  m.def("torch_call_names", &torch_call_names);
  m.def(
      "register_held_linear",
      [](const std::vector<uintptr_t>& addresses) {
        g_torch = torch_calls_at(addresses);
        constexpr uint64_t kVersion = uint64_t{2} << 56 | uint64_t{10} << 48;  // torch's interface as of 2.10
        void* library = nullptr;  // as long as the process: its end would take the operator away
        check(g_torch.init_impl("sparseinfer", "CPU", __FILE__, __LINE__, &library));
        check(g_torch.impl(library, "held_linear", &held_linear, kVersion));
      },
      py::arg("addresses"));
}

}  // namespace bindings
}  // namespace sparseinfer
