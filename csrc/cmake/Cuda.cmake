# Builds the module _cuda, depending on SPARSEINFER_CUDA:
#
#   OFF    no
#   ON     yes; without nvcc the build stops
#   AUTO   if nvcc and NVIDIA's driver are found: a machine without the driver could not run it, and compiling for
#          several architectures would slow down all other builds by a minute
#
# nvcc is looked for in CUDACXX, on the PATH, in /usr/local/cuda and in the Python environment, where the package
# nvidia-cuda-nvcc puts it.
set(SPARSEINFER_CUDA AUTO CACHE STRING "The CUDA kernels: AUTO, ON or OFF")
set_property(CACHE SPARSEINFER_CUDA PROPERTY STRINGS AUTO ON OFF)

function(sparseinfer_find_nvcc result)
  file(GLOB from_python ${Python_SITELIB}/nvidia/cu*/bin ${Python_SITELIB}/nvidia/cuda_nvcc/bin)
  find_program(SPARSEINFER_NVCC nvcc HINTS $ENV{CUDACXX} $ENV{CUDA_HOME}/bin PATHS /usr/local/cuda/bin ${from_python})
  if(EXISTS "$ENV{CUDACXX}")
    set(${result} $ENV{CUDACXX} PARENT_SCOPE)
  elseif(SPARSEINFER_NVCC)
    set(${result} ${SPARSEINFER_NVCC} PARENT_SCOPE)
  else()
    set(${result} "" PARENT_SCOPE)
  endif()
endfunction()

set(SPARSEINFER_WITH_CUDA OFF)
if(NOT SPARSEINFER_CUDA STREQUAL "OFF")
  sparseinfer_find_nvcc(nvcc)
  if(SPARSEINFER_CUDA STREQUAL "ON" AND nvcc STREQUAL "")
    message(FATAL_ERROR "SPARSEINFER_CUDA=ON: nvcc was not found (set CUDACXX, or pip install nvidia-cuda-nvcc)")
  endif()
  if(NOT nvcc STREQUAL "" AND (SPARSEINFER_CUDA STREQUAL "ON" OR EXISTS /proc/driver/nvidia/version))
    set(SPARSEINFER_WITH_CUDA ON)
  endif()
endif()
if(NOT SPARSEINFER_WITH_CUDA)
  return()
endif()

set(CMAKE_CUDA_COMPILER ${nvcc} CACHE FILEPATH "nvcc")
# The Python packages have lib where nvcc looks for lib64.
get_filename_component(SPARSEINFER_CUDA_LIB ${nvcc}/../../lib ABSOLUTE)
set(CMAKE_CUDA_FLAGS_INIT -L${SPARSEINFER_CUDA_LIB})
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_EXTENSIONS OFF)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
set(CMAKE_CUDA_ARCHITECTURES OFF)  # each folder names its own
enable_language(CUDA)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.5)  # cudaGetDriverEntryPointByVersion
  set(SPARSEINFER_WITH_CUDA OFF)
  set(found "expected CUDA 12.5 or newer, got ${CMAKE_CUDA_COMPILER_VERSION} in ${nvcc}")
  if(SPARSEINFER_CUDA STREQUAL "ON")
    message(FATAL_ERROR "SPARSEINFER_CUDA=ON: ${found}")
  endif()
  message(WARNING "sparseinfer is built without CUDA kernels: ${found}")
  return()
endif()
set(CMAKE_CUDA_COMPILER_LAUNCHER sh ${CMAKE_CURRENT_LIST_DIR}/keep_output.sh)

# Spills and local memory are errors: no kernel here is to have any. tests/cuda/test_cuda_build.py reads what -v says.
set(SPARSEINFER_CUDA_FLAGS -Werror=all-warnings -Xptxas=-v,-warn-spills,-warn-lmem-usage -Xcompiler=-Wall,-Wextra)
# Machine code for 8.0 and, beside it, PTX that the driver compiles for whatever is newer; for 9.0a machine code alone.
set(SPARSEINFER_CUDA_ARCH_simt -gencode=arch=compute_80,code=[compute_80,sm_80] -gencode=arch=compute_90a,code=sm_90a)
set(SPARSEINFER_CUDA_ARCH_sm80 -gencode=arch=compute_80,code=[compute_80,sm_80])
set(SPARSEINFER_CUDA_ARCH_sm90 -gencode=arch=compute_90a,code=sm_90a)

function(sparseinfer_add_cuda_module)
  file(GLOB host_sources CONFIGURE_DEPENDS csrc/cuda/*.cpp)
  pybind11_add_module(_cuda MODULE csrc/bindings/cuda_module.cpp ${host_sources})
  target_link_libraries(_cuda PRIVATE sparseinfer_core)
  target_include_directories(_cuda PRIVATE ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
  target_link_directories(_cuda PRIVATE ${SPARSEINFER_CUDA_LIB})
  target_compile_definitions(_cuda PRIVATE SPARSEINFER_VERSION="${SKBUILD_PROJECT_VERSION}")
  foreach(folder simt sm80 sm90)
    file(GLOB sources CONFIGURE_DEPENDS csrc/cuda/${folder}/*.cu)
    target_sources(_cuda PRIVATE ${sources})
    set_source_files_properties(${sources} PROPERTIES COMPILE_OPTIONS "${SPARSEINFER_CUDA_FLAGS};${SPARSEINFER_CUDA_ARCH_${folder}}")
  endforeach()
  install(TARGETS _cuda DESTINATION sparseinfer)
endfunction()
