// Calls the kernels on tensors by name. Each tensor lies in a heap block of exactly its size, aligned to no more than
// its elements, so that AddressSanitizer sees every access beyond it; so does the memory that the kernels work in.
#pragma once

#include "case.h"
#include "cpu/dispatch.h"

namespace jkoflow::test {

// What the working memory and the outputs hold before a call.
enum class Fill { kZero, kNaN, kHuge };

struct Options {
  Fill fill = Fill::kNaN;
  bool path = true;                                  // forward: whether the path is wanted
  bool x = true, context = true, parameters = true;  // the gradients that are wanted
  bool records = true, evaluations = true;           // adaptive: whether these are wanted
  // Deliberate faults: a tensor that is an element too short, or "memory" that is too small, or a "log" whose records
  // are; a tensor whose elements are not aligned.
  std::string shortened = {}, misaligned = {};
};

// The kernels of one instruction set, or null for the dispatcher with its own working memory. Inputs that are missing
// are null pointers. The results include no tensor that is not wanted. Throws std::runtime_error if
// an input changed, or what lies behind the working memory.
Tensors<double> forward(const CpuKernels* kernels, const Case& c, const Tensors<double>& in, const Options& options);
Tensors<double> backward(const CpuKernels* kernels, const Case& c, const Tensors<double>& in, const Options& options);
Tensors<double> jko_loss(const CpuKernels* kernels, const Case& c, const Tensors<double>& in, double step_size,
                         const Options& options);
Tensors<double> evaluate(const CpuKernels* kernels, const Case& c, const Tensors<double>& in, const Options& options);
Tensors<double> evaluate_backward(const CpuKernels* kernels, const Case& c, const Tensors<double>& in,
                                  const Options& options);
// The records' members are tensors, too; so is "failure": row, reason, t and dt. A row that fails leaves its outputs as
// they are.
Tensors<double> adaptive(const CpuKernels* kernels, const Case& c, const Tensors<double>& in, const Options& options);
// Reads last_step and the records as adaptive() gives them.
Tensors<double> adaptive_backward(const CpuKernels* kernels, const Case& c, const Tensors<double>& in,
                                  const Options& options);

// One step whose stages have networks of their own: the tensors weight0, bias0, ... and their gradients hold those of
// all stages, one after the other; the bounds of the interval are those of the step. Besides x_end and logdet the
// values are their rests, the slopes "velocity" and "divergence" of all stages, which are also read if `start_known`,
// and "errors" with an embedded method. The gradients read "bar velocity" and "bar divergence", too.
struct StepOptions {
  int stages = 0;
  bool start_known = false;
};
Tensors<double> stagewise(const CpuKernels* kernels, const Case& c, const Tensors<double>& in, const StepOptions& step,
                          const Options& options);
Tensors<double> stagewise_backward(const CpuKernels* kernels, const Case& c, const Tensors<double>& in,
                                   const StepOptions& step, const Options& options);

}  // namespace jkoflow::test
