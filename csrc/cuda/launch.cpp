// The entry points of launch.h: a plan, then its launches.
#include "launch.h"

#include "runtime.h"

namespace jkoflow::cuda {
namespace {

// What a plan for the current device starts from.
struct Basis {
  Gpu gpu;
  Choice choice;
  int resident = 0;  // thread blocks on a multiprocessor
};

Basis basis_of(const Problem& problem, Task task, Precision precision) {
  Basis basis;
  basis.gpu = runtime::gpu();
  basis.choice = choose(problem, precision, task, basis.gpu);
  if (problem.batch > 0) {
    basis.resident = runtime::blocks_per_multiprocessor(kernel_of(basis.choice.kind), basis.choice.shared_bytes());
  }
  return basis;
}

void run(const Request& request, const Launch& launch) {
  const runtime::Current current(launch.device);
  const Basis basis = basis_of(request.problem, task_of(request.call), launch.precision);
  const Plan plan = make_plan(request, basis.choice, basis.gpu, basis.resident, launch.workspace);
  const auto start = [&](const auto& kernel, int blocks, size_t shared_bytes, const auto& params) {
    if (blocks > 0) runtime::start(kernel, blocks, shared_bytes, launch.stream, params);
  };
  start(kPrepareKernel, plan.prepare_blocks, 0, plan.prepare);
  start(kernel_of(plan.choice.kind), plan.blocks, plan.choice.shared_bytes(), plan.params);
  // Without samples the sums are over nothing: the gradients become zero.
  start(kReduceKernel, plan.reduce_blocks, kSmallShared, plan.reduce);
  start(kFinishKernel, plan.finish_blocks, kSmallShared, plan.finish);
}

}  // namespace

Gpu device_gpu(int device) { return runtime::gpu_of(device); }

Plan plan(const Problem& problem, Call call, const Launch& launch) {
  const runtime::Current current(launch.device);
  const Basis basis = basis_of(problem, task_of(call), launch.precision);
  return make_plan(problem, call, basis.choice, basis.gpu, basis.resident);
}

size_t workspace_bytes(const Problem& problem, Call call, const Launch& launch) {
  return plan(problem, call, launch).bytes;
}

void forward(const Problem& problem, const Launch& launch) { run({Call::kForward, problem}, launch); }
void backward(const Problem& problem, const Adjoint& adjoint, const Launch& launch) {
  run({Call::kBackward, problem, &adjoint}, launch);
}
void jko_loss(const Problem& problem, const JkoLoss& loss, const Adjoint& adjoint, const Launch& launch) {
  run({Call::kJkoLoss, problem, &adjoint, &loss}, launch);
}
void evaluate(const Problem& problem, const Launch& launch) { run({Call::kEvaluate, problem}, launch); }
void evaluate_backward(const Problem& problem, const Adjoint& adjoint, const Launch& launch) {
  run({Call::kEvaluateBackward, problem, &adjoint}, launch);
}
void adaptive(const Problem& problem, const Adaptive& control, const RowBuffers& rows, const Launch& launch) {
  run({Call::kAdaptive, problem, nullptr, nullptr, &control, &rows}, launch);
}
void adaptive_backward(const Problem& problem, const Adaptive& control, const RowBuffers& rows, const Adjoint& adjoint,
                       const Launch& launch) {
  run({Call::kAdaptiveBackward, problem, &adjoint, nullptr, &control, &rows}, launch);
}

}  // namespace jkoflow::cuda
