// The rows that a tile carries with steps of their own, one in each lane, and what decides about the steps.
#pragma once

#include "steps.h"

namespace jkoflow::JKOFLOW_ISA {
namespace {

// A row on its way.
template <class Real>
struct Lane {
  // What the next evaluation is: of the start, of the trial step by which the first step is chosen, or of stage 1, 2,
  // ...
  enum : int { kStart = -2, kTrial = -1 };
  int64_t row = -1;  // none
  int phase = kStart;
  bool ended = false;                    // an attempt, all of whose stages are evaluated
  bool rejected = false, finite = true;  // the attempt before
  int output = 0;                        // next one
  int64_t attempts = 0, evaluations = 0, last_step = -1;
  double t = 0, dt = 0, last_error = 0;
  Real logdet = 0, logdet_lost = 0;
};

// What the lanes of a tile hold.
template <class Real>
struct LaneTile {
  static constexpr int kStride = kTile<Real>;

  int dim, inputs, stages;
  ForwardSpace<Real> forward;
  Real *fresh, *lost;                // velocity of the last evaluation; what rounding has added to x too much
  Real *weight, *divergence, *slot;  // [stages][kTile] twice; the stage that each lane evaluates, [kTile]
  Real* linear_divergence;           // [kTile]
  Lane<Real>* lane;

  LaneTile(const Problem& p, const Network<Real>& net, Arena& arena)
      : dim(net.dim), inputs(net.inputs), stages(p.tableau.stages), forward(net, stages, 1, Keep::kNothing, arena) {
    fresh = arena.take<Real>(dim * kStride);
    lost = arena.take<Real>(dim * kStride);
    weight = arena.take<Real>(stages * kStride);
    divergence = arena.take<Real>(stages * kStride);
    slot = arena.take<Real>(kStride);
    linear_divergence = arena.take<Real>(kStride);
    lane = arena.take<Lane<Real>>(kStride);
  }

  Real* x() const { return forward.x; }
  Real* slopes(int stage) const { return forward.velocity[stage]; }
  Real* input() const { return forward.stage[0].input; }

  void clear() const {
    const auto zero = [&](Real* rows, int count) { std::memset(rows, 0, sizeof(Real) * count * kStride); };
    zero(x(), dim);
    zero(lost, dim);
    for (int s = 0; s < stages; ++s) zero(slopes(s), dim);
    zero(weight, stages);
    zero(divergence, stages);
    zero(input(), inputs);
    if (forward.tangent.noise != nullptr) zero(forward.tangent.noise, inputs);
    for (int i = 0; i < kStride; ++i) {
      slot[i] = -1;
      linear_divergence[i] = 0;
      lane[i] = Lane<Real>{};
    }
  }

  // What a lane evaluated before may be infinite, and zero times infinity is not zero.
  void forget_stages(int i, int first) const {
    for (int s = first; s < stages; ++s) {
      for (int c = 0; c < dim; ++c) slopes(s)[c * kStride + i] = 0;
      divergence[s * kStride + i] = 0;
    }
  }

  // What is to be added to x for the stage's input, less what rounding has added too much so far.
  JKOFLOW_INLINE Vector<Real> increment(int j, ptrdiff_t at) const {
    Vector<Real> sum{};
    for (int s = 0; s < stages; ++s) {
      sum += load(weight + s * kStride + j * kLanes<Real>) * load(slopes(s) + at);
    }
    return sum - load(lost + at);
  }

  // Puts velocity and divergence where each lane of a vector has its stage.
  void keep_slopes(int j, const Vector<Real>& fresh_divergence) const {
    const Vector<Real> wanted = load(slot + j * kLanes<Real>);
    unsigned present = 0;
    for (int i = 0; i < kLanes<Real>; ++i) present |= wanted[i] < 0 ? 0u : 1u << static_cast<int>(wanted[i]);
    for (int s = 0; s < stages; ++s) {
      if ((present >> s & 1u) == 0) continue;
      const Vector<Real> here = Vector<Real>{} + static_cast<Real>(s);
      Real* kept = divergence + s * kStride + j * kLanes<Real>;
      store<Real>(kept, wanted == here ? fresh_divergence : load(kept));
      for (int c = 0; c < dim; ++c) {
        const ptrdiff_t at = c * kStride + j * kLanes<Real>;
        store<Real>(slopes(s) + at, wanted == here ? load(fresh + at) : load(slopes(s) + at));
      }
    }
  }

  // Moves the row of one lane to another.
  void move_lane(int from, int to) const {
    lane[to] = lane[from];
    lane[from] = Lane<Real>{};
    const auto carry = [&](Real* rows, int count) {
      for (int c = 0; c < count; ++c) rows[c * kStride + to] = rows[c * kStride + from];
    };
    carry(x(), dim);
    carry(lost, dim);
    for (int s = 0; s < stages; ++s) carry(slopes(s), dim);
    carry(weight, stages);
    carry(divergence, stages);
    carry(slot, 1);
    carry(linear_divergence, 1);
    carry(input(), inputs);
    if (forward.tangent.noise != nullptr) carry(forward.tangent.noise, dim);
  }
};

// Step size control, the same for all rows.
struct StepControl {
  double t0, t1, direction, least;
  double exponent, memory;  // of the error of this step and of the last (proportional and integral)
  double components;        // of the error: x and, if it is integrated, logdet

  StepControl(const Problem& p, const Adaptive& a) : t0(p.t0), t1(p.t1), direction(p.t1 < p.t0 ? -1.0 : 1.0) {
    const double first = __builtin_fabs(t0), last = __builtin_fabs(t1);
    least = 1e-15 * (first > last ? first : last);
    memory = 0.2 / a.order;
    exponent = 1.0 / a.order - 0.75 * memory;
    components = p.dim + (p.divergence == Divergence::kNone ? 0 : 1);
  }
  // Factors by Hairer, Norsett and Wanner, Solving Ordinary Differential Equations I, section II.4.
  double after_success(double error, double last_error) const {
    const double factor = __builtin_pow(error, exponent) / (__builtin_pow(last_error, memory) * kSafety);
    return factor < 0.1 ? 10.0 : factor > 5.0 ? 0.2 : 1.0 / factor;
  }
  double after_failure(double error) const {
    const double factor = __builtin_pow(error, exponent) / kSafety;
    return factor < 5.0 ? 1.0 / factor : 0.2;  // and for NaN
  }

  static constexpr double kSafety = 0.9;
};

// Weight of a stage's slope, times the step, in the position at a share theta of the step.
inline double dense_weight(const Adaptive& a, int stage, double theta) {
  const double* c = a.dense[stage];
  return theta * (c[0] + theta * (c[1] + theta * (c[2] + theta * c[3])));
}

}  // namespace
}  // namespace jkoflow::JKOFLOW_ISA
