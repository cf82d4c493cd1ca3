// The CPU backend: picks the kernels of the best instruction set that this processor runs.
#pragma once

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

// Threads of OpenMP are used if the build found it.
bool has_openmp();

// Run one integration or its adjoint; all tensors of the description must be set. Not reentrant within a thread.
void forward(const Problem& problem);
void backward(const Problem& problem, const Adjoint& adjoint);
// Value and gradient of the JKO objective in one pass, without recomputing the stages.
void jko_loss(const Problem& problem, const JkoLoss& loss, const Adjoint& adjoint);

}  // namespace jkoflow::cpu
