// One call as launches: how many thread blocks, their shares of the batch, where everything lies in the workspace.
// Plain C++: it needs neither a GPU nor CUDA.
#pragma once

#include "../problem.h"
#include "choose.h"
#include "rows.h"

namespace jkoflow::cuda {

enum class Call { kForward, kBackward, kJkoLoss, kEvaluate, kEvaluateBackward, kAdaptive, kAdaptiveBackward };

constexpr Task task_of(Call call) {
  switch (call) {
    case Call::kForward:
    case Call::kEvaluate:
      return Task::kForward;
    case Call::kAdaptive:
      return Task::kAdaptiveForward;
    case Call::kAdaptiveBackward:
      return Task::kAdaptiveBackward;
    default:
      return Task::kBackward;
  }
}
constexpr bool evaluates(Call call) { return call == Call::kEvaluate || call == Call::kEvaluateBackward; }

// A call and what it is about; null what it does not take.
struct Request {
  Call call;
  const Problem& problem;
  const Adjoint* adjoint = nullptr;
  const JkoLoss* loss = nullptr;
  const Adaptive* adaptive = nullptr;
  const RowBuffers* rows = nullptr;
};

// Thread blocks of 0: no launch.
struct Plan {
  Choice choice;
  int resident = 0;  // thread blocks of the kernel that a multiprocessor holds at a time
  int blocks = 0;    // 0: nothing to integrate
  Params params{};
  PrepareParams prepare{};
  int prepare_blocks = 0;
  ReduceParams reduce{};
  int reduce_blocks = 0;  // 0: no gradients of parameters
  FinishParams finish{};
  int finish_blocks = 0;  // 0: no gradients of parameters and no loss
  size_t bytes = 0;       // of workspace
};

// With a null workspace only the sizes count. `resident` is only read if there are samples.
Plan make_plan(const Request& request, const Choice& choice, const Gpu& gpu, int resident, void* workspace);

// Of a call that wants every gradient: its workspace is enough for all others.
Plan make_plan(const Problem& problem, Call call, const Choice& choice, const Gpu& gpu, int resident);

}  // namespace jkoflow::cuda
