// The adjoint of a stage with one to three hidden layers, divergence by tangents or none.
#pragma once

#include "outer_layers.cuh"

namespace jkoflow::cuda {

template <int H, Precision P, int NT>
struct StageAdjoint<H, P, NT, true> : OuterLayersAdjoint<H, P, NT, true> {
  using Outer = OuterLayersAdjoint<H, P, NT, true>;
  using Outer::add_column, Outer::add_first, Outer::add_hidden, Outer::add_last, Outer::add_samples;
  using Outer::divergence_bar, Outer::first_layer_adjoint, Outer::last_layer_adjoint, Outer::left, Outer::put_all;
  using Outer::Outer, Outer::tile, Outer::p, Outer::kept;
  using Outer::put_values, Outer::sync_left;
  using typename Outer::T;

  // Panels of h_1, h_2, u_1, u_2 and a cotangent of a tangent; the last three then serve for cotangents of z.
  static constexpr int kFirst = 0, kSecond = 1, kTangent1 = 2, kTangent2 = 3, kTangentBar = 4;
  static_assert(kTangentBar < panels_of(Task::kBackward, true));

  JKOFLOW_DEVICE void adjoint_of_stage(int stage) {
    const AdjointSlots slots(p.layers, p.hutchinson);
    float z[NT][4];
    tile.first_layer(z, nullptr);
    keep_layer(slots, 0, z);
    if (p.layers > 1) {
      put_values(z, tile.panel(kFirst), true);
      device::sync_block(Barrier::kFirstLayer);
      tile.hidden_layer(1, tile.panel(kFirst), z);
      keep_layer(slots, 1, z);
    }
    if (p.layers > 2) {
      put_values(z, tile.panel(kSecond), true);
      device::sync_block(Barrier::kSecondLayer);
      tile.hidden_layer(2, tile.panel(kSecond), z);
      keep_layer(slots, 2, z);
    }
    {
      float value_bar[NT][4];
      last_layer_adjoint(z, tile.panel(kTangentBar), value_bar);
#pragma unroll
      for (int n = 0; n < NT; ++n) tile.keep(slots.value_bar(), n, value_bar[n]);
    }
    float divergence[NT][2] = {};
    for (int k = 0; k < p.directions; ++k) direction_adjoint(slots, k, divergence);
    if (p.directions > 0) tile.reduce_divergence(divergence);

    // From here on panels of tangents hold cotangents of z: the last layer's, then those of the layers before.
    int panel = kTangent1;
#pragma unroll
    for (int n = 0; n < NT; ++n) tile.recall(slots.value_bar(), n, z[n]);
    pre_activation_adjoint(slots, p.layers - 1, z, tile.panel(panel));
    if (p.layers > 2) {
      add_samples(z, kept.units[1]);
      back_through<1>(z, panel, kSecond, Barrier::kMiddleAdjoint);
      pre_activation_adjoint(slots, 1, z, tile.panel(++panel));
    }
    if (p.layers > 1) {
      add_samples(z, kept.units[0]);
      back_through<0>(z, panel, kFirst, Barrier::kTopAdjoint);
      pre_activation_adjoint(slots, 0, z, tile.panel(++panel));
    }
    first_layer_adjoint(z, tile.panel(panel), stage);
  }

  // Keeps sigma' and sigma'' of a layer and starts the cotangent of sigma'.
  JKOFLOW_DEVICE void keep_layer(const AdjointSlots& slots, int layer, const float (&z)[NT][4]) const {
    const float zero[4] = {};
    activate_all(p.activation, p.beta, z, [&](int n, const Jets& jets) {
      tile.keep(slots.slope(layer), n, jets.slope);
      tile.keep(slots.curvature(layer), n, jets.curvature);
      tile.keep(slots.slope_bar(layer), n, zero);
    });
  }

  // z_bar = s (value_bar) + sigma'' (slope_bar), where z holds value_bar.
  JKOFLOW_DEVICE void pre_activation_adjoint(const AdjointSlots& slots, int layer, float (&z)[NT][4],
                                             float* panel) const {
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      float slope[4], curvature[4], slope_bar[4];
      tile.recall(slots.slope(layer), n, slope);
      tile.recall(slots.curvature(layer), n, curvature);
      tile.recall(slots.slope_bar(layer), n, slope_bar);
#pragma unroll
      for (int j = 0; j < 4; ++j) z[n][j] = slope[j] * z[n][j] + curvature[j] * slope_bar[j];
      tile.put(panel, n, z[n]);
    }
  }

  // Through the matrix after the first (I = 0) or second (I = 1) hidden layer: from the cotangent of its product, in
  // fragments and a panel, to its gradient and the cotangent of the right factor. `complete`: the panel is.
  template <int I>
  JKOFLOW_DEVICE void back_through(float (&bar)[NT][4], int panel, int right, Barrier complete) {
    sync_left();
    add_hidden(I, left(bar, tile.panel(panel)), tile.panel(right));
    device::sync_block(complete);
    T::clear(bar);
    tile.multiply_hidden(p.packed.hidden_t[I], tile.panel(panel), bar);
  }

  // From the cotangent of u = s a: adds a u_bar to that of s and returns s u_bar, the cotangent of a, in u_bar.
  JKOFLOW_DEVICE void tangent_adjoint(const AdjointSlots& slots, int layer, int n, const float (&a)[4],
                                      float (&u_bar)[4]) const {
    float slope[4], slope_bar[4];
    tile.recall(slots.slope(layer), n, slope);
    tile.recall(slots.slope_bar(layer), n, slope_bar);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      slope_bar[j] += a[j] * u_bar[j];
      u_bar[j] *= slope[j];
    }
    tile.keep(slots.slope_bar(layer), n, slope_bar);
  }

  // One direction: tangents up to the last hidden layer, w . u added to the divergence, and back.
  JKOFLOW_DEVICE void direction_adjoint(const AdjointSlots& slots, int k, float (&divergence)[NT][2]) {
    const int top = p.layers - 1;
    float a[NT][4];
#pragma unroll
    for (int n = 0; n < NT; ++n) tile.first_tangent(k, slots.noise(), n, a[n]);
    if (p.layers > 1) {
      tile.put_tangent(slots.slope(0), a, tile.panel(kTangent1));
      device::sync_block(Barrier::kTangent1);
      T::clear(a);
      tile.multiply_hidden(p.packed.hidden[0], tile.panel(kTangent1), a);
    }
    if (p.layers > 2) {
#pragma unroll
      for (int n = 0; n < NT; ++n) tile.keep(slots.middle_tangent(), n, a[n]);
      tile.put_tangent(slots.slope(1), a, tile.panel(kTangent2));
      device::sync_block(Barrier::kTangent2);
      T::clear(a);
      tile.multiply_hidden(p.packed.hidden[1], tile.panel(kTangent2), a);
    }
    // The last hidden layer: u = s a, its weight w in the divergence, and their cotangents.
    float w_bar[NT][4];
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      float slope[4], w[4];
      tile.recall(slots.slope(top), n, slope);
      tile.divergence_weights(k, slots.noise() + 1, n, w);
      float u_bar[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float bar = divergence_bar(n, j), u = slope[j] * a[n][j];
        divergence[n][j & 1] += w[j] * u;
        w_bar[n][j] = bar * u;
        u_bar[j] = bar * w[j];
      }
      tangent_adjoint(slots, top, n, a[n], u_bar);
#pragma unroll
      for (int j = 0; j < 4; ++j) a[n][j] = u_bar[j];
    }
    divergence_weights_adjoint(k, w_bar);
    // a is now the cotangent of the last layer's a.
    if (p.layers > 2) {
      put_all(a, tile.panel(kTangentBar));
      back_through<1>(a, kTangentBar, kTangent2, Barrier::kTangentAdjoint2);
#pragma unroll
      for (int n = 0; n < NT; ++n) {
        float tangent[4];
        tile.recall(slots.middle_tangent(), n, tangent);
        tangent_adjoint(slots, 1, n, tangent, a[n]);
      }
    }
    if (p.layers > 1) {
      const int panel = p.layers > 2 ? kTangent2 : kTangentBar;
      put_all(a, tile.panel(panel));
      back_through<0>(a, panel, kTangent1, Barrier::kTangentAdjoint1);
#pragma unroll
      for (int n = 0; n < NT; ++n) {
        float tangent[4];
        tile.first_tangent(k, slots.noise(), n, tangent);
        tangent_adjoint(slots, 0, n, tangent, a[n]);
      }
    }
    first_tangent_adjoint(k, a);
  }

  // Gradient of the last layer through w: its row k, or w = W_last^T noise.
  JKOFLOW_DEVICE void divergence_weights_adjoint(int k, const float (&w_bar)[NT][4]) {
    if (!p.want_parameters) return;
    if (p.hutchinson) {
      put_left(w_bar, kTangentBar);
      add_last(left(w_bar, tile.panel(kTangentBar)), tile.shared + p.layout.noise, p.layout.input_stride);
      sync_left();
    } else {
      add_column(p.layout.last_sum, p.gradient.last, p.gradient.narrow_stride, k, w_bar);
    }
  }
  // Gradient of layer 1 through a_1: column k of W1x, or W1x noise.
  JKOFLOW_DEVICE void first_tangent_adjoint(int k, const float (&a_bar)[NT][4]) {
    if (!p.want_parameters) return;
    if (p.hutchinson) {
      // With two layers other warps still read the cotangents in kTangentBar.
      const int panel = p.layers == 2 ? kTangent2 : kTangentBar;
      put_left(a_bar, panel);
      add_first(left(a_bar, tile.panel(panel)), tile.shared + p.layout.noise);
      sync_left();
    } else {
      add_column(p.layout.first_sum, p.gradient.first, p.gradient.first_stride, k, a_bar);
    }
  }

  // A left factor of FMA's outer product, in a panel of which the warp only uses its own rows for the moment.
  JKOFLOW_DEVICE void put_left(const float (&v)[NT][4], int panel) const {
    if constexpr (P == Precision::kFp32) {
      put_all(v, tile.panel(panel));
      device::sync_warp();
    }
  }
};

}  // namespace jkoflow::cuda
