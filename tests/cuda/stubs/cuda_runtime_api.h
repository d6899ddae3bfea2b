#pragma once
#include "emulator.h"

// What csrc/cuda/launch.cpp asks of the runtime; tests/cuda/launched.cpp answers.
#define CUDART_VERSION 13000
struct cudaDeviceProp {
  const char* name;
  int major, minor, multiProcessorCount;
  size_t sharedMemPerBlockOptin;
};
cudaError_t cudaDriverGetVersion(int* version);
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaSetDevice(int device);
const char* cudaGetErrorString(cudaError_t error);
