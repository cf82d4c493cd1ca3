// What the host needs of the CUDA runtime. runtime.cu implements it; so does the emulation, for its tests.
#pragma once

#include <cstddef>

#include "gpu.h"
#include "kernels.h"

namespace jkoflow::cuda::runtime {

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

// All throw std::runtime_error. By the device's attributes alone, so that it may stay unused: a newer GPU than what the
// kernels are compiled for counts as what it is.
Gpu gpu_of(int device);
// The current device, by what runs on it. This and the next question load the kernels, also while a graph is captured.
Gpu gpu();
// Thread blocks of a kernel that a multiprocessor of the current device holds at a time.
int blocks_per_multiprocessor(const Kernel& kernel, size_t shared_bytes);

// Starts a kernel on a stream of the current device. blocks > 0.
template <class Parameters>
void start(const KernelOf<Parameters>& kernel, int blocks, size_t shared_bytes, void* stream,
           const Parameters& parameters);

}  // namespace jkoflow::cuda::runtime
