// The functions that define the parts of the Python module sparseinfer._core, by subject.
#pragma once

#include <pybind11/pybind11.h>

namespace sparseinfer {
namespace bindings {

void bind_calls(pybind11::module_& m);         // calls.cpp: products and convolutions
void bind_attention(pybind11::module_& m);     // attention.cpp
void bind_held_linear(pybind11::module_& m);   // held_linear.cpp: an operator of torch's dispatcher
void bind_packings(pybind11::module_& m);      // packings.cpp: formats, packings of the CPU and back
void bind_gpu_packings(pybind11::module_& m);  // gpu_packings.cpp: the same for those of the CUDA kernels
void bind_machine(pybind11::module_& m);       // machine.cpp: levels, kernels, threads

}  // namespace bindings
}  // namespace sparseinfer
