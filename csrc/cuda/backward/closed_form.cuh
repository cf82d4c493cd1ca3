// The adjoint of a stage with one or two hidden layers, divergence in closed form or none.
#pragma once

#include "outer_layers.cuh"

namespace jkoflow::cuda {

template <int H, Precision P, int NT>
struct StageAdjoint<H, P, NT, false> : OuterLayersAdjoint<H, P, NT, false> {
  using Outer = OuterLayersAdjoint<H, P, NT, false>;
  using Outer::add_hidden, Outer::add_samples, Outer::divergence_bar, Outer::first_layer_adjoint, Outer::left;
  using Outer::last_layer_adjoint, Outer::put_all, Outer::put_factors, Outer::sync_left;
  using Outer::Outer, Outer::tile, Outer::p, Outer::kept;
  using typename Outer::T;

  // Panels: h_1 (later z_1's cotangent), s_1, and the cotangents of z_2 and q.
  static constexpr int kFirst = 0, kSlopes = 1, kTop = 2, kTraceBar = 3;
  static_assert(kTraceBar < panels_of(Task::kBackward, false));

  JKOFLOW_DEVICE void adjoint_of_stage(int stage) {
    float z[NT][4], q[NT][4];
    tile.first_layer(z, nullptr);
    if (p.layers == 1) {
      const float low = p.exact ? p.packed.trace_matrix[tile.row] : 0.0f,
                  high = p.exact ? p.packed.trace_matrix[tile.row + 8] : 0.0f;
      T::set_units(q, low, high);
      top_adjoint(z, q, kFirst);
      put_all(z, tile.panel(kFirst));
      add_samples(q, kept.units[0]);
      first_layer_adjoint(z, tile.panel(kFirst), stage);
      return;
    }
    activate_all(p.activation, p.beta, z, [&](int n, const Jets& jets) {
      tile.put_factor(tile.panel(kFirst), n, jets.value);
      tile.put_factor(tile.panel(kSlopes), n, jets.slope);
      if (p.exact) tile.keep(0, n, jets.curvature);
    });
    T::sync_factors(Barrier::kFirstLayer);
    tile.hidden_layer(1, tile.panel(kFirst), z);
    T::clear(q);
    if (p.exact) tile.multiply_hidden(p.packed.trace_matrix, tile.panel(kSlopes), q);
    top_adjoint(z, q, kTop);
    put_factors(z, tile.panel(kTop));
    if (p.exact) put_factors(q, tile.panel(kTraceBar));
    add_samples(z, kept.units[0]);
    sync_left();
    add_hidden(0, left(z, tile.panel(kTop)), tile.panel(kFirst));
    if (p.exact) add_hidden(1, left(q, tile.panel(kTraceBar)), tile.panel(kSlopes));
    T::sync_factors(Barrier::kTopAdjoint);

    T::clear(z);
    tile.multiply_hidden(p.packed.hidden_t[0], tile.panel(kTop), z);
    T::clear(q);
    if (p.exact) tile.multiply_hidden(p.packed.trace_matrix_t, tile.panel(kTraceBar), q);
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      float curvature[4] = {};
      if (p.exact) tile.recall(0, n, curvature);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        z[n][j] = tile.panel(kSlopes)[tile.factor_element(n, j)] * z[n][j] + curvature[j] * q[n][j];
      }
      tile.put(tile.panel(kFirst), n, z[n]);
    }
    first_layer_adjoint(z, tile.panel(kFirst), stage);
  }

  // The last hidden layer: z becomes its cotangent and q that of s in s . q; `panel` is free for the layer's values.
  JKOFLOW_DEVICE void top_adjoint(float (&z)[NT][4], float (&q)[NT][4], int panel) {
    float value_bar[NT][4], divergence[NT][2];
    last_layer_adjoint(z, tile.panel(panel), value_bar);
    activate_all(p.activation, p.beta, z, [&](int n, const Jets& jets) {
      divergence[n][0] = jets.slope[0] * q[n][0] + jets.slope[2] * q[n][2];
      divergence[n][1] = jets.slope[1] * q[n][1] + jets.slope[3] * q[n][3];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float bar = divergence_bar(n, j);
        z[n][j] = jets.slope[j] * value_bar[n][j] + bar * jets.curvature[j] * q[n][j];
        q[n][j] = bar * jets.slope[j];
      }
    });
    if (p.exact) tile.reduce_divergence(divergence);
  }
};

}  // namespace jkoflow::cuda
