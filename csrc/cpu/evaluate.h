// One evaluation of velocity and divergence, every row at its own time, and its adjoint.
#pragma once

#include "steps.h"

namespace jkoflow::JKOFLOW_ISA {
namespace {

// The tile's rows of x, t and context as the input of the only stage.
template <class Real, int Vectors>
void load_inputs(const Problem& p, const Network<Real>& net, const ForwardSpace<Real>& space, int64_t first,
                 int samples) {
  Real* input = space.stage[0].input;
  load_tile<Real, Vectors>(p.x, first, samples, p.dim, input);
  if (p.has_time_column()) load_tile<Real, Vectors>(p.times, first, samples, 1, input + p.dim * kTile<Real>);
  load_constants<Real, Vectors>(p, net, space, 1, first, samples);
}

template <class Real, int Vectors>
void evaluate_tile(const Problem& p, const Network<Real>& net, const ForwardSpace<Real>& space, int64_t first,
                   int samples) {
  load_inputs<Real, Vectors>(p, net, space, first, samples);
  Vector<Real> divergence[Vectors];
  forward_stage<Real, Vectors, Keep::kNothing>(net, 0, space.stage[0], space, space.velocity[0], divergence);
  store_tile<Real>(p.x_end, first, samples, p.dim, space.velocity[0]);
  Real* out = static_cast<Real*>(p.logdet) + first;
  for (int i = 0; i < samples; ++i) out[i] = divergence[i / kLanes<Real>][i % kLanes<Real>];
}

template <class Real, int Vectors, Keep K>
void evaluate_backward_tile(const Problem& p, const Adjoint& adjoint, const Network<Real>& net,
                            const ForwardSpace<Real>& space, BackwardSpace<Real>& work, int64_t first, int samples) {
  const bool parameters = adjoint.weight[0] != nullptr;
  clear_tile<Real, Vectors>(p, net, work);
  load_inputs<Real, Vectors>(p, net, space, first, samples);
  load_tile<Real, Vectors>(adjoint.x_end, first, samples, p.dim, work.velocity_bar);
  Vector<Real> divergence_bar[Vectors] = {}, divergence[Vectors] = {};
  if (adjoint.logdet != nullptr) {
    const Real* source = static_cast<const Real*>(adjoint.logdet) + first;
    for (int i = 0; i < samples; ++i) divergence_bar[i / kLanes<Real>][i % kLanes<Real>] = source[i];
  }
  forward_stage<Real, Vectors, K>(net, 0, space.stage[0], space, space.velocity[0], divergence);
  backward_stage<Real, Vectors, K>(net, 0, space.stage[0], space, work, 0, divergence_bar, divergence, parameters);
  if (parameters) accumulate_weights<Real, Vectors, K>(net, space.stage, work);
  if (net.probed && parameters) accumulate_probe<Real, Vectors>(net, space.tangent, work);
  const Real* input_bar = work.input_bar[0];
  if (adjoint.x != nullptr) store_tile<Real>(adjoint.x, first, samples, p.dim, input_bar);
  if (adjoint.times != nullptr) store_tile<Real>(adjoint.times, first, samples, 1, input_bar + p.dim * kTile<Real>);
  if (adjoint.context != nullptr) {
    store_tile<Real>(adjoint.context, first, samples, p.context_dim, input_bar + net.context_row * kTile<Real>);
  }
}

}  // namespace
}  // namespace jkoflow::JKOFLOW_ISA
