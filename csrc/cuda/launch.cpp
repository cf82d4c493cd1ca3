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

void run(const Problem& problem, const Adjoint* adjoint, const JkoLoss* loss, const Launch& launch) {
  const runtime::Current current(launch.device);
  const Basis basis = basis_of(problem, adjoint == nullptr ? Task::kForward : Task::kBackward, launch.precision);
  const Plan plan = make_plan(problem, adjoint, loss, basis.choice, basis.gpu, basis.resident, launch.workspace);
  const auto start = [&](const auto& kernel, int blocks, size_t shared_bytes, const auto& params) {
    if (blocks > 0) runtime::start(kernel, blocks, shared_bytes, launch.stream, params);
  };
  start(kPrepareKernel, plan.prepare_blocks, 0, plan.prepare);
  start(kernel_of(plan.choice.kind), plan.blocks, plan.choice.shared_bytes(), plan.params);
  // Without samples the sums are over nothing: the gradients become zero.
  start(kReduceKernel, plan.reduce_blocks, 0, plan.reduce);
  start(kFinishKernel, plan.finish_blocks, 0, plan.finish);
}

}  // namespace

Gpu device_gpu(int device) { return runtime::gpu_of(device); }

Plan plan(const Problem& problem, Call call, const Launch& launch) {
  const runtime::Current current(launch.device);
  const Basis basis = basis_of(problem, task_of(call), launch.precision);
  return make_plan(problem, call, basis.choice, basis.gpu, basis.resident);
}

size_t forward_bytes(const Problem& problem, const Launch& launch) {
  return plan(problem, Call::kForward, launch).bytes;
}
size_t backward_bytes(const Problem& problem, const Launch& launch) {
  return plan(problem, Call::kBackward, launch).bytes;
}
size_t jko_loss_bytes(const Problem& problem, const Launch& launch) {
  return plan(problem, Call::kJkoLoss, launch).bytes;
}

void forward(const Problem& problem, const Launch& launch) { run(problem, nullptr, nullptr, launch); }
void backward(const Problem& problem, const Adjoint& adjoint, const Launch& launch) {
  run(problem, &adjoint, nullptr, launch);
}
void jko_loss(const Problem& problem, const JkoLoss& loss, const Adjoint& adjoint, const Launch& launch) {
  run(problem, &adjoint, &loss, launch);
}

}  // namespace jkoflow::cuda
