// From the sums over all thread blocks to the gradients of the parameters and the terms of the loss.
#pragma once

#include "device.h"
#include "params.h"
#include "shapes.h"
#include "trace_matrix.cuh"

namespace jkoflow::cuda {

// From padded sums to tensors, with the chain rule of M = W2 * (W1x W3)^T or c_a = sum_i W1[a, i] W2[i, a]: M's
// gradient goes on to all three. Every job has thread blocks of its own. Lanes run along the first layer's units, which
// lie side by side in M's gradient.
struct Finish {
  JKOFLOW_DEVICE static void run(const FinishParams& p) {
    const int block = device::block();
    int job = 0, begin = 0;
    for (; block >= p.end[job]; ++job) begin = p.end[job];
    const int thread = (block - begin) * kSmallThreads + device::thread();  // of the job
    switch (job) {
      case kFinishFirst:
        return first_layer(p, block - begin);
      case kFinishLast:
        return last_layer(p, thread >> 5);
      case kFinishVectors:
        return vectors(p, thread);
      case kFinishTerms:
        return terms(p);
      default:
        return hidden_layer(p, job - kFinishHidden + 1, thread);
    }
  }

 private:
  static constexpr int kWarps = kSmallThreads / 32;

  JKOFLOW_DEVICE static bool through_matrix(const FinishParams& p) { return p.traced && p.layers == 2; }
  JKOFLOW_DEVICE static bool through_vector(const FinishParams& p) { return p.traced && p.layers == 1; }

  JKOFLOW_DEVICE static float first_weight(const FinishParams& p, int a, int k) {
    return device::load_constant(p.weight[0] + a * p.columns + k);
  }
  JKOFLOW_DEVICE static float last_weight(const FinishParams& p, int k, int o) {
    return device::load_constant(p.weight[p.layers] + k * p.width[p.layers - 1] + o);
  }
  // Gradient of (W1x W3)^T at unit o of the second layer and unit a of the first.
  JKOFLOW_DEVICE static float path_gradient(const FinishParams& p, int o, int a) {
    return device::load_constant(p.total + p.gradient.hidden[1] + o * p.H + a) *
           device::load_constant(p.weight[1] + o * p.width[0] + a);
  }
  JKOFLOW_DEVICE static int at_most(int i, int last) { return i < last ? i : last; }

  // 32 units and a few columns. The warps share the sum over the second layer.
  JKOFLOW_DEVICE static void first_layer(const FinishParams& p, int block) {
    const int strips = (p.columns + kFinishColumns - 1) / kFinishColumns;
    const int first_unit = block / strips * 32, first_column = block % strips * kFinishColumns;
    const int thread = device::thread(), lane = thread & 31, warp = thread >> 5;
    const bool share_sum = through_matrix(p) && first_column < p.dim;
    float* shares = device::shared();
    if (share_sum) {
      const int a = at_most(first_unit + lane, p.width[0] - 1);
      float sums[kFinishColumns] = {};
#pragma unroll 4
      for (int o = warp; o < p.width[1]; o += kWarps) {
        const float v = path_gradient(p, o, a);
#pragma unroll
        for (int c = 0; c < kFinishColumns; ++c) sums[c] += v * last_weight(p, at_most(first_column + c, p.dim - 1), o);
      }
#pragma unroll
      for (int c = 0; c < kFinishColumns; ++c) shares[(warp * kFinishColumns + c) * 32 + lane] = sums[c];
      device::sync_block(Barrier::kPathSums);
    }
    const int unit = thread / kFinishColumns, c = thread % kFinishColumns;
    const int a = first_unit + unit, k = first_column + c;
    if (unit >= 32 || a >= p.width[0] || k >= p.columns) return;
    float sum = p.total[p.gradient.first + a * p.gradient.first_stride + k];
    if (k < p.dim && through_vector(p)) sum += p.total[p.gradient.trace_vector + a] * last_weight(p, k, a);
    if (k < p.dim && share_sum) {
#pragma unroll
      for (int w = 0; w < kWarps; ++w) sum += shares[(w * kFinishColumns + c) * 32 + unit];
    }
    p.weight_grad[0][a * p.columns + k] = sum;
  }

  // A warp for one unit and a few features. Its lanes share the sum over the first layer.
  JKOFLOW_DEVICE static void last_layer(const FinishParams& p, int warp) {
    const int lane = device::thread() & 31;
    const int width = p.width[p.layers - 1], o = warp % width, k = warp / width * kFinishColumns;
    if (k >= p.dim) return;
    float sums[kFinishColumns] = {};
    if (through_matrix(p)) {
#pragma unroll 4
      for (int a = lane; a < p.width[0]; a += 32) {
        const float v = path_gradient(p, o, a);
#pragma unroll
        for (int c = 0; c < kFinishColumns; ++c) sums[c] += v * first_weight(p, a, at_most(k + c, p.dim - 1));
      }
#pragma unroll
      for (int c = 0; c < kFinishColumns; ++c) {
#pragma unroll
        for (int mask = 16; mask > 0; mask >>= 1) sums[c] += device::shuffle_xor(sums[c], mask);
      }
    }
#pragma unroll
    for (int c = 0; c < kFinishColumns; ++c) {
      if (lane != c || k + c >= p.dim) continue;
      float sum = sums[c] + p.total[p.gradient.last + o * p.gradient.narrow_stride + k + c];
      if (through_vector(p)) sum += p.total[p.gradient.trace_vector + o] * first_weight(p, o, k + c);
      p.weight_grad[p.layers][(k + c) * width + o] = sum;
    }
  }

  // A thread for a column of a few rows.
  JKOFLOW_DEVICE static void hidden_layer(const FinishParams& p, int layer, int i) {
    const int depth = p.width[layer - 1], rows = p.width[layer], k = i % depth, first = i / depth * kFinishRows;
    if (first >= rows) return;
    float paths[1][kFinishRows] = {};
    if (through_matrix(p)) {
      const Paths through{p.weight[0], p.weight[p.layers], p.columns, rows, p.dim};
      const int a[1] = {k};
      int o[kFinishRows];
#pragma unroll
      for (int r = 0; r < kFinishRows; ++r) o[r] = at_most(first + r, rows - 1);
      path_weights(through, a, o, paths);
    }
#pragma unroll
    for (int r = 0; r < kFinishRows; ++r) {
      if (first + r >= rows) continue;
      const int at = (first + r) * p.H + k;
      float sum = p.total[p.gradient.hidden[layer - 1] + at];
      if (through_matrix(p)) sum += p.total[p.gradient.hidden[1] + at] * paths[0][r];
      p.weight_grad[layer][(first + r) * depth + k] = sum;
    }
  }

  // A number of a bias or of the linear term.
  JKOFLOW_DEVICE static void vectors(const FinishParams& p, int i) {
    for (int l = 0; l <= p.layers; ++l) {
      const int count = l < p.layers ? p.width[l] : p.dim;
      if (i < count) {
        p.bias_grad[l][i] = bias(p, l, i);
        return;
      }
      i -= count;
    }
    if (p.linear_grad == nullptr || i >= p.dim * p.dim) return;
    p.linear_grad[i] = p.total[p.gradient.linear + i / p.dim * p.gradient.narrow_stride + i % p.dim];
  }
  JKOFLOW_DEVICE static float bias(const FinishParams& p, int layer, int i) {
    if (layer == p.layers) return p.total[p.gradient.bias_last + i];
    if (layer == 0) return p.total[p.gradient.first + i * p.gradient.first_stride + p.columns];
    return p.total[p.gradient.bias[layer - 1] + i];
  }

  // 32 threads for each term, whose numbers lie one after the other.
  JKOFLOW_DEVICE static void terms(const FinishParams& p) {
    constexpr int kTerms = 3, kShares = 32 * kTerms;
    static_assert(kShares <= kSmallThreads);
    const int thread = device::thread();
    double* shares = reinterpret_cast<double*>(device::shared());
    if (thread < kShares) {
      double sum = 0.0;
#pragma unroll 4
      for (int i = thread; i < kTerms * p.blocks; i += kShares) sum += p.block_terms[i];
      shares[thread] = sum;
    }
    device::sync_block(Barrier::kTermTotals);
    if (thread >= kTerms) return;
    double sum = 0.0;
#pragma unroll
    for (int i = 0; i < kShares; i += kTerms) sum += shares[i + thread];
    const double factor = thread == 0 ? 0.5 : thread == 1 ? 1.0 : p.half_inverse_step_size;
    p.terms[thread] = factor == 0.0 ? 0.0 : sum * p.mean * factor;  // a free block's sum may have overflowed
  }
};

}  // namespace jkoflow::cuda
