// The forward kernel: a block carries a tile of samples through all steps and stages.
#pragma once

#include "block.cuh"

namespace jkoflow::cuda {

// With one or two hidden layers the divergence has a closed form; kTangents carries its directions through the layers.
template <int H, Precision P, int NT, bool kTangents>
struct Forward {
  using B = Block<H, P, NT>;
  static constexpr int kPanels = kTangents ? 4 : 3;

  // Panels of h_1 and h_3, h_2, and either s_1 or the tangents.
  static constexpr int kOdd = 0, kEven = 2, kSlopes = 1, kTangent1 = 1, kTangent2 = 3;
  // Slots: the slopes of each layer, then, for Hutchinson's estimate, the products with the noise.
  JKOFLOW_DEVICE static int noise_slot(const Params& p) { return p.layers; }

  JKOFLOW_DEVICE static void carry_tile(const B& b, long long first) {
    const Params& p = b.p;
    const int samples = b.samples(first);
    float* x = b.at(p.layout.x);
    // Every position is set by the thread that will move it: see Block::advance.
    b.load_constant_inputs(first);
    if (kTangents && p.hutchinson) b.load_noise(first);
    for (int job = b.warp; job < (p.dim + 15) / 16 * NT; job += B::kWarps) {
      b.for_each_in_job(job / NT, job % NT, p.dim, [&](int s, int k, int) {
        const float v = s < samples ? p.x[(first + s) * p.dim + k] : 0.0f;
        x[s * p.dim + k] = v;
        b.input()[panel_index(s, k, p.layout.input_stride)] = v;
        if (p.path != nullptr && s < samples) p.path[(first + s) * p.dim + k] = v;
      });
    }
    b.set_time(0, 0);
    float logdet = 0.0f;  // of sample `thread`
    for (int step = 0; step < p.num_steps; ++step) {
      for (int stage = 0; stage < p.stages; ++stage) {
        device::sync_block(Barrier::kStageInput);
        if (kTangents && p.hutchinson && step == 0 && stage == 0) {
          b.keep_noise_products(noise_slot(p), noise_slot(p) + 1);
        }
        const float* top = kTangents ? layers_with_tangents(b, stage) : layers_in_closed_form(b, stage);
        const bool last_stage = stage + 1 == p.stages;
        float* path = p.path != nullptr && last_stage ? p.path + ((step + 1) * p.batch + first) * p.dim : nullptr;
        float* x_end = last_stage && step + 1 == p.num_steps ? p.x_end + first * p.dim : nullptr;
        const int count = samples * p.dim;
        b.advance(top, step, stage, [&](int i, float v) {
          if (path != nullptr && i < count) path[i] = v;
          if (x_end != nullptr && i < count) x_end[i] = v;
        });
        if (b.thread < B::kTile && (p.exact || p.hutchinson)) logdet += p.b[stage] * b.sample_divergence(b.thread);
      }
    }
    if (b.thread < samples) p.logdet[first + b.thread] = logdet;
  }

  // Velocity's top panel; the divergence is left for Block::sample_divergence. Ends with a barrier.
  JKOFLOW_DEVICE static const float* layers_in_closed_form(const B& b, int stage) {
    const Params& p = b.p;
    float z[NT][4];
    b.first_layer(z, b.stage(stage));
    if (p.layers == 1) {
      const float low = p.exact ? p.packed.coupling[b.row] : 0.0f, high = p.exact ? p.packed.coupling[b.row + 8] : 0.0f;
      float q[NT][4];
      B::set_units(q, low, high);
      top_layer(b, z, q, b.panel(kOdd));
      device::sync_block(Barrier::kFirstLayer);
      return b.panel(kOdd);
    }
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      Jets jets;
      activate(p.activation, p.beta, z[n], jets);
      b.put(b.panel(kOdd), n, jets.value);
      if (p.exact) b.put(b.panel(kSlopes), n, jets.slope);
    }
    device::sync_block(Barrier::kFirstLayer);
    b.hidden_layer(1, b.panel(kOdd), z);
    float q[NT][4];
    B::clear(q);
    if (p.exact) b.multiply_hidden(p.packed.coupling, b.panel(kSlopes), q);
    top_layer(b, z, q, b.panel(kEven));
    device::sync_block(Barrier::kSecondLayer);
    return b.panel(kEven);
  }

  // Activates the last hidden layer; divergence = sum of slopes times q.
  JKOFLOW_DEVICE static void top_layer(const B& b, const float (&z)[NT][4], const float (&q)[NT][4], float* panel) {
    float divergence[NT][2];
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      Jets jets;
      activate(b.p.activation, b.p.beta, z[n], jets);
      b.put(panel, n, jets.value);
      divergence[n][0] = jets.slope[0] * q[n][0] + jets.slope[2] * q[n][2];
      divergence[n][1] = jets.slope[1] * q[n][1] + jets.slope[3] * q[n][3];
    }
    if (b.p.exact) b.reduce_divergence(divergence);
  }

  JKOFLOW_DEVICE static const float* layers_with_tangents(const B& b, int stage) {
    const Params& p = b.p;
    float z[NT][4];
    b.first_layer(z, b.stage(stage));
    keep_layer(b, z, 0, b.panel(kOdd));
    if (p.layers > 1) {
      device::sync_block(Barrier::kFirstLayer);
      b.hidden_layer(1, b.panel(kOdd), z);
      keep_layer(b, z, 1, b.panel(kEven));
    }
    if (p.layers > 2) {
      device::sync_block(Barrier::kSecondLayer);
      b.hidden_layer(2, b.panel(kEven), z);
      keep_layer(b, z, 2, b.panel(kOdd));
    }
    float divergence[NT][2] = {};
    for (int k = 0; k < p.directions; ++k) direction(b, k, divergence);
    if (p.directions > 0) b.reduce_divergence(divergence);
    device::sync_block(Barrier::kTopLayer);
    return b.panel(p.layers == 2 ? kEven : kOdd);
  }

  JKOFLOW_DEVICE static void keep_layer(const B& b, const float (&z)[NT][4], int layer, float* panel) {
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      Jets jets;
      activate(b.p.activation, b.p.beta, z[n], jets);
      b.put(panel, n, jets.value);
      b.keep(layer, n, jets.slope);
    }
  }

  // a_1, u_1 = s_1 a_1, a_2 = W_2 u_1, ... up to the last hidden layer; adds w . u.
  JKOFLOW_DEVICE static void direction(const B& b, int k, float (&divergence)[NT][2]) {
    const Params& p = b.p;
    float a[NT][4];
#pragma unroll
    for (int n = 0; n < NT; ++n) b.first_tangent(k, noise_slot(p), n, a[n]);
    if (p.layers > 1) {
      b.put_tangent(0, a, b.panel(kTangent1));
      device::sync_block(Barrier::kForwardTangent1);
      B::clear(a);
      b.multiply_hidden(p.packed.hidden[0], b.panel(kTangent1), a);
    }
    if (p.layers > 2) {
      b.put_tangent(1, a, b.panel(kTangent2));
      device::sync_block(Barrier::kForwardTangent2);
      B::clear(a);
      b.multiply_hidden(p.packed.hidden[1], b.panel(kTangent2), a);
    }
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      float s[4], w[4];
      b.recall(p.layers - 1, n, s);
      b.divergence_weights(k, noise_slot(p) + 1, n, w);
#pragma unroll
      for (int j = 0; j < 4; ++j) divergence[n][j & 1] += w[j] * s[j] * a[n][j];
    }
  }
};

// A block's share: large tiles, the last tile small if that is enough.
template <int H, Precision P, int NT, int kSmall, bool kTangents>
JKOFLOW_DEVICE void run_forward(const Params& p) {
  using Large = Forward<H, P, NT, kTangents>;
  using Small = Forward<H, P, kSmall, kTangents>;
  {
    const typename Large::B b(p);
    for (int tile = 0; tile < p.large_tiles && first_sample(p, tile) < p.batch; ++tile) {
      Large::carry_tile(b, first_sample(p, tile));
    }
  }
  if (p.small_tiles > 0 && first_sample(p, p.large_tiles) < p.batch) {
    // The two kinds of tiles deal out positions to threads differently.
    device::sync_block(Barrier::kSmallTile);
    const typename Small::B b(p);
    Small::carry_tile(b, first_sample(p, p.large_tiles));
  }
}

}  // namespace jkoflow::cuda
