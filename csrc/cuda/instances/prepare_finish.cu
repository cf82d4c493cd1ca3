#include "../kernels.h"
#include "../prepare.cuh"
#include "../reduce.cuh"

namespace jkoflow::cuda {
namespace {

constexpr int kThreads = 256;

JKOFLOW_KERNEL(kThreads, 1) prepare_kernel(JKOFLOW_KERNEL_PARAMS(PrepareParams) p) { Prepare::run(p); }
JKOFLOW_KERNEL(kThreads, 1) reduce_kernel(JKOFLOW_KERNEL_PARAMS(ReduceParams) p) { Reduce::run(p); }
JKOFLOW_KERNEL(kThreads, 1) finish_kernel(JKOFLOW_KERNEL_PARAMS(FinishParams) p) { Finish::run(p); }

}  // namespace

const KernelOf<PrepareParams> kPrepareKernel = {&prepare_kernel, kThreads, 0, 0, 0, 1, "prepare"};
const KernelOf<ReduceParams> kReduceKernel = {&reduce_kernel, kThreads, 0, 0, 0, 1, "reduce"};
const KernelOf<FinishParams> kFinishKernel = {&finish_kernel, kThreads, 0, 0, 0, 1, "finish"};

}  // namespace jkoflow::cuda
