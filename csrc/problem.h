// What one integration is: sizes, numbers and raw pointers. Every backend reads this description.
#pragma once

#include <cstdint>

#include "activation.h"
#include "tableau.h"

namespace jkoflow {

constexpr int kMaxHidden = 4;

enum class Divergence : int {
  kNone,        // logdet is zero
  kExact,       // the trace: in closed form for 1 and 2 hidden layers, by dim tangents for more
  kHutchinson,  // noise^T J noise
};

// dx/dt = MLP([x, t, context]) + A x over [t0, t1]. Tensors are dense, row-major, all of one floating-point type.
struct Problem {
  bool float64 = false;
  int64_t batch = 0;
  int dim = 0;
  int context_dim = 0;
  bool time = false;
  Divergence divergence = Divergence::kExact;
  int hidden_layers = 0;
  int width[kMaxHidden] = {};
  ActivationKind activation = ActivationKind::kTanh;
  double beta = 1.0;
  double t0 = 0.0;
  double t1 = 1.0;
  int num_steps = 1;
  Tableau tableau;
  int threads = 1;     // of the CPU kernels
  bool split = false;  // CPU, float32: products between hidden layers as three of bfloat16 numbers each

  // Columns of layer 1: x, t, context.
  int input_columns() const { return dim + (time ? 1 : 0) + context_dim; }

  const void* x = nullptr;                  // (batch, dim)
  const void* context = nullptr;            // (batch, context_dim)
  const void* noise = nullptr;              // (batch, dim), for kHutchinson
  const void* weight[kMaxHidden + 1] = {};  // layer 1 reads the columns x, t, context
  const void* bias[kMaxHidden + 1] = {};
  const void* linear = nullptr;  // A (dim, dim) or null

  void* x_end = nullptr;   // out: (batch, dim)
  void* logdet = nullptr;  // out: (batch,)
  void* path = nullptr;    // out, or null: (num_steps + 1, batch, dim); in for the adjoint
};

// The vector-Jacobian product of one integration; reads Problem::path. Null cotangents are zero.
struct Adjoint {
  const void* x_end = nullptr;  // in: cotangents
  const void* logdet = nullptr;
  const void* path = nullptr;

  void* x = nullptr;  // out, with the shapes of the primal tensors; null: not wanted
  void* context = nullptr;
  void* weight[kMaxHidden + 1] = {};
  void* bias[kMaxHidden + 1] = {};
  void* linear = nullptr;
};

// The JKO objective of one block, mean(|y|^2/2 - logdet + |y - x|^2/(2h)) over the batch with y = x_end: its value and,
// through Adjoint, its gradient. Problem::x_end, logdet and path are not used; nor are the cotangents of the Adjoint.
struct JkoLoss {
  double step_size = 0.0;   // h; infinity: no penalty
  double* terms = nullptr;  // out: means of |y|^2/2, -logdet and |y - x|^2/(2h)
};

}  // namespace jkoflow
