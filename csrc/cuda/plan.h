// One call as launches: which kernels, how many blocks, where everything lies in the workspace.
#pragma once

#include "../problem.h"
#include "launch.h"
#include "runtime.h"

namespace jkoflow::cuda {

struct Plan {
  Kernel kernel;
  int blocks = 0;  // 0: nothing to integrate
  size_t shared_bytes = 0;
  Params params{};
  PrepareParams prepare{};
  int prepare_blocks = 0;
  ReduceParams reduce{};  // count 0: no gradients of parameters
  FinishParams finish{};
  int finish_blocks = 0;  // 0: no gradients of parameters and no loss
  size_t bytes = 0;       // of workspace
};

// `adjoint` is null for the forward pass, `loss` for all but the loss. On the current device.
Plan make_plan(const Problem& problem, const Adjoint* adjoint, const JkoLoss* loss, const Launch& launch);

}  // namespace jkoflow::cuda
