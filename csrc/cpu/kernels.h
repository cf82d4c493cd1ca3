// Entry points of one instruction set.
#pragma once

#include <cstddef>

#include "../problem.h"
#include "step_log.h"

namespace jkoflow {

struct CpuKernels {
  const char* isa;
  // Bytes of 64-byte aligned memory that a call needs; its contents may be anything.
  size_t (*forward_bytes)(const Problem&);
  size_t (*backward_bytes)(const Problem&);
  size_t (*jko_loss_bytes)(const Problem&);
  void (*forward)(const Problem&, char* memory);
  void (*backward)(const Problem&, const Adjoint&, char* memory);
  void (*jko_loss)(const Problem&, const JkoLoss&, const Adjoint&, char* memory);
  // One evaluation, in the memory of an integration.
  void (*evaluate)(const Problem&, char* memory);
  void (*evaluate_backward)(const Problem&, const Adjoint&, char* memory);
  // Adaptive steps; `logs` holds one for each thread.
  size_t (*adaptive_bytes)(const Problem&);
  size_t (*adaptive_backward_bytes)(const Problem&, const Adaptive&);
  RowFailure (*adaptive)(const Problem&, const Adaptive&, cpu::StepLog* const* logs, char* memory);
  void (*adaptive_backward)(const Problem&, const Adaptive&, const Adjoint&, char* memory);
};

// Steps whose stages have networks of their own.
struct StagewiseKernels {
  size_t (*forward_bytes)(const Problem&, const StagewiseStep&);
  size_t (*backward_bytes)(const Problem&, const StagewiseStep&);
  void (*forward)(const Problem&, const StagewiseStep&, const Adaptive&, char* memory);
  void (*backward)(const Problem&, const StagewiseStep&, const Adjoint&, char* memory);
};

}  // namespace jkoflow
