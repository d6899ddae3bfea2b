// Converts tuples from Python, each a group of related arguments, to structs with named fields. A struct lists its
// fields once, in the order of the tuple; the stubs (sparseinfer/_core.pyi, _cuda.pyi) name the same tuples.
//
// A tuple of wrong length or a field of wrong type raises TypeError, like any argument of wrong type.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

namespace sparseinfer {
namespace bindings {

// x [m, k] with rows ldx elements apart; dtype is a number, as in `core.dtypes`.
struct Tokens {
  uintptr_t address;
  int64_t dtype, m, k, ldx;
  static constexpr auto fields() {
    return std::make_tuple(&Tokens::address, &Tokens::dtype, &Tokens::m, &Tokens::k, &Tokens::ldx);
  }
};

// bias [n], 0: none.
struct Bias {
  uintptr_t address;
  int64_t dtype;
  static constexpr auto fields() { return std::make_tuple(&Bias::address, &Bias::dtype); }
};

// What is done to the sums before they are y: activation(sum + bias). `activation` is a number, as in
// `core.activations`.
struct Epilogue {
  uintptr_t bias;
  int64_t bias_dtype, activation;
  static constexpr auto fields() {
    return std::make_tuple(&Epilogue::bias, &Epilogue::bias_dtype, &Epilogue::activation);
  }
};

// One product of a block: a kernel, the packing of W [n, k] that it reads, and the epilogue.
struct BlockProduct {
  int64_t kernel;
  uintptr_t packed, bias;
  int64_t bias_dtype, activation, n;
  static constexpr auto fields() {
    return std::make_tuple(&BlockProduct::kernel, &BlockProduct::packed, &BlockProduct::bias, &BlockProduct::bias_dtype,
                           &BlockProduct::activation, &BlockProduct::n);
  }
};

// A residual [m, n] of y's dtype with rows ld elements apart, weight and bias [n] of `dtype` or 0, and eps.
struct ResidualNorm {
  uintptr_t residual;
  int64_t ld;
  uintptr_t weight, bias;
  int64_t dtype;
  double eps;
  static constexpr auto fields() {
    return std::make_tuple(&ResidualNorm::residual, &ResidualNorm::ld, &ResidualNorm::weight, &ResidualNorm::bias,
                           &ResidualNorm::dtype, &ResidualNorm::eps);
  }
};

// y [m, columns], or a dense weight, with rows `ld` elements apart: of spmm n, whose y is contiguous.
struct Matrix {
  uintptr_t address;
  int64_t ld;
  static constexpr auto fields() { return std::make_tuple(&Matrix::address, &Matrix::ld); }
};

template <class T, class = void>
struct is_struct : std::false_type {};
template <class T>
struct is_struct<T, std::void_t<decltype(T::fields())>> : std::true_type {};

// An int, or what can stand for one. False: it is none, or does not fit.
template <class Int>
bool load_int(PyObject* item, Int& out) {
  pybind11::object index;
  if (!PyLong_Check(item)) {
    if (PyFloat_Check(item) || !PyIndex_Check(item)) return false;
    index = pybind11::reinterpret_steal<pybind11::object>(PyNumber_Index(item));
    item = index.ptr();
  }
  const auto value = item == nullptr                ? Int{}
                     : std::is_unsigned<Int>::value ? static_cast<Int>(PyLong_AsUnsignedLongLong(item))
                                                    : static_cast<Int>(PyLong_AsLongLong(item));
  if ((value == static_cast<Int>(-1) || item == nullptr) && PyErr_Occurred() != nullptr) {
    PyErr_Clear();
    return false;
  }
  out = value;
  return true;
}

template <class Field>
bool load_field(PyObject* item, Field& out) {
  if constexpr (std::is_integral<Field>::value) {
    static_assert(sizeof(Field) == 8, "the range of other integers is not checked here");
    return load_int(item, out);
  } else {
    pybind11::detail::make_caster<Field> caster;
    if (!caster.load(item, true)) return false;
    out = pybind11::detail::cast_op<Field&&>(std::move(caster));
    return true;
  }
}

template <class T, size_t... kIndex>
bool load_fields(PyObject* tuple, T& out, std::index_sequence<kIndex...>) {
  constexpr auto fields = T::fields();
  return (load_field(PyTuple_GET_ITEM(tuple, kIndex), out.*std::get<kIndex>(fields)) && ...);
}

}  // namespace bindings
}  // namespace sparseinfer

namespace pybind11 {
namespace detail {

template <class T>
class type_caster<T, enable_if_t<sparseinfer::bindings::is_struct<T>::value>> {
 public:
  PYBIND11_TYPE_CASTER(T, const_name("tuple"));

  bool load(handle source, bool) {
    constexpr size_t kFields = std::tuple_size<decltype(T::fields())>::value;
    if (!PyTuple_Check(source.ptr()) || PyTuple_GET_SIZE(source.ptr()) != static_cast<Py_ssize_t>(kFields))
      return false;
    return sparseinfer::bindings::load_fields(source.ptr(), value, std::make_index_sequence<kFields>());
  }
};

}  // namespace detail
}  // namespace pybind11
