// The CPU backend: picks the kernels of the best instruction set that this processor runs.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "kernels.h"

namespace jkoflow::cpu {

// Those in this build that this processor runs, best first, and their instruction sets.
std::vector<const CpuKernels*> available_kernels();
std::vector<std::string> available_isas();

// The one in use: the best, or the one that the environment variable JKOFLOW_ISA names.
// Throws std::runtime_error if that one is not available.
const CpuKernels& kernels();

// "" if products between hidden layers can be split (Problem::split), else why not.
std::string split_problem();

// kernels(), or those that split products if the problem wants it; throws std::runtime_error if they cannot be had.
const CpuKernels& kernels_for(const Problem& problem);

// Those of the same instruction set for steps whose stages have networks of their own.
const StagewiseKernels& stagewise_kernels(const CpuKernels& kernels);

// Threads of OpenMP are used if the build found it.
bool has_openmp();

// Run one integration or its adjoint; all tensors of the description must be set. Not reentrant within a thread.
void forward(const Problem& problem);
void backward(const Problem& problem, const Adjoint& adjoint);
// Value and gradient of the JKO objective in one pass, without recomputing the stages.
void jko_loss(const Problem& problem, const JkoLoss& loss, const Adjoint& adjoint);
// Velocity and divergence at Problem::times, and the adjoint.
void evaluate(const Problem& problem);
void evaluate_backward(const Problem& problem, const Adjoint& adjoint);

// What an integration with adaptive steps has found, besides its outputs.
class AdaptiveRun {
 public:
  AdaptiveRun(const Problem& problem, const Adaptive& adaptive);
  const RowFailure& failure() const { return failure_; }
  int64_t steps() const;        // records
  void write(char* out) const;  // all of them, for Adaptive::records

 private:
  std::vector<std::unique_ptr<StepLog>> logs_;
  RowFailure failure_;
};
void adaptive_backward(const Problem& problem, const Adaptive& adaptive, const Adjoint& adjoint);

// One step whose stages have networks of their own, and its adjoint, which adds to the gradient of the context. The
// Adaptive says what the errors are relative to; it is read if they are wanted.
void stagewise(const Problem& problem, const StagewiseStep& step, const Adaptive& adaptive);
void stagewise_backward(const Problem& problem, const StagewiseStep& step, const Adjoint& adjoint);

}  // namespace jkoflow::cpu
