// The adjoint of the first and the last layer, of the linear term and of the stage's input, which the closed form and
// the tangents share.
#pragma once

#include "sums.cuh"

namespace jkoflow::cuda {

template <int H, Precision P, int NT, bool kTangents>
struct OuterLayersAdjoint : BackwardSums<H, P, NT, kTangents> {
  using Sums = BackwardSums<H, P, NT, kTangents>;
  using Sums::add_first, Sums::add_last, Sums::left, Sums::sums, Sums::sync_left;
  using Sums::Sums, Sums::kNarrow, Sums::tile, Sums::p;
  using typename Sums::T;

  float divergence_weight = 0.0f;  // dt b of the stage

  JKOFLOW_DEVICE float* cotangent() const { return tile.shared + p.layout.cotangent; }

  JKOFLOW_DEVICE float divergence_bar(int n, int j) const {
    return divergence_weight * tile.shared[p.layout.logdet_bar + tile.sample(n, j)];
  }

  // The activations of z: what the next hidden layer reads, or a panel.
  JKOFLOW_DEVICE void put_values(const float (&z)[NT][4], float* to, bool factor) const {
    activate_all(p.activation, p.beta, z, [&](int n, const Jets& jets) {
      if (factor) {
        tile.put_factor(to, n, jets.value);
      } else {
        tile.put(to, n, jets.value);
      }
    });
  }

  JKOFLOW_DEVICE void put_all(const float (&v)[NT][4], float* panel) const {
#pragma unroll
    for (int n = 0; n < NT; ++n) tile.put(panel, n, v[n]);
  }
  JKOFLOW_DEVICE void put_factors(const float (&v)[NT][4], float* factor) const {
#pragma unroll
    for (int n = 0; n < NT; ++n) tile.put_factor(factor, n, v[n]);
  }

  // dW_last^T += h v_bar^T for the last hidden layer at z, by way of a panel that is free; then W_last^T v_bar.
  JKOFLOW_DEVICE void last_layer_adjoint(const float (&z)[NT][4], float* panel, float (&value_bar)[NT][4]) {
    if (p.want_parameters) {
      float h[NT][4];
      activate_all(p.activation, p.beta, z, [&](int n, const Jets& jets) {
#pragma unroll
        for (int j = 0; j < 4; ++j) h[n][j] = jets.value[j];
        if (P == Precision::kFp32) tile.put(panel, n, jets.value);
      });
      sync_left();
      add_last(left(h, panel), cotangent(), p.layout.cotangent_stride);
      sync_left();
    }
    const int depth = round_up(p.dim, 8);
    T::clear(value_bar);
    multiply<kNarrow, NT>(value_bar, p.packed.last_t + tile.warp * 16 * depth, depth >> 3, cotangent(),
                          p.layout.cotangent_stride);
  }

  // The cotangent of z_1 is in fragments and panel: gradient of layer 1, then of the stage's input.
  JKOFLOW_DEVICE void first_layer_adjoint(const float (&z_bar)[NT][4], const float* panel, int stage) {
    sync_left();
    add_first(left(z_bar, panel), tile.input());
    device::sync_block(Barrier::kFirstAdjoint);
    input_adjoint(panel, stage);
  }

  JKOFLOW_DEVICE void input_adjoint(const float* panel, int stage) {
    const int begin = p.dim + p.has_time;
    const int rows = p.context_grad != nullptr ? p.columns : p.times_grad != nullptr ? begin : p.dim;
    const int depth = round_up(p.dim, 8);
    float *x_bar = tile.stage(stage), *context_bar = tile.at(p.layout.context_bar);
    float* time_bar = p.times_grad != nullptr ? tile.at(p.layout.time_bar) : nullptr;
    for (int job = tile.warp; job < (rows + 15) / 16 * NT; job += T::kWarps) {
      const int strip = job / NT, n = job - strip * NT;
      float v[1][4] = {};
      multiply_chained<kNarrow>(v[0], p.packed.first_t + strip * 16 * H, T::kSteps, panel + 8 * n * H, H);
      if (p.packed.linear_t != nullptr && 16 * strip < p.dim) {
        multiply<kNarrow, 1>(v, p.packed.linear_t + strip * 16 * depth, depth >> 3,
                             cotangent() + 8 * n * p.layout.cotangent_stride, p.layout.cotangent_stride);
      }
      tile.for_each_in_job(strip, n, rows, [&](int s, int k, int j) {
        if (k < p.dim) {
          x_bar[s * p.dim + k] = v[0][j];
        } else if (k >= begin) {
          context_bar[s * p.context_dim + k - begin] += v[0][j];
        } else if (time_bar != nullptr) {
          time_bar[s] = v[0][j];  // an evaluation has one stage
        }
      });
    }
    if (!p.want_parameters) return;
    float* bias = sums(p.layout.bias_last_sum, p.gradient.bias_last);
    for (int k = tile.thread; k < p.dim; k += T::kThreads) {
      float sum = 0.0f;
      for (int s = 0; s < T::kSamples; ++s) sum += cotangent()[panel_index(s, k, p.layout.cotangent_stride)];
      bias[k] += sum;
    }
    if (p.packed.linear != nullptr) linear_gradient();
  }

  // dA += v_bar x^T.
  JKOFLOW_DEVICE void linear_gradient() {
    float* gradient = sums(p.layout.linear_sum, p.gradient.linear);
    const int sum_stride = p.gradient.narrow_stride;
    for (int strip = tile.warp; strip < (p.dim + 15) / 16; strip += T::kWarps) {
      float v[NT][4];
#pragma unroll
      for (int n = 0; n < NT; ++n) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int k = 16 * strip + tile.lane.g + 8 * (j >> 1);
          v[n][j] = k < p.dim ? cotangent()[panel_index(tile.sample(n, j), k, p.layout.cotangent_stride)] : 0.0f;
        }
      }
      const Left<NT> left{v, cotangent(), p.layout.cotangent_stride, 16 * strip};
      add_outer<kNarrow, NT>(gradient + 16 * strip * sum_stride, sum_stride, round_up(p.dim, 8), left, tile.input(),
                             p.layout.input_stride);
    }
  }
};

// By closed_form.cuh or tangents.cuh.
template <int H, Precision P, int NT, bool kTangents>
struct StageAdjoint;

}  // namespace jkoflow::cuda
