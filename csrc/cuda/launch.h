// Calls of the CUDA kernels as the bindings see them: host C++, without CUDA's types.
#pragma once

#include <string>

#include "plan.h"

namespace jkoflow::cuda {

struct Launch {
  int device = 0;
  void* stream = nullptr;  // cudaStream_t
  Precision precision = Precision::kTf32x3;
  void* workspace =
      nullptr;  // device memory of at least workspace_bytes(), aligned to 256 bytes; contents may be anything
};

// What plans have to know of a device, without using it.
Gpu device_gpu(int device);

// How a call that wants every gradient runs on the launch's device, as it is now.
Plan plan(const Problem& problem, Call call, const Launch& launch);

// Bytes of workspace that a call needs.
size_t workspace_bytes(const Problem& problem, Call call, const Launch& launch);

// The pointers of the descriptions are device pointers, JkoLoss::terms too. All work goes to the stream, without
// allocation or synchronisation, so that a call can be captured in a graph. Throw std::runtime_error with CUDA's text.
void forward(const Problem& problem, const Launch& launch);
void backward(const Problem& problem, const Adjoint& adjoint, const Launch& launch);
void jko_loss(const Problem& problem, const JkoLoss& loss, const Adjoint& adjoint, const Launch& launch);
// One evaluation, at Problem::times if the velocity reads t.
void evaluate(const Problem& problem, const Launch& launch);
void evaluate_backward(const Problem& problem, const Adjoint& adjoint, const Launch& launch);
// Steps of its own for every row. What became of them stands in RowBuffers::outcome, nothing is thrown; rows with more
// accepted steps than places for their records are carried on, and their first steps are recorded.
void adaptive(const Problem& problem, const Adaptive& control, const RowBuffers& rows, const Launch& launch);
void adaptive_backward(const Problem& problem, const Adaptive& control, const RowBuffers& rows, const Adjoint& adjoint,
                       const Launch& launch);

std::string device_problem();  // empty if a device can be used, else the reason

}  // namespace jkoflow::cuda
