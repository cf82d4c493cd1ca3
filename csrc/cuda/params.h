// What the kernels are told: numbers and device pointers, filled by plan.cpp and packing.cpp.
#pragma once

#include "../tableau.h"

namespace jkoflow::cuda {

constexpr int kMaxLayers = 3;  // hidden layers
constexpr int kMaxSlots = 13;  // see AdjointSlots
constexpr int kMaxPackJobs = 16;

// What a packed element is multiplied by: nothing, or (W1x W_last)^T at its place.
enum Traced : int { kPlain, kTraceMatrix, kTraceMatrixTransposed, kTraceVector };

// Packed weights; see layout.h. H: the common padded width of the hidden layers.
struct Packed {
  float* first;                   // (H, first_depth): layer 1 with its bias as the last column
  float* first_t;                 // (round_up(columns, 16), H)
  float* hidden[kMaxLayers - 1];  // (H, H)
  float* hidden_t[kMaxLayers - 1];
  float* trace_matrix;  // M (H, H) with two hidden layers; with one c (H), not packed
  float* trace_matrix_t;
  float* last;    // (round_up(dim, 16), H)
  float* last_t;  // (H, round_up(dim, 8))
  float* linear;  // (round_up(dim, 16), round_up(dim, 8)), or null
  float* linear_t;
  float* bias[kMaxLayers - 1];  // (H), of the hidden layers after the first
  float* bias_last;             // (round_up(dim, 16))
};

// Buffers of a thread block. Offsets count floats; those of `Place`s lie in shared memory if there was room, else in
// the thread block's scratch in global memory, which the caches hold.
struct Place {
  int offset;
  int in_shared;
};
struct Layout {
  int input, input_stride;          // panel of stage inputs: x, t, context, 1
  int cotangent, cotangent_stride;  // panel of cotangents of the velocity
  int noise;                        // panel of Hutchinson's noise, with the stride of the inputs
  int divergence;                   // [warp][sample]
  int logdet;                       // [sample][sum, rest]
  int logdet_bar;                   // [sample]
  Place x, x_bar;                   // [sample][dim]
  Place x_rest;                     // what rounding cuts off x; the loss's, which needs it first, is x_bar
  Place stages;                     // [stage][sample][dim]: velocities, or cotangents of the stage inputs
  Place context_bar;                // [sample][context_dim]
  Place time_bar;                   // [sample], if every row has its own t
  Place slots[kMaxSlots];           // fragments that only their own thread uses
  // Of adaptive steps.
  Place lanes;                    // adaptive/lane.h
  Place next_rest;                // [sample][dim]: x_rest, if the step is accepted
  Place x_extra, velocity_extra;  // [sample][dim], [stage][sample][dim]: cotangents by outputs within the step
  int records;                    // in scratch: stage inputs [step][stage][sample][dim]
  // Sums of gradients; those not in shared memory are summed in the partial gradient itself.
  Place first_sum, last_sum, linear_sum, bias_last_sum;
};

// A thread block's partial gradient: offsets in floats.
struct GradientLayout {
  int first;                 // (H, columns + 1) at first_stride, the last column being the bias
  int hidden[2];             // (H, H): W2, then M or W3
  int last;                  // (H, dim) at narrow_stride: transposed
  int linear;                // (round_up(dim, 16), dim) at narrow_stride
  int bias[kMaxLayers - 1];  // (H)
  int bias_last;             // (round_up(dim, 8))
  int trace_vector;          // (H): of c, with one hidden layer
  int count;                 // a multiple of 8
  int first_stride, narrow_stride;
};

// Adaptive steps of every row's own: see csrc/problem.h.
enum RowOutcome : int { kArrived, kMaxSteps, kUnderflow, kNotFinite };
struct Stepping {
  double rtol, atol, t0, t1, direction, least_step;
  long long max_steps;
  int order, components, outputs;  // components: of the error
  double a[kMaxStages][kMaxStages], error[kMaxStages], dense[kMaxStages][4];
  const double* output_times;
  float *x_outputs, *logdet_outputs;  // cotangents for the adjoint
  const float* row_divergence;        // [sample], or null: a constant part
  const long long* record_begin;      // [sample + 1]
  char* records;                      // null: none are wanted
  int record_bytes;
  long long record_count;
  long long *evaluations, *last_step;
  double* outcome;  // [sample][4]: RowOutcome, t, dt, accepted steps
};

struct Params {
  long long batch, share;              // samples, and how many of them a thread block carries
  int large_tiles, small_tiles, tile;  // of a thread block's share, and samples of a large one
  int dim, context_dim, has_time;
  int columns, first_depth;  // of layer 1: without its bias, and with it, rounded up to 8
  int layers, first_width, top_width;
  int num_steps, stages;
  int exact, hutchinson;  // at most one of them
  int directions;         // tangents of the divergence: 0 in closed form
  int activation;         // ActivationKind
  int evaluate;           // one evaluation: of x_end and logdet, or of their cotangents, velocity and divergence
  float beta;
  double t0, dt;
  float a[kMaxStages][kMaxStages], b[kMaxStages];  // times dt
  double c[kMaxStages];

  const float *x, *times, *context, *noise;  // times: of an evaluation, or null
  const float *first, *last;                 // the unpacked weights
  float *x_end, *logdet, *path;

  // The adjoint; null cotangents are zero, null gradients not wanted.
  const float *x_end_bar, *logdet_bar, *path_bar;
  float *x_grad, *times_grad, *context_grad;
  int want_parameters;

  Stepping stepping;

  // The loss.
  float mean, inverse_step_size;  // 1 / batch, 1 / h
  double* terms;                  // [block][3]
  double* sample_terms;           // [block][sample][3]

  Packed packed;
  Layout layout;
  GradientLayout gradient;
  float* scratch;
  float* partial;
  long long scratch_stride;  // floats of a thread block
};

// One matrix or vector to pack: element (r, c) of `source` at r * row_stride + c * column_stride. Column `columns`
// is `bias`, unless null. A null source reads as ones.
struct PackJob {
  float* target;
  const float* source;
  const float* bias;
  int rows, columns, row_stride, column_stride;
  int padded_rows, depth;  // packed sizes; depth 1: a vector as it stands
  Traced traced;
  int end;  // one past the last of its thread blocks, which follow on those of the job before
};
// The layers at the ends of all paths from x to x, W1 and the last one, for M or c.
struct Paths {
  const float *first, *last;
  int first_stride, last_stride, dim;
};
struct PrepareParams {
  int count, precision;
  Paths paths;
  PackJob jobs[kMaxPackJobs];
};

constexpr int kReducedNumbers = 128;  // that a thread block sums over all partial gradients
struct ReduceParams {
  const float* partial;  // [blocks][count]
  float* total;          // [count]
  int blocks, count;
};

// What each of the thread blocks that finish is for, in this order; see finish.cuh.
enum FinishJob : int {
  kFinishFirst,
  kFinishLast,
  kFinishHidden,
  kFinishVectors = kFinishHidden + kMaxLayers - 1,
  kFinishTerms,
  kFinishJobs
};
constexpr int kFinishColumns = 4, kFinishRows = 4;  // at a time: of the first and last layer, and of a hidden one
struct FinishParams {
  int end[kFinishJobs];  // one past the last of each job's thread blocks
  const float* total;
  GradientLayout gradient;
  int H, dim, columns, layers;
  int traced;  // whether M or c has a gradient to hand on
  int width[kMaxLayers];
  const float* weight[kMaxLayers + 1];
  float *weight_grad[kMaxLayers + 1], *bias_grad[kMaxLayers + 1], *linear_grad;
  const double* block_terms;  // [blocks][3], or null
  double* terms;
  double mean, half_inverse_step_size;
  int blocks;
};

}  // namespace jkoflow::cuda
