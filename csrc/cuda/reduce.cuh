// From the thread blocks' partial gradients to the gradients of the parameters, in a fixed order.
#pragma once

#include "device.h"
#include "layout.h"
#include "params.h"
#include "trace_matrix.cuh"

namespace jkoflow::cuda {

// Sums over thread blocks, a thread for each element.
struct Reduce {
  JKOFLOW_DEVICE static void run(const ReduceParams& p) {
    for (int i = device::block() * device::block_threads() + device::thread(); i < p.count;
         i += device::blocks() * device::block_threads()) {
      // Four chains: one alone would wait for each load.
      float sums[4] = {};
      int block = 0;
      for (; block + 4 <= p.blocks; block += 4) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[j] += p.partial[static_cast<long long>(block + j) * p.count + i];
      }
      for (; block < p.blocks; ++block) sums[0] += p.partial[static_cast<long long>(block) * p.count + i];
      p.total[i] = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    }
  }
};

// From the padded sums to the tensors, with the chain rule of M = W2 * (W1x W3)^T or c_a = sum_i W1[a, i] W2[i, a]: M's
// gradient goes on to all three. A warp for each element, whose lanes share the sums of the chain rule.
struct Finish {
  JKOFLOW_DEVICE static void run(const FinishParams& p) {
    const int warps = device::blocks() * (device::block_threads() >> 5);
    const int warp = device::block() * (device::block_threads() >> 5) + (device::thread() >> 5);
    const int lane = device::thread() & 31;
    const int top = p.layers - 1, top_width = p.width[top];
    if (p.weight_grad[0] != nullptr) {
      for (int i = warp; i < p.width[0] * p.columns; i += warps) {
        const int a = i / p.columns, k = i - a * p.columns;
        const float sum = p.total[p.gradient.first + a * p.first_depth + k];
        store(p.weight_grad[0] + i, sum + (k < p.dim ? first_by_trace(p, a, k, lane) : 0.0f), lane);
      }
      for (int i = warp; i < p.dim * top_width; i += warps) {
        const int k = i / top_width, o = i - k * top_width;
        const float sum = p.total[p.gradient.last + o * round_up(p.dim, 8) + k];
        store(p.weight_grad[p.layers] + i, sum + last_by_trace(p, k, o, lane), lane);
      }
      const int thread = 32 * warp + lane, threads = 32 * warps;
      for (int l = 1; l < p.layers; ++l) {
        for (int i = thread; i < p.width[l] * p.width[l - 1]; i += threads) {
          const int o = i / p.width[l - 1], k = i - o * p.width[l - 1];
          float sum = p.total[p.gradient.hidden[l - 1] + o * p.H + k];
          if (p.traced) {
            sum += p.total[p.gradient.hidden[1] + o * p.H + k] *
                   path_weight(p.weight[0], p.columns, k, p.weight[p.layers], top_width, o, p.dim);
          }
          p.weight_grad[l][i] = sum;
        }
      }
      for (int l = 0; l <= p.layers; ++l) {
        for (int i = thread; i < (l < p.layers ? p.width[l] : p.dim); i += threads) p.bias_grad[l][i] = bias(p, l, i);
      }
      for (int i = thread; p.linear_grad != nullptr && i < p.dim * p.dim; i += threads) {
        p.linear_grad[i] = p.total[p.gradient.linear + i / p.dim * round_up(p.dim, 8) + i % p.dim];
      }
    }
    if (p.block_terms != nullptr && warp == 0 && lane < 3) {
      double sum = 0.0;
      for (int block = 0; block < p.blocks; ++block) sum += p.block_terms[3 * block + lane];
      p.terms[lane] = sum * p.mean * (lane == 0 ? 0.5 : lane == 1 ? 1.0 : p.half_inverse_step_size);
    }
  }

 private:
  JKOFLOW_DEVICE static float bias(const FinishParams& p, int layer, int i) {
    if (layer == p.layers) return p.total[p.gradient.bias_last + i];
    if (layer == 0) return p.total[p.gradient.first + i * p.first_depth + p.columns];
    return p.total[p.gradient.bias[layer - 1] + i];
  }

  JKOFLOW_DEVICE static void store(float* to, float v, int lane) {
    if (lane == 0) *to = v;
  }
  // The sum of term(i) for i < count, shared by the warp's lanes.
  template <class Term>
  JKOFLOW_DEVICE static float warp_sum(int count, int lane, Term&& term) {
    float sum = 0.0f;
    for (int i = lane; i < count; i += 32) sum += term(i);
#pragma unroll
    for (int mask = 16; mask > 0; mask >>= 1) sum += device::shuffle_xor(sum, mask);
    return sum;
  }

  JKOFLOW_DEVICE static float first_weight(const FinishParams& p, int a, int k) {
    return p.weight[0][a * p.columns + k];
  }
  JKOFLOW_DEVICE static float last_weight(const FinishParams& p, int k, int o) {
    return p.weight[p.layers][k * p.width[p.layers - 1] + o];
  }
  // Gradient of (W1x W3)^T at unit o of the second layer and unit a of the first.
  JKOFLOW_DEVICE static float path_gradient(const FinishParams& p, int o, int a) {
    return p.total[p.gradient.hidden[1] + o * p.H + a] * p.weight[1][o * p.width[0] + a];
  }

  JKOFLOW_DEVICE static float first_by_trace(const FinishParams& p, int a, int k, int lane) {
    if (!p.traced) return 0.0f;
    if (p.layers == 1) return p.total[p.gradient.trace_vector + a] * last_weight(p, k, a);
    return warp_sum(p.width[1], lane, [&](int o) { return path_gradient(p, o, a) * last_weight(p, k, o); });
  }
  JKOFLOW_DEVICE static float last_by_trace(const FinishParams& p, int k, int o, int lane) {
    if (!p.traced) return 0.0f;
    if (p.layers == 1) return p.total[p.gradient.trace_vector + o] * first_weight(p, o, k);
    return warp_sum(p.width[0], lane, [&](int a) { return path_gradient(p, o, a) * first_weight(p, a, k); });
  }
};

}  // namespace jkoflow::cuda
