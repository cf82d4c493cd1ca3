// The compiled kernels as the host picks them.
#pragma once

#include "params.h"
#include "precision.h"
#include "shapes.h"

namespace jkoflow::cuda {

template <class Parameters>
using RunOf = void (*)(const Parameters);

template <class Parameters>
struct KernelOf {
  RunOf<Parameters> run = nullptr;
  int threads = 0;
  const char* name = "";
};
using Kernel = KernelOf<Params>;

// Which one of the kernels that carry samples.
struct KernelKind {
  Task task;
  int H;  // one of kWidths
  Precision precision;
  bool tangents;  // whether directions of the divergence are carried through the layers
};
Kernel kernel_of(const KernelKind& kind);

// Each has a source of its own, which sources.cmake writes, so that they compile in parallel.
template <Task T, int H, Precision P>
RunOf<Params> instance(bool tangents);

extern const KernelOf<PrepareParams> kPrepareKernel;
extern const KernelOf<ReduceParams> kReduceKernel;
extern const KernelOf<FinishParams> kFinishKernel;

// By its most threads a kernel that is never run tells what the kernels which run on a GPU are compiled for.
struct NoParams {};
extern const KernelOf<NoParams> kArchitectureKernel;
constexpr int threads_that_tell(int architecture) { return 32 * (architecture / 10); }
constexpr int architecture_told_by(int threads) { return threads / 32 * 10; }

}  // namespace jkoflow::cuda
