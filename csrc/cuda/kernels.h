// The compiled kernels as the host picks them. Each padded width H has its own sources, so that they compile in
// parallel.
#pragma once

#include "params.h"
#include "precision.h"

namespace jkoflow::cuda {

template <class Parameters>
struct KernelOf {
  void (*run)(const Parameters) = nullptr;
  int threads = 0;
  int tile = 0;        // samples
  int small_tile = 0;  // samples of the tile that a block may carry last
  int panels = 0;      // of tile x H floats, at the start of shared memory
  int blocks = 1;      // wished for on a multiprocessor
  const char* name = "";
};
using Kernel = KernelOf<Params>;

template <int H>
Kernel forward_kernel_of(Precision precision, bool tangents);
// Of the adjoint and of the loss.
template <int H>
Kernel backward_kernel_of(Precision precision, bool tangents);

extern const KernelOf<PrepareParams> kPrepareKernel;
extern const KernelOf<ReduceParams> kReduceKernel;
extern const KernelOf<FinishParams> kFinishKernel;

}  // namespace jkoflow::cuda
