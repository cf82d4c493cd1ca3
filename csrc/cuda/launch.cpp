// The entry points of launch.h: a plan, then its launches.
#include "launch.h"

#include "plan.h"

namespace jkoflow::cuda {
namespace {

size_t bytes(const Problem& problem, const Adjoint* adjoint, const JkoLoss* loss, Launch launch) {
  const runtime::Current current(launch.device);
  launch.workspace = nullptr;
  return make_plan(problem, adjoint, loss, launch).bytes;
}

void run(const Problem& problem, const Adjoint* adjoint, const JkoLoss* loss, const Launch& launch) {
  const runtime::Current current(launch.device);
  const Plan plan = make_plan(problem, adjoint, loss, launch);
  if (plan.blocks > 0) {
    runtime::start(kPrepareKernel, plan.prepare_blocks, 0, launch.stream, plan.prepare);
    runtime::start(plan.kernel, plan.blocks, plan.shared_bytes, launch.stream, plan.params);
  }
  // Without samples the sums are over nothing: the gradients become zero.
  if (plan.reduce.count > 0) {
    runtime::start(kReduceKernel, (plan.reduce.count + kReduceKernel.threads - 1) / kReduceKernel.threads, 0,
                   launch.stream, plan.reduce);
  }
  if (plan.finish_blocks > 0) runtime::start(kFinishKernel, plan.finish_blocks, 0, launch.stream, plan.finish);
}

// An adjoint that wants every gradient, whose workspace is enough for all others.
Adjoint everything(const Problem& problem) {
  Adjoint adjoint;
  static float wanted;
  for (int l = 0; l <= problem.hidden_layers; ++l) adjoint.weight[l] = adjoint.bias[l] = &wanted;
  return adjoint;
}

}  // namespace

size_t forward_bytes(const Problem& problem, const Launch& launch) { return bytes(problem, nullptr, nullptr, launch); }
size_t backward_bytes(const Problem& problem, const Launch& launch) {
  const Adjoint adjoint = everything(problem);
  return bytes(problem, &adjoint, nullptr, launch);
}
size_t jko_loss_bytes(const Problem& problem, const Launch& launch) {
  const Adjoint adjoint = everything(problem);
  const JkoLoss loss{1.0, nullptr};
  return bytes(problem, &adjoint, &loss, launch);
}

void forward(const Problem& problem, const Launch& launch) { run(problem, nullptr, nullptr, launch); }
void backward(const Problem& problem, const Adjoint& adjoint, const Launch& launch) {
  run(problem, &adjoint, nullptr, launch);
}
void jko_loss(const Problem& problem, const JkoLoss& loss, const Adjoint& adjoint, const Launch& launch) {
  run(problem, &adjoint, &loss, launch);
}

}  // namespace jkoflow::cuda
