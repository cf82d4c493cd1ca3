// The kernels around those that carry samples.
#include "finish.cuh"
#include "kernels.h"
#include "prepare.cuh"
#include "reduce.cuh"

namespace jkoflow::cuda {
namespace {

JKOFLOW_KERNEL(kSmallThreads, 1) prepare_kernel(JKOFLOW_KERNEL_PARAMS(PrepareParams) p) { Prepare::run(p); }
JKOFLOW_KERNEL(kSmallThreads, 1) reduce_kernel(JKOFLOW_KERNEL_PARAMS(ReduceParams) p) { Reduce::run(p); }
JKOFLOW_KERNEL(kSmallThreads, 1) finish_kernel(JKOFLOW_KERNEL_PARAMS(FinishParams) p) { Finish::run(p); }
// Never run: how many threads it may have tells the host what the kernels that run here are compiled for.
JKOFLOW_KERNEL(threads_that_tell(JKOFLOW_ARCHITECTURE), 1) architecture_kernel(JKOFLOW_KERNEL_PARAMS(NoParams)) {}

}  // namespace

const KernelOf<PrepareParams> kPrepareKernel = {&prepare_kernel, kSmallThreads, "prepare"};
const KernelOf<ReduceParams> kReduceKernel = {&reduce_kernel, kSmallThreads, "reduce"};
const KernelOf<FinishParams> kFinishKernel = {&finish_kernel, kSmallThreads, "finish"};
const KernelOf<NoParams> kArchitectureKernel = {&architecture_kernel, 0, "architecture"};

}  // namespace jkoflow::cuda
