// One tile through all Runge-Kutta steps, forth and back.
#pragma once

#include "../compensated.h"
#include "general.h"
#include "tiles.h"

namespace jkoflow::JKOFLOW_ISA {
namespace {

// Times and weights of the stages, rounded once.
template <class Real>
struct Grid {
  double dt;
  explicit Grid(const Problem& p) : dt((p.t1 - p.t0) / p.num_steps) {}
  explicit Grid(double step) : dt(step) {}
  Real weight(double number) const { return static_cast<Real>(dt * number); }
  Real time(const Problem& p, int step, int stage) const {
    return static_cast<Real>(p.t0 + (step + p.tableau.c[stage]) * dt);
  }
};

// Writes x + dt sum_j a_ij k_j into the stage's input rows.
template <class Real, int Vectors>
void set_stage_input(const Problem& p, const ForwardSpace<Real>& space, Real* input, const Grid<Real>& grid,
                     int stage) {
  Real weight[kMaxStages];
  for (int j = 0; j < stage; ++j) weight[j] = grid.weight(p.tableau.a[stage][j]);
  for_each_vector<Real, Vectors>(p.dim, [&](int at) {
    Vector<Real> increment{};
    for (int j = 0; j < stage; ++j) {
      if (weight[j] != 0) increment += weight[j] * load(space.velocity[j] + at);
    }
    store<Real>(input + at, load(space.x + at) + increment);
  });
}

// All stages of one step from space.x, without moving it. Adds the weighted divergences to what logdet grows by.
template <class Real, int Vectors, Keep K>
void evaluate_stages(const Problem& p, const Network<Real>& net, const ForwardSpace<Real>& space,
                     const Stage<Real>* stage, const Grid<Real>& grid, int step, Vector<Real> (&increment)[Vectors]) {
  for (int s = 0; s < p.tableau.stages; ++s) {
    set_stage_input<Real, Vectors>(p, space, stage[s].input, grid, s);
    Vector<Real> divergence[Vectors];
    forward_stage<Real, Vectors, K>(net, grid.time(p, step, s), stage[s], space, space.velocity[s], divergence);
    const Real weight = grid.weight(p.tableau.b[s]);
    for (int j = 0; j < Vectors; ++j) increment[j] += weight * divergence[j];
  }
}

// The logdet of a tile's samples, summed over steps.
template <class Real, int Vectors>
struct Logdet {
  Vector<Real> sum[Vectors] = {}, rest[Vectors] = {};

  void add(const Vector<Real> (&increment)[Vectors]) {
    for (int j = 0; j < Vectors; ++j) add_compensated(sum[j], rest[j], increment[j]);
  }
  Real of(int sample) const { return sum[sample / kLanes<Real>][sample % kLanes<Real>]; }
};

// Puts the tile at its start.
template <class Real, int Vectors>
void start(const Problem& p, const ForwardSpace<Real>& space, int64_t first, int samples) {
  load_tile<Real, Vectors>(p.x, first, samples, p.dim, space.x);
  load_tile<Real, Vectors>(nullptr, 0, 0, p.dim, space.x_rest);
}

// Moves space.x to the end of the step whose stages have been evaluated. What the stages see of a position, and the
// path keeps, is space.x alone, so that the adjoint finds the same stages from the path.
template <class Real, int Vectors>
void advance(const Problem& p, const ForwardSpace<Real>& space, const Grid<Real>& grid) {
  Real weight[kMaxStages];
  for (int s = 0; s < p.tableau.stages; ++s) weight[s] = grid.weight(p.tableau.b[s]);
  for_each_vector<Real, Vectors>(p.dim, [&](int at) {
    Vector<Real> x = load(space.x + at), rest = load(space.x_rest + at), increment{};
    for (int s = 0; s < p.tableau.stages; ++s) increment += weight[s] * load(space.velocity[s] + at);
    add_compensated(x, rest, increment);
    store<Real>(space.x + at, x);
    store<Real>(space.x_rest + at, rest);
  });
}

// What stays the same for all stages of a tile: the context rows of every stage's input, and the probe.
template <class Real, int Vectors>
void load_constants(const Problem& p, const Network<Real>& net, const ForwardSpace<Real>& space, int steps,
                    int64_t first, int samples) {
  if (net.probed) {
    load_tile<Real, Vectors>(p.noise, first, samples, p.dim, space.tangent.noise);
    load_tile<Real, Vectors>(nullptr, first, samples, net.inputs - p.dim, space.tangent.noise + p.dim * kTile<Real>);
    start_probe<Real, Vectors>(net, space.tangent);
  }
  for (int s = 0; s < steps * p.tableau.stages; ++s) {
    load_tile<Real, Vectors>(p.context, first, samples, p.context_dim,
                             space.stage[s].input + net.context_row * kTile<Real>);
  }
}

template <class Real>
void* path_at(const Problem& p, int step) {
  return static_cast<Real*>(p.path) + static_cast<int64_t>(step) * p.batch * p.dim;
}

// Whether an interrupted call ends before a step: a single tile may take very many.
inline bool ends_early(const Problem& p, int step) { return step % 16 == 15 && cpu::is_interrupted(p); }

template <class Real, int Vectors>
void forward_tile(const Problem& p, const Network<Real>& net, const ForwardSpace<Real>& space, int64_t first,
                  int samples) {
  const Grid<Real> grid(p);
  start<Real, Vectors>(p, space, first, samples);
  load_constants<Real, Vectors>(p, net, space, 1, first, samples);
  Logdet<Real, Vectors> logdet;
  for (int step = 0; step < p.num_steps && !ends_early(p, step); ++step) {
    if (p.path != nullptr) store_tile<Real>(path_at<Real>(p, step), first, samples, p.dim, space.x);
    Vector<Real> increment[Vectors] = {};
    evaluate_stages<Real, Vectors, Keep::kNothing>(p, net, space, space.stage, grid, step, increment);
    logdet.add(increment);
    advance<Real, Vectors>(p, space, grid);
  }
  store_tile<Real>(p.x_end, first, samples, p.dim, space.x);
  if (p.path != nullptr) store_tile<Real>(path_at<Real>(p, p.num_steps), first, samples, p.dim, space.x);
  Real* out = static_cast<Real*>(p.logdet) + first;
  for (int i = 0; i < samples; ++i) out[i] = logdet.of(i);
}

// Adds rows of a cotangent, if there is one, to a tile.
template <class Real>
void add_cotangent(const void* tensor, int64_t first, int samples, int columns, Real* tile) {
  if (tensor == nullptr) return;
  const Real* source = static_cast<const Real*>(tensor) + first * columns;
  for (int c = 0; c < columns; ++c) {
    for (int i = 0; i < samples; ++i) tile[c * kTile<Real> + i] += source[static_cast<ptrdiff_t>(i) * columns + c];
  }
}

// The adjoint of one step whose stages are kept: x_bar at the step's end becomes x_bar at its start. Adds to
// what logdet grows by what evaluate_stages left out.
template <class Real, int Vectors, Keep K>
void backward_step(const Problem& p, const Network<Real>& net, const ForwardSpace<Real>& space,
                   const Stage<Real>* stage, BackwardSpace<Real>& work, const Grid<Real>& grid, int step,
                   const Vector<Real> (&logdet_bar)[Vectors], Vector<Real> (&increment)[Vectors], bool parameters) {
  const Tableau& tableau = p.tableau;
  for (int s = tableau.stages - 1; s >= 0; --s) {
    const Real weight = grid.weight(tableau.b[s]);
    Real later[kMaxStages];
    for (int j = s + 1; j < tableau.stages; ++j) later[j] = grid.weight(tableau.a[j][s]);
    Real* velocity_bar = work.velocity_bar + static_cast<ptrdiff_t>(s) * net.dim * kTile<Real>;
    for_each_vector<Real, Vectors>(p.dim, [&](int at) {
      Vector<Real> v = weight * load(work.x_bar + at);
      for (int j = s + 1; j < tableau.stages; ++j) {
        if (later[j] != 0) v += later[j] * load(work.input_bar[j] + at);
      }
      store<Real>(velocity_bar + at, v);
    });
    Vector<Real> divergence_bar[Vectors], divergence[Vectors] = {};
    for (int j = 0; j < Vectors; ++j) divergence_bar[j] = weight * logdet_bar[j];
    backward_stage<Real, Vectors, K>(net, grid.time(p, step, s), stage[s], space, work, s, divergence_bar, divergence,
                                     parameters);
    for (int j = 0; j < Vectors; ++j) increment[j] += weight * divergence[j];
  }
  const auto add_stages = [&](Real* bar, int first, int rows) {
    for_each_vector<Real, Vectors>(rows, [&](int at) {
      Vector<Real> sum = load(bar + at);
      for (int s = 0; s < tableau.stages; ++s) sum += load(work.input_bar[s] + first * kTile<Real> + at);
      store<Real>(bar + at, sum);
    });
  };
  add_stages(work.x_bar, 0, p.dim);
  add_stages(work.context_bar, net.context_row, p.context_dim);
  if (parameters) accumulate_weights<Real, Vectors, K>(net, stage, work);
}

// Cotangents of a tile start at zero.
template <class Real, int Vectors>
void clear_tile(const Problem& p, const Network<Real>& net, const BackwardSpace<Real>& work) {
  load_tile<Real, Vectors>(nullptr, 0, 0, p.dim, work.x_bar);
  load_tile<Real, Vectors>(nullptr, 0, 0, net.inputs - p.dim, work.context_bar);
  if (!net.probed) return;
  load_tile<Real, Vectors>(nullptr, 0, 0, net.padded[0], work.tangent.seed_bar);
  load_tile<Real, Vectors>(nullptr, 0, 0, net.padded[net.top()], work.tangent.weighing_bar);
}

// Ends the adjoint of a tile.
template <class Real, int Vectors>
void store_gradients(const Problem& p, const Adjoint& adjoint, const Network<Real>& net, const Tangent<Real>& tangent,
                     BackwardSpace<Real>& work, int64_t first, int samples) {
  if (net.probed && adjoint.weight[0] != nullptr) {
    accumulate_probe<Real, Vectors>(net, tangent, work);
  }
  if (adjoint.x != nullptr) store_tile<Real>(adjoint.x, first, samples, p.dim, work.x_bar);
  if (adjoint.context != nullptr) store_tile<Real>(adjoint.context, first, samples, p.context_dim, work.context_bar);
}

template <class Real, int Vectors, Keep K>
void backward_tile(const Problem& p, const Adjoint& adjoint, const Network<Real>& net, const ForwardSpace<Real>& space,
                   BackwardSpace<Real>& work, int64_t first, int samples) {
  const Grid<Real> grid(p);
  const bool parameters = adjoint.weight[0] != nullptr;
  clear_tile<Real, Vectors>(p, net, work);
  add_cotangent<Real>(adjoint.x_end, first, samples, p.dim, work.x_bar);
  load_constants<Real, Vectors>(p, net, space, 1, first, samples);
  const auto path_bar = [&](int step) -> const void* {
    if (adjoint.path == nullptr) return nullptr;
    return static_cast<const Real*>(adjoint.path) + static_cast<int64_t>(step) * p.batch * p.dim;
  };
  add_cotangent<Real>(path_bar(p.num_steps), first, samples, p.dim, work.x_bar);
  Vector<Real> logdet_bar[Vectors] = {}, unused[Vectors];
  if (adjoint.logdet != nullptr) {
    const Real* source = static_cast<const Real*>(adjoint.logdet) + first;
    for (int i = 0; i < samples; ++i) logdet_bar[i / kLanes<Real>][i % kLanes<Real>] = source[i];
  }
  for (int step = p.num_steps - 1; step >= 0 && !ends_early(p, step); --step) {
    load_tile<Real, Vectors>(path_at<Real>(p, step), first, samples, p.dim, space.x);
    for (int j = 0; j < Vectors; ++j) unused[j] = Vector<Real>{};
    evaluate_stages<Real, Vectors, K>(p, net, space, space.stage, grid, step, unused);
    backward_step<Real, Vectors, K>(p, net, space, space.stage, work, grid, step, logdet_bar, unused, parameters);
    add_cotangent<Real>(path_bar(step), first, samples, p.dim, work.x_bar);
  }
  store_gradients<Real, Vectors>(p, adjoint, net, space.tangent, work, first, samples);
}

// Value and gradient of the JKO objective on one tile. The stages of `kept_steps` steps are kept: all of them, or, for
// very many, those of one step at a time, which are then recomputed from the tile's own path.
template <class Real, int Vectors, Keep K>
void jko_loss_tile(const Problem& p, const JkoLoss& loss, const Adjoint& adjoint, const Network<Real>& net,
                   const ForwardSpace<Real>& space, BackwardSpace<Real>& work, int kept_steps, Real* path,
                   double* terms, int64_t first, int samples) {
  const Grid<Real> grid(p);
  const bool keep_all = kept_steps == p.num_steps;
  const ptrdiff_t tile = p.dim * kTile<Real>;
  const auto stages_of = [&](int step) { return space.stage + (keep_all ? step * p.tableau.stages : 0); };
  clear_tile<Real, Vectors>(p, net, work);
  start<Real, Vectors>(p, space, first, samples);
  load_constants<Real, Vectors>(p, net, space, kept_steps, first, samples);
  Logdet<Real, Vectors> logdet;
  Vector<Real> unused[Vectors] = {};
  for (int step = 0; step < p.num_steps && !ends_early(p, step); ++step) {
    std::memcpy(path + step * tile, space.x, sizeof(Real) * tile);
    Vector<Real> increment[Vectors] = {};
    evaluate_stages<Real, Vectors, K>(p, net, space, stages_of(step), grid, step, increment);
    logdet.add(increment);
    advance<Real, Vectors>(p, space, grid);
  }

  // Terms, and the cotangents at the end; those of lanes without a sample stay zero.
  const double mean = 1.0 / static_cast<double>(p.batch), half_inverse_h = 0.5 / loss.step_size;
  Vector<Real> logdet_bar[Vectors] = {};
  for (int i = 0; i < samples; ++i) {
    double norm = 0, movement = 0;
    for (int c = 0; c < p.dim; ++c) {
      const Real y = space.x[c * kTile<Real> + i], moved = y - path[c * kTile<Real> + i];
      norm += static_cast<double>(y) * y;
      movement += static_cast<double>(moved) * moved;
      work.x_bar[c * kTile<Real> + i] = static_cast<Real>(mean) * (y + static_cast<Real>(2 * half_inverse_h) * moved);
    }
    terms[0] += 0.5 * norm;
    terms[2] += half_inverse_h * movement;
    logdet_bar[i / kLanes<Real>][i % kLanes<Real>] = static_cast<Real>(-mean);
  }
  if (adjoint.x != nullptr) {  // the penalty's own gradient, before x_bar is carried back: keep it in x's place
    for (ptrdiff_t at = 0; at < tile; ++at) {
      space.x[at] = static_cast<Real>(-2 * half_inverse_h * mean) * (space.x[at] - path[at]);
    }
  }

  const bool parameters = adjoint.weight[0] != nullptr;
  for (int step = p.num_steps - 1; step >= 0 && !ends_early(p, step); --step) {
    if (!keep_all) {
      const ForwardSpace<Real> from_path = space.at(path + step * tile);
      evaluate_stages<Real, Vectors, K>(p, net, from_path, space.stage, grid, step, unused);
    }
    Vector<Real> increment[Vectors] = {};
    backward_step<Real, Vectors, K>(p, net, space, stages_of(step), work, grid, step, logdet_bar, increment,
                                    parameters);
    logdet.add(increment);
  }
  for (int i = 0; i < samples; ++i) terms[1] -= logdet.of(i);
  if (adjoint.x != nullptr) {
    for_each_vector<Real, Vectors>(p.dim, [&](int at) { add_to<Real>(work.x_bar + at, load(space.x + at)); });
  }
  store_gradients<Real, Vectors>(p, adjoint, net, space.tangent, work, first, samples);
}

}  // namespace
}  // namespace jkoflow::JKOFLOW_ISA
