// The forward kernel: a thread block carries a tile of samples through all steps and stages.
#pragma once

#include "shapes.h"
#include "tile.cuh"

namespace jkoflow::cuda {

// With one or two hidden layers the divergence has a closed form; kTangents carries its directions through the layers.
template <int H, Precision P, int NT, bool kTangents>
struct Forward {
  using T = Tile<H, P, NT, kTangents>;

  // Panels of h_1 and h_3, h_2, and either s_1 or the tangents.
  static constexpr int kOdd = 0, kEven = 2, kSlopes = 1, kTangent1 = 1, kTangent2 = 3;
  static_assert((kTangents ? kTangent2 : kEven) < panels_of(Task::kForward, kTangents));
  // Slots: the slopes of each layer, then, for Hutchinson's estimate, the products with the noise.
  JKOFLOW_DEVICE static int noise_slot(const Params& p) { return p.layers; }

  JKOFLOW_DEVICE static void carry_tile(const T& tile, long long first) {
    const Params& p = tile.p;
    const int samples = tile.samples(first);
    float *x = tile.at(p.layout.x), *rest = tile.at(p.layout.x_rest);
    // Every position is set by the thread that will move it: see Tile::advance.
    tile.load_constant_inputs(first);
    if (kTangents && p.hutchinson) tile.load_noise(first);
    for (int job = tile.warp; job < (p.dim + 15) / 16 * NT; job += T::kWarps) {
      tile.for_each_in_job(job / NT, job % NT, p.dim, [&](int s, int k, int) {
        const float v = s < samples ? p.x[(first + s) * p.dim + k] : 0.0f;
        x[s * p.dim + k] = v;
        rest[s * p.dim + k] = 0.0f;
        tile.input()[panel_index(s, k, p.layout.input_stride)] = v;
        if (p.path != nullptr && s < samples) p.path[(first + s) * p.dim + k] = v;
      });
    }
    tile.set_time(0, 0);
    tile.clear_logdet();
    for (int step = 0; step < p.num_steps; ++step) {
      for (int stage = 0; stage < p.stages; ++stage) {
        device::sync_block(Barrier::kStageInput);
        if (kTangents && p.hutchinson && step == 0 && stage == 0) {
          tile.keep_noise_products(noise_slot(p), noise_slot(p) + 1);
        }
        const float* top = kTangents ? layers_with_tangents(tile, stage) : layers_in_closed_form(tile, stage);
        const bool last_stage = stage + 1 == p.stages;
        float* path = p.path != nullptr && last_stage ? p.path + ((step + 1) * p.batch + first) * p.dim : nullptr;
        float* x_end = last_stage && step + 1 == p.num_steps ? p.x_end + first * p.dim : nullptr;
        const int count = samples * p.dim;
        tile.advance(top, step, stage, [&](int i, float v) {
          if (path != nullptr && i < count) path[i] = v;
          if (x_end != nullptr && i < count) x_end[i] = v;
        });
        tile.add_divergence(p.b[stage]);
      }
    }
    if (tile.thread < samples) p.logdet[first + tile.thread] = tile.logdet();
  }

  // Velocity's top panel; the divergence is left for Tile::sample_divergence. Ends with a barrier.
  JKOFLOW_DEVICE static const float* layers_in_closed_form(const T& tile, int stage) {
    const Params& p = tile.p;
    float z[NT][4];
    tile.first_layer(z, tile.stage(stage));
    if (p.layers == 1) {
      const float low = p.exact ? p.packed.trace_matrix[tile.row] : 0.0f,
                  high = p.exact ? p.packed.trace_matrix[tile.row + 8] : 0.0f;
      float q[NT][4];
      T::set_units(q, low, high);
      top_layer(tile, z, q, tile.panel(kOdd));
      device::sync_block(Barrier::kFirstLayer);
      return tile.panel(kOdd);
    }
    activate_all(p.activation, p.beta, z, [&](int n, const Jets& jets) {
      tile.put_factor(tile.panel(kOdd), n, jets.value);
      if (p.exact) tile.put_factor(tile.panel(kSlopes), n, jets.slope);
    });
    T::sync_factors(Barrier::kFirstLayer);
    tile.hidden_layer(1, tile.panel(kOdd), z);
    float q[NT][4];
    T::clear(q);
    if (p.exact) tile.multiply_hidden(p.packed.trace_matrix, tile.panel(kSlopes), q);
    top_layer(tile, z, q, tile.panel(kEven));
    device::sync_block(Barrier::kSecondLayer);
    return tile.panel(kEven);
  }

  // Activates the last hidden layer; divergence = sum of slopes times q.
  JKOFLOW_DEVICE static void top_layer(const T& tile, const float (&z)[NT][4], const float (&q)[NT][4], float* panel) {
    float divergence[NT][2];
    activate_all(tile.p.activation, tile.p.beta, z, [&](int n, const Jets& jets) {
      tile.put(panel, n, jets.value);
      divergence[n][0] = jets.slope[0] * q[n][0] + jets.slope[2] * q[n][2];
      divergence[n][1] = jets.slope[1] * q[n][1] + jets.slope[3] * q[n][3];
    });
    if (tile.p.exact) tile.reduce_divergence(divergence);
  }

  JKOFLOW_DEVICE static const float* layers_with_tangents(const T& tile, int stage) {
    const Params& p = tile.p;
    float z[NT][4];
    tile.first_layer(z, tile.stage(stage));
    keep_layer(tile, z, 0, tile.panel(kOdd));
    if (p.layers > 1) {
      device::sync_block(Barrier::kFirstLayer);
      tile.hidden_layer(1, tile.panel(kOdd), z);
      keep_layer(tile, z, 1, tile.panel(kEven));
    }
    if (p.layers > 2) {
      device::sync_block(Barrier::kSecondLayer);
      tile.hidden_layer(2, tile.panel(kEven), z);
      keep_layer(tile, z, 2, tile.panel(kOdd));
    }
    float divergence[NT][2] = {};
    for (int k = 0; k < p.directions; ++k) direction(tile, k, divergence);
    if (p.directions > 0) tile.reduce_divergence(divergence);
    device::sync_block(Barrier::kTopLayer);
    return tile.panel(p.layers == 2 ? kEven : kOdd);
  }

  JKOFLOW_DEVICE static void keep_layer(const T& tile, const float (&z)[NT][4], int layer, float* panel) {
    activate_all(tile.p.activation, tile.p.beta, z, [&](int n, const Jets& jets) {
      tile.put(panel, n, jets.value);
      tile.keep(layer, n, jets.slope);
    });
  }

  // a_1, u_1 = s_1 a_1, a_2 = W_2 u_1, ... up to the last hidden layer; adds w . u.
  JKOFLOW_DEVICE static void direction(const T& tile, int k, float (&divergence)[NT][2]) {
    const Params& p = tile.p;
    float a[NT][4];
#pragma unroll
    for (int n = 0; n < NT; ++n) tile.first_tangent(k, noise_slot(p), n, a[n]);
    if (p.layers > 1) {
      tile.put_tangent(0, a, tile.panel(kTangent1));
      device::sync_block(Barrier::kForwardTangent1);
      T::clear(a);
      tile.multiply_hidden(p.packed.hidden[0], tile.panel(kTangent1), a);
    }
    if (p.layers > 2) {
      tile.put_tangent(1, a, tile.panel(kTangent2));
      device::sync_block(Barrier::kForwardTangent2);
      T::clear(a);
      tile.multiply_hidden(p.packed.hidden[1], tile.panel(kTangent2), a);
    }
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      float s[4], w[4];
      tile.recall(p.layers - 1, n, s);
      tile.divergence_weights(k, noise_slot(p) + 1, n, w);
#pragma unroll
      for (int j = 0; j < 4; ++j) divergence[n][j & 1] += w[j] * s[j] * a[n][j];
    }
  }
};

// A thread block's share: large tiles, the last tile small if that is enough.
template <int H, Precision P, int NT, int kSmall, bool kTangents>
JKOFLOW_DEVICE void run_forward(const Params& p) {
  using Large = Forward<H, P, NT, kTangents>;
  using Small = Forward<H, P, kSmall, kTangents>;
  {
    const typename Large::T carried(p);
    for (int tile = 0; tile < p.large_tiles && first_sample(p, tile) < p.batch; ++tile) {
      Large::carry_tile(carried, first_sample(p, tile));
    }
  }
  if (p.small_tiles > 0 && first_sample(p, p.large_tiles) < p.batch) {
    // The two kinds of tiles deal out positions to threads differently.
    device::sync_block(Barrier::kSmallTile);
    const typename Small::T carried(p);
    Small::carry_tile(carried, first_sample(p, p.large_tiles));
  }
}

}  // namespace jkoflow::cuda
