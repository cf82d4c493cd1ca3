// One step in which every stage has a network of its own: a tile forth and back.
#pragma once

#include <type_traits>

#include "steps.h"
#include "threads.h"

namespace jkoflow::JKOFLOW_ISA {
namespace {

// Moves a pointer to the tensor of stage `stage`, each of which holds `count` numbers; null stays null.
template <class Real, class Pointer>
void move_to_stage(Pointer& tensor, int stage, ptrdiff_t count) {
  using Number = std::conditional_t<std::is_const_v<std::remove_pointer_t<Pointer>>, const Real, Real>;
  if (tensor != nullptr) tensor = static_cast<Number*>(tensor) + stage * count;
}

// What a call knows, as seen by one stage: tensors of its network, or their gradients (Class: Problem or Adjoint).
template <class Real, class Class>
Class of_stage(const Problem& p, const Class& whole, int stage) {
  Class own = whole;
  int columns = p.input_columns();
  for (int l = 0; l <= p.hidden_layers; ++l) {
    const int rows = l < p.hidden_layers ? p.width[l] : p.dim;
    move_to_stage<Real>(own.weight[l], stage, static_cast<ptrdiff_t>(rows) * columns);
    move_to_stage<Real>(own.bias[l], stage, rows);
    columns = rows;
  }
  return own;
}

// The networks of the stages, from stage `first` on.
template <class Real>
class StageNetworks {
 public:
  StageNetworks(const Problem& p, int first, int stages, bool adjoint, Arena& arena)
      : p_(p), first_(first), stages_(stages), shape_(shape_of(p, adjoint)), nets_(arena.take<Network<Real>>(stages)) {
    for (int s = first; s < stages; ++s) {
      const Network<Real> net(p, arena, adjoint);
      if (nets_ != nullptr) nets_[s] = net;
    }
  }

  const Network<Real>& shape() const { return shape_; }  // the sizes that all have in common
  const Network<Real>& operator[](int stage) const { return nets_[stage]; }

  // Thread `thread` of `threads` packs its share of the weights, of all networks between two barriers.
  void prepare(int thread, int threads) const {
    for (int phase = 0; first_ < stages_ && phase < shape_.phases(); ++phase) {
      for (int s = first_; s < stages_; ++s) nets_[s].prepare_phase(of_stage<Real>(p_, p_, s), phase, thread, threads);
      wait_for_threads();
    }
  }

 private:
  static Network<Real> shape_of(const Problem& p, bool adjoint) {
    Arena counted(nullptr);
    return Network<Real>(p, counted, adjoint);
  }

  const Problem& p_;
  int first_, stages_;
  Network<Real> shape_;
  Network<Real>* nets_;
};

template <class Real>
Real* rows_of_stage(void* tensor, int stage, int64_t batch, int columns) {
  return tensor == nullptr ? nullptr : static_cast<Real*>(tensor) + stage * batch * columns;
}

// A number of each sample, for lanes without one zero; a null tensor reads as zero.
template <class Real, int Vectors>
void load_numbers(const void* tensor, int64_t first, int samples, Vector<Real> (&numbers)[Vectors]) {
  for (int j = 0; j < Vectors; ++j) numbers[j] = Vector<Real>{};
  if (tensor == nullptr) return;
  const Real* source = static_cast<const Real*>(tensor) + first;
  for (int i = 0; i < samples; ++i) numbers[i / kLanes<Real>][i % kLanes<Real>] = source[i];
}

template <class Real, int Vectors>
void store_numbers(void* tensor, int64_t first, int samples, const Vector<Real> (&numbers)[Vectors]) {
  if (tensor == nullptr) return;
  Real* out = static_cast<Real*>(tensor) + first;
  for (int i = 0; i < samples; ++i) out[i] = numbers[i / kLanes<Real>][i % kLanes<Real>];
}

// The mean square of a sample's error over the tolerances; space.x is at the end of the step. One function for all
// tiles, not inlined: contracted to fused multiply-adds in one way, so that no row depends on the tile in which it
// lies.
template <class Real>
__attribute__((noinline)) double mean_square_error(const Problem& p, const StagewiseStep& step, const Adaptive& a,
                                                   const ForwardSpace<Real>& space, int sample, const Real* start,
                                                   const Real* divergence, Real logdet_before, Real logdet_after) {
  const auto square = [&](double error, double before, double after) {
    const double low = __builtin_fabs(before), high = __builtin_fabs(after);
    const double ratio = error / (a.atol + a.rtol * (low > high ? low : high));  // NaN if `after` is
    return ratio * ratio;
  };
  double sum = 0;
  for (int c = 0; c < p.dim; ++c) {
    double error = 0;
    for (int s = 0; s < step.stages; ++s) {
      error += step.dt * a.error[s] * static_cast<double>(space.velocity[s][c * kTile<Real> + sample]);
    }
    sum += square(error, start[c], space.x[c * kTile<Real> + sample]);
  }
  if (p.divergence == Divergence::kNone) return sum / p.dim;
  double error = 0;
  for (int s = 0; s < step.stages; ++s) error += step.dt * a.error[s] * static_cast<double>(divergence[s]);
  return (sum + square(error, logdet_before, logdet_after)) / (p.dim + 1);
}

template <class Real, int Vectors>
void stagewise_tile(const Problem& p, const StagewiseStep& step, const Adaptive& adaptive,
                    const StageNetworks<Real>& nets, const ForwardSpace<Real>& space, int64_t first, int samples) {
  const Grid<Real> grid(step.dt);
  const Network<Real>& shape = nets.shape();
  Real* input = space.stage[0].input;
  load_tile<Real, Vectors>(step.start.x, first, samples, p.dim, space.x);
  load_tile<Real, Vectors>(step.start.x_rest, first, samples, p.dim, space.x_rest);
  load_tile<Real, Vectors>(p.context, first, samples, p.context_dim, input + shape.context_row * kTile<Real>);
  if (shape.probed) {
    load_tile<Real, Vectors>(p.noise, first, samples, p.dim, space.tangent.noise);
    load_tile<Real, Vectors>(nullptr, 0, 0, shape.inputs - p.dim, space.tangent.noise + p.dim * kTile<Real>);
  }
  Vector<Real> divergence[kMaxStages][Vectors] = {};
  if (step.start_known) {
    load_tile<Real, Vectors>(step.velocity, first, samples, p.dim, space.velocity[0]);
    load_numbers<Real, Vectors>(step.divergence, first, samples, divergence[0]);
  }
  for (int s = step.start_known ? 1 : 0; s < step.stages; ++s) {
    if (step.errors != nullptr && s == step.stages - 1) {
      load_tile<Real, Vectors>(nullptr, 0, 0, p.dim, space.velocity[s]);  // which has no share in the end
      advance<Real, Vectors>(p, space, grid);
      for_each_vector<Real, Vectors>(p.dim, [&](int at) { store<Real>(input + at, load(space.x + at)); });
    } else {
      set_stage_input<Real, Vectors>(p, space, input, grid, s);
    }
    if (shape.probed) start_probe<Real, Vectors>(nets[s], space.tangent);
    forward_stage<Real, Vectors, Keep::kNothing>(nets[s], 0, space.stage[0], space, space.velocity[s], divergence[s]);
    store_numbers<Real, Vectors>(rows_of_stage<Real>(step.divergence, s, p.batch, 1), first, samples, divergence[s]);
    if (Real* slopes = rows_of_stage<Real>(step.velocity, s, p.batch, p.dim); slopes != nullptr) {
      store_tile<Real>(slopes, first, samples, p.dim, space.velocity[s]);
    }
  }
  if (step.errors == nullptr) advance<Real, Vectors>(p, space, grid);
  Vector<Real> logdet[Vectors], rest[Vectors], before[Vectors];
  load_numbers<Real, Vectors>(step.start.logdet, first, samples, logdet);
  load_numbers<Real, Vectors>(step.start.logdet_rest, first, samples, rest);
  for (int j = 0; j < Vectors; ++j) {
    before[j] = logdet[j];
    Vector<Real> increment{};
    for (int s = 0; s < step.stages; ++s) {
      if (p.tableau.b[s] != 0) increment += grid.weight(p.tableau.b[s]) * divergence[s][j];
    }
    add_compensated(logdet[j], rest[j], increment);
  }
  store_tile<Real>(step.end.x, first, samples, p.dim, space.x);
  store_tile<Real>(step.end.x_rest, first, samples, p.dim, space.x_rest);
  store_numbers<Real, Vectors>(step.end.logdet, first, samples, logdet);
  store_numbers<Real, Vectors>(step.end.logdet_rest, first, samples, rest);
  if (step.errors != nullptr) {
    for (int i = 0; i < samples; ++i) {
      const int j = i / kLanes<Real>, lane = i % kLanes<Real>;
      const Real* start = static_cast<const Real*>(step.start.x) + (first + i) * p.dim;
      Real slopes[kMaxStages] = {};
      for (int s = 0; s < step.stages; ++s) slopes[s] = divergence[s][j][lane];
      step.errors[first + i] =
          mean_square_error<Real>(p, step, adaptive, space, i, start, slopes, before[j][lane], logdet[j][lane]);
    }
  }
}

// What a partition of the adjoint works in: every stage sums gradients of its own.
template <class Real>
struct StagewiseSpace {
  ForwardSpace<Real> forward;
  BackwardSpace<Real>* stage;

  StagewiseSpace(const Network<Real>& shape, int stages, Arena& arena)
      : forward(shape, stages, 1, keep_for_adjoint(shape), arena), stage(arena.take<BackwardSpace<Real>>(stages)) {
    for (int s = 0; s < stages; ++s) {
      const BackwardSpace<Real> own(shape, 1, arena, s == 0);
      if (stage != nullptr) stage[s] = own;
    }
  }
};

template <class Real, int Vectors, Keep K>
void stagewise_backward_tile(const Problem& p, const StagewiseStep& step, const Adjoint& adjoint,
                             const StageNetworks<Real>& nets, const StagewiseSpace<Real>& work, int64_t first,
                             int samples) {
  const Grid<Real> grid(step.dt);
  const Network<Real>& shape = nets.shape();
  const ForwardSpace<Real>& space = work.forward;
  const bool parameters = adjoint.weight[0] != nullptr;
  Real *x_bar = work.stage[0].x_bar, *context_bar = work.stage[0].context_bar;
  load_tile<Real, Vectors>(step.start.x, first, samples, p.dim, space.x);
  if (shape.probed) {
    load_tile<Real, Vectors>(p.noise, first, samples, p.dim, space.tangent.noise);
    load_tile<Real, Vectors>(nullptr, 0, 0, shape.inputs - p.dim, space.tangent.noise + p.dim * kTile<Real>);
  }
  Vector<Real> unused[Vectors];
  for (int s = 0; s < step.stages; ++s) {
    Real* input = space.stage[s].input;
    load_tile<Real, Vectors>(p.context, first, samples, p.context_dim, input + shape.context_row * kTile<Real>);
    set_stage_input<Real, Vectors>(p, space, input, grid, s);
    forward_stage<Real, Vectors, K>(nets[s], 0, space.stage[s], space, space.velocity[s], unused);
  }
  load_tile<Real, Vectors>(adjoint.x_end, first, samples, p.dim, x_bar);
  load_tile<Real, Vectors>(adjoint.context, first, samples, p.context_dim, context_bar);
  Vector<Real> logdet_bar[Vectors];
  load_numbers<Real, Vectors>(adjoint.logdet, first, samples, logdet_bar);
  for (int s = step.stages - 1; s >= 0; --s) {
    BackwardSpace<Real>& own = work.stage[s];
    load_tile<Real, Vectors>(rows_of_stage<Real>(step.velocity, s, p.batch, p.dim), first, samples, p.dim,
                             own.velocity_bar);
    const Real weight = grid.weight(p.tableau.b[s]);
    for_each_vector<Real, Vectors>(p.dim, [&](int at) {
      Vector<Real> v = load(own.velocity_bar + at) + weight * load(x_bar + at);
      for (int k = s + 1; k < step.stages; ++k) {
        const Real later = grid.weight(p.tableau.a[k][s]);
        if (later != 0) v += later * load(work.stage[k].input_bar[0] + at);
      }
      store<Real>(own.velocity_bar + at, v);
    });
    Vector<Real> divergence_bar[Vectors];
    load_numbers<Real, Vectors>(rows_of_stage<Real>(step.divergence, s, p.batch, 1), first, samples, divergence_bar);
    for (int j = 0; j < Vectors; ++j) {
      divergence_bar[j] += weight * logdet_bar[j];
      unused[j] = Vector<Real>{};
    }
    if (shape.probed) {
      start_probe<Real, Vectors>(nets[s], space.tangent);
      load_tile<Real, Vectors>(nullptr, 0, 0, shape.padded[0], own.tangent.seed_bar);
      load_tile<Real, Vectors>(nullptr, 0, 0, shape.padded[shape.top()], own.tangent.weighing_bar);
    }
    backward_stage<Real, Vectors, K>(nets[s], 0, space.stage[s], space, own, 0, divergence_bar, unused, parameters);
    if (!parameters) continue;
    accumulate_weights<Real, Vectors, K>(nets[s], space.stage + s, own);
    if (shape.probed) accumulate_probe<Real, Vectors>(nets[s], space.tangent, own);
  }
  const auto add_stages = [&](Real* bar, int row, int rows) {
    for_each_vector<Real, Vectors>(rows, [&](int at) {
      Vector<Real> sum = load(bar + at);
      for (int s = 0; s < step.stages; ++s) sum += load(work.stage[s].input_bar[0] + row * kTile<Real> + at);
      store<Real>(bar + at, sum);
    });
  };
  add_stages(x_bar, 0, p.dim);
  store_tile<Real>(adjoint.x, first, samples, p.dim, x_bar);
  if (adjoint.context == nullptr) return;
  add_stages(context_bar, shape.context_row, p.context_dim);
  store_tile<Real>(adjoint.context, first, samples, p.context_dim, context_bar);
}

}  // namespace
}  // namespace jkoflow::JKOFLOW_ISA
