// The CUDA backend as the bindings see it: host C++, without CUDA's types.
#pragma once

#include <cstddef>
#include <string>

#include "../problem.h"
#include "precision.h"

namespace jkoflow::cuda {

struct Launch {
  int device = 0;
  void* stream = nullptr;  // cudaStream_t
  Precision precision = Precision::kTf32x3;
  void* workspace = nullptr;  // device memory of at least *_bytes(), aligned to 256 bytes; contents may be anything
};

// Empty if the kernels cover the problem, else why not: a phrase that can follow "the CUDA kernels". Reads the
// problem's sizes, not its pointers, and needs no device: what it accepts runs on every GPU of compute capability 8.0
// or newer.
std::string unsupported(const Problem& problem, Precision precision);

// Bytes of workspace that a call needs.
size_t forward_bytes(const Problem& problem, const Launch& launch);
size_t backward_bytes(const Problem& problem, const Launch& launch);
size_t jko_loss_bytes(const Problem& problem, const Launch& launch);

// The pointers of the descriptions are device pointers, JkoLoss::terms too. All work goes to the stream, without
// allocation or synchronisation, so that a call can be captured in a graph. Throw std::runtime_error with CUDA's text.
void forward(const Problem& problem, const Launch& launch);
void backward(const Problem& problem, const Adjoint& adjoint, const Launch& launch);
void jko_loss(const Problem& problem, const JkoLoss& loss, const Adjoint& adjoint, const Launch& launch);

int device_count();            // 0 without driver or device; never throws
std::string device_problem();  // empty if a device can be used, else the reason

}  // namespace jkoflow::cuda
