# Compiler flags of each instruction-set level, for cpu/kernels_<level>.cpp only.
# Kernels throw no exceptions: -fno-exceptions keeps a weak reference to the unwinder out of their object files.
# No level may use -march=native or -ffast-math: a wheel runs on other machines, and NaN must stay NaN.
set(SPARSEINFER_ISA_FLAGS_scalar -fno-exceptions)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  set(SPARSEINFER_ISAS scalar avx2 avx512 avx512vnni avx512bf16 amx)
  set(SPARSEINFER_ISA_FLAGS_avx2 -fno-exceptions -mavx2 -mfma -mf16c)
  set(SPARSEINFER_ISA_FLAGS_avx512 -fno-exceptions -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mf16c -mprefer-vector-width=512)
  set(SPARSEINFER_ISA_FLAGS_avx512vnni ${SPARSEINFER_ISA_FLAGS_avx512} -mavx512vbmi -mavx512vbmi2 -mavx512vnni)
  set(SPARSEINFER_ISA_FLAGS_avx512bf16 ${SPARSEINFER_ISA_FLAGS_avx512vnni} -mavx512bf16)
  set(SPARSEINFER_ISA_FLAGS_amx ${SPARSEINFER_ISA_FLAGS_avx512bf16} -mamx-tile -mamx-bf16 -mamx-int8)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64")
  set(SPARSEINFER_ISAS scalar neon)
  set(SPARSEINFER_ISA_FLAGS_neon -fno-exceptions)
else()
  set(SPARSEINFER_ISAS scalar)
endif()
