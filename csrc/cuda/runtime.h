// What the host needs of the CUDA runtime. runtime.cu implements it; so does the emulation, for its tests.
#pragma once

#include <cstddef>
#include <string>

#include "kernels.h"

namespace jkoflow::cuda::runtime {

struct Device {
  int multiprocessors;
  size_t shared_per_block, shared_per_multiprocessor;  // bytes, the former after opting in
};

// Makes a device current for the lifetime of the object.
class Current {
 public:
  explicit Current(int device);
  ~Current();
  Current(const Current&) = delete;
  Current& operator=(const Current&) = delete;

 private:
  int previous_, device_;
};

// Of the current device. Throw std::runtime_error.
Device device_limits();
int blocks_per_multiprocessor(const Kernel& kernel, size_t shared_bytes);

// Starts a kernel on a stream of the current device. blocks > 0.
template <class Parameters>
void start(const KernelOf<Parameters>& kernel, int blocks, size_t shared_bytes, void* stream,
           const Parameters& parameters);

}  // namespace jkoflow::cuda::runtime
