// What one integration is: sizes, numbers and raw pointers. Every backend reads this description.
#pragma once

#include <cstdint>

#include "activation.h"
#include "tableau.h"

namespace jkoflow {

constexpr int kMaxHidden = 8;

enum class Divergence : int {
  kNone,        // logdet is zero
  kExact,       // the trace: in closed form for 1 and 2 hidden layers, by dim tangents for more
  kHutchinson,  // noise^T J noise
};

// Scale and shift of every layer, the last one included, by the columns u = [t, cos(w t), sin(w t), context] of each
// row: z = gate(G u + g) * (W h + b) + S u. Layer 1 then reads x alone.
enum class GateKind : int { kAffine, kSigmoid };  // 1 + a, 1 / (1 + e^-a)
struct Modulation {
  bool present = false;
  GateKind gate = GateKind::kAffine;
  bool time = false;                // whether t itself is a column
  int frequencies = 0;              // numbers w
  unsigned gated = 0, shifted = 0;  // bit l: whether layer l has G and g; S
  const void* tensor = nullptr;     // w, then G, g and S of each layer that has them, one after the other

  bool has_gate(int l) const { return (gated >> l & 1u) != 0; }
  bool has_shift(int l) const { return (shifted >> l & 1u) != 0; }
  int columns(int context_dim) const { return (time ? 1 : 0) + 2 * frequencies + context_dim; }
};

namespace cpu {
struct Interruption;
}

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
  bool row_times = false;  // every row has its own t, so that t is a column like any other
  Tableau tableau;
  int threads = 1;                            // of the CPU kernels
  cpu::Interruption* interruption = nullptr;  // of the CPU kernels: null if nobody may end the call
  Modulation modulation;
  bool residual = false;  // hidden layers from the second on add their activation to what they read
  bool split = false;     // CPU, float32: products between hidden layers as three of bfloat16 numbers each

  // Columns of layer 1: x, t, context.
  int input_columns() const { return modulation.present ? dim : dim + (time ? 1 : 0) + context_dim; }
  // Whether t is a row of the input tile.
  bool has_time_column() const { return modulation.present || (time && row_times); }

  const void* x = nullptr;                  // (batch, dim)
  const void* times = nullptr;              // (batch,), for a single evaluation: t of every row
  const void* context = nullptr;            // (batch, context_dim)
  const void* noise = nullptr;              // (batch, dim), for kHutchinson
  const void* weight[kMaxHidden + 1] = {};  // layer 1 reads the columns x, t, context
  const void* bias[kMaxHidden + 1] = {};
  const void* linear = nullptr;  // A (dim, dim) or null

  void* x_end = nullptr;   // out: (batch, dim); of a single evaluation the velocity
  void* logdet = nullptr;  // out: (batch,); of a single evaluation the divergence
  void* path = nullptr;    // out, or null: (num_steps + 1, batch, dim); in for the adjoint
};

// The vector-Jacobian product of one integration; reads Problem::path. Null cotangents are zero.
struct Adjoint {
  const void* x_end = nullptr;  // in: cotangents
  const void* logdet = nullptr;
  const void* path = nullptr;

  void* x = nullptr;  // out, with the shapes of the primal tensors; null: not wanted
  void* times = nullptr;
  void* context = nullptr;
  void* weight[kMaxHidden + 1] = {};
  void* bias[kMaxHidden + 1] = {};
  void* linear = nullptr;
  void* modulation = nullptr;
};

// Steps that adapt to the error of each row, by an embedded method whose last stage is the first of the next step: the
// last row of Problem::tableau.a is its b.
struct Adaptive {
  double rtol = 0.0, atol = 0.0;
  int64_t max_steps = 0;             // attempts of a row
  int order = 0;                     // the error of a step falls with this power of it
  double error[kMaxStages] = {};     // weights of the error
  double dense[kMaxStages][4] = {};  // weight of stage s within a step: sum_k dense[s][k] theta^(k + 1)
  int outputs = 0;                   // times strictly between t0 and t1, in the order in which they are passed
  const double* output_times = nullptr;

  void* x_outputs = nullptr;       // out: (outputs, batch, dim); cotangents for the adjoint
  void* logdet_outputs = nullptr;  // out: (outputs, batch); cotangents for the adjoint
  int64_t* evaluations = nullptr;  // out: (batch,)
  int64_t* last_step = nullptr;    // out: (batch,), the last of each row's records, -1 for none; null: none are wanted
  const char* records = nullptr;   // in for the adjoint: what StepLog has gathered
};

// An accepted step; x at its start, dim numbers, follows. A row's steps are chained from its last.
struct StepRecord {
  double t, dt;
  int64_t previous;                  // -1: the first
  int32_t first_output, end_output;  // outputs within the step

  static int64_t bytes(const Problem& p) {  // whole doubles
    return static_cast<int64_t>(sizeof(StepRecord)) + (p.dim * (p.float64 ? 8 : 4) + 7) / 8 * 8;
  }
};

// A row that has not reached t1.
struct RowFailure {
  enum Reason : int { kNone, kMaxSteps, kUnderflow, kNotFinite };
  int64_t row = -1;
  Reason reason = kNone;
  double t = 0.0, dt = 0.0;
};

// One step of all rows in which every stage has a network of its own, none of which reads t: that of stage s lies s
// networks behind the tensors of the Problem, and so do its gradients. Modulation and the linear term are left out.
struct StagewiseStep {
  // Positions and logdet, each with what rounding has cut off so far; at the start all but x may be null, for zero.
  struct State {
    void *x = nullptr, *x_rest = nullptr;            // (batch, dim)
    void *logdet = nullptr, *logdet_rest = nullptr;  // (batch,)
  };
  State start, end;  // in and out; the adjoint reads start.x alone

  double dt = 0.0;
  int stages = 0;            // of the tableau; the adjoint may leave out a last one that has no share in the end
  bool start_known = false;  // whether the first stage's slopes are in `velocity` and `divergence`
  // Slopes of the stages, (stages, batch, dim) and (stages, batch), or null: out, but for those that are known. For the
  // adjoint cotangents that they have besides those of the end.
  void *velocity = nullptr, *divergence = nullptr;
  // Out, or null: the mean square of each row's error relative to the tolerances, (batch,). With it the last stage is
  // taken to be at the end of the step, as in all methods that have an error.
  double* errors = nullptr;
};

// The JKO objective of one block, mean(|y|^2/2 - logdet + |y - x|^2/(2h)) over the batch with y = x_end: its value and,
// through Adjoint, its gradient. Problem::x_end, logdet and path are not used; nor are the cotangents of the Adjoint.
struct JkoLoss {
  double step_size = 0.0;   // h; infinity: no penalty
  double* terms = nullptr;  // out: means of |y|^2/2, -logdet and |y - x|^2/(2h)
};

}  // namespace jkoflow
