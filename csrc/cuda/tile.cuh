// What forward and backward share: the tile of samples that a thread block carries, the network's layers and the
// Runge-Kutta steps.
//
// A warp owns 16 units of every hidden layer (H / 16 warps) and computes them for all samples of the tile, so a panel
// of H units is complete when all warps have passed a barrier. Narrow results (velocities, cotangents of inputs) are
// dealt out as jobs of a strip of 16 rows x 8 samples; a job always falls to the same warp, so that its results need no
// barrier among themselves.
#pragma once

#include "../compensated.h"
#include "activation.cuh"
#include "params.h"
#include "product.cuh"
#include "shapes.h"

namespace jkoflow::cuda {

// The first sample of a tile of this thread block; with a batch that is no multiple of a share there may be none.
JKOFLOW_DEVICE long long first_sample(const Params& p, int tile) {
  return device::block() * p.share + static_cast<long long>(tile) * p.tile;
}

template <int H, Precision P, int NT, bool kTangents>
struct Tile {
  static constexpr int kSamples = 8 * NT, kWarps = H / 16, kThreads = 32 * kWarps, kSteps = H / 8;
  static constexpr bool kWarpGroups = with_warp_groups(JKOFLOW_ARCHITECTURE, P, kTangents);
  static_assert(kSamples <= kThreads);  // a thread for each sample
  // The first and the last layer see positions, whose rounding to TF32 would cost more than the time it saves.
  static constexpr Precision kNarrow = P == Precision::kTf32 ? Precision::kTf32x3 : P;

  const Params& p;
  Lane lane;
  int thread, warp, row;  // row: the first of this lane's two units; the other is row + 8
  float* shared;
  float* scratch;

  JKOFLOW_DEVICE explicit Tile(const Params& params)
      : p(params), shared(device::shared()), scratch(params.scratch + device::block() * params.scratch_stride) {
    renew();
  }

  // Forgets what follows from the thread's index, so that it is not held in registers from stage to stage.
  JKOFLOW_DEVICE void renew() {
    lane = Lane();
    thread = device::thread();
    warp = thread >> 5;
    row = 16 * warp + lane.g;
  }

  // ---- Buffers

  JKOFLOW_DEVICE float* panel(int i) const { return shared + (kWarpGroups ? 2 : 1) * i * kSamples * H; }
  JKOFLOW_DEVICE float* input() const { return shared + p.layout.input; }
  JKOFLOW_DEVICE float* at(Place place) const { return (place.in_shared ? shared : scratch) + place.offset; }
  JKOFLOW_DEVICE float* stage(int s) const { return at(p.layout.stages) + s * kSamples * p.dim; }

  // Sample and unit of element j of fragment n.
  JKOFLOW_DEVICE int sample(int n, int j) const { return 8 * n + 2 * lane.t + (j & 1); }
  JKOFLOW_DEVICE int unit(int j) const { return row + 8 * (j >> 1); }
  JKOFLOW_DEVICE int element(int n, int j) const { return panel_index(sample(n, j), unit(j), H); }

  JKOFLOW_DEVICE void put(float* panel, int n, const float (&values)[4]) const {
#pragma unroll
    for (int j = 0; j < 4; ++j) panel[element(n, j)] = values[j];
  }

  // What products between hidden layers read: an operand with warp groups, else a panel.
  JKOFLOW_DEVICE int factor_element(int n, int j) const {
    return kWarpGroups ? operand_index(sample(n, j), unit(j), kSamples) : element(n, j);
  }
  JKOFLOW_DEVICE void put_factor(float* factor, int n, const float (&values)[4]) const {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      float* to = factor + factor_element(n, j);
      *to = values[j];
      if (kWarpGroups) to[kSamples * H] = values[j] - device::from_bits(device::bits(values[j]) & kHighPart);
    }
  }
  // A barrier behind which factors are complete.
  JKOFLOW_DEVICE static void sync_factors(Barrier barrier) {
    if (kWarpGroups) device::publish_operands();
    device::sync_block(barrier);
  }

  // Slots hold a fragment of each thread, for this thread alone.
  JKOFLOW_DEVICE float* slot(int i, int n) const { return at(p.layout.slots[i]) + (n * kThreads + thread) * 4; }
  JKOFLOW_DEVICE void keep(int i, int n, const float (&v)[4]) const {
    device::store4(slot(i, n), float4{v[0], v[1], v[2], v[3]});
  }
  JKOFLOW_DEVICE void recall(int i, int n, float (&v)[4]) const {
    const float4 kept = device::load4(slot(i, n));
    v[0] = kept.x;
    v[1] = kept.y;
    v[2] = kept.z;
    v[3] = kept.w;
  }

  // ---- Samples

  JKOFLOW_DEVICE int samples(long long first) const {
    return p.batch - first < kSamples ? static_cast<int>(p.batch - first) : kSamples;
  }

  // Columns of the input panel that no stage changes: context, 1 for the bias, zeros, and t if every row has its own.
  // Samples beyond the batch are zero.
  JKOFLOW_DEVICE void load_constant_inputs(long long first) const {
    const int begin = p.dim + p.has_time, count = p.first_depth - begin, samples = this->samples(first);
    if (p.times != nullptr && thread < kSamples) {
      input()[panel_index(thread, p.dim, p.layout.input_stride)] = thread < samples ? p.times[first + thread] : 0.0f;
    }
    for (int i = thread; i < kSamples * count; i += kThreads) {
      const int s = i / count, c = begin + i - s * count;
      float v = 0.0f;
      if (c < p.columns) {
        if (s < samples) v = p.context[(first + s) * p.context_dim + c - begin];
      } else if (c == p.columns) {
        v = 1.0f;
      }
      input()[panel_index(s, c, p.layout.input_stride)] = v;
    }
  }

  // The noise in a panel, zero beyond its columns.
  JKOFLOW_DEVICE void load_noise(long long first) const {
    const int samples = this->samples(first);
    for (int i = thread; i < kSamples * p.first_depth; i += kThreads) {
      const int s = i / p.first_depth, c = i - s * p.first_depth;
      shared[p.layout.noise + panel_index(s, c, p.layout.input_stride)] =
          c < p.dim && s < samples ? p.noise[(first + s) * p.dim + c] : 0.0f;
    }
  }

  // Rows of a (batch, dim) tensor, added to or instead of what [sample][dim] holds. Null reads as zero.
  JKOFLOW_DEVICE void load_rows(const float* tensor, long long first, float* rows, bool add) const {
    const int count = samples(first) * p.dim;
    for (int i = thread; i < kSamples * p.dim; i += kThreads) {
      const float v = tensor != nullptr && i < count ? tensor[first * p.dim + i] : 0.0f;
      rows[i] = add ? rows[i] + v : v;
    }
  }
  JKOFLOW_DEVICE void store_rows(const float* rows, long long first, int columns, float* tensor) const {
    const int count = samples(first) * columns;
    for (int i = thread; i < count; i += kThreads) tensor[first * columns + i] = rows[i];
  }

  // ---- Stages

  JKOFLOW_DEVICE void set_time(int step, int stage) const {
    if (p.has_time && p.times == nullptr && thread < kSamples) {
      input()[panel_index(thread, p.dim, p.layout.input_stride)] =
          static_cast<float>(p.t0 + (step + p.c[stage]) * p.dt);
    }
  }

  // The stage's input from [sample][dim].
  JKOFLOW_DEVICE void set_input(const float* rows, int step, int stage) const {
    for (int i = thread; i < kSamples * p.dim; i += kThreads) {
      const int s = i / p.dim;
      input()[panel_index(s, i - s * p.dim, p.layout.input_stride)] = rows[i];
    }
    set_time(step, stage);
  }

  // Pre-activations of layer 1 at the input panel. The linear term's velocity is left in the stage, since the panel
  // will hold the next input before the last layer is done.
  JKOFLOW_DEVICE void first_layer(float (&z)[NT][4], float* linear_velocity) const {
    clear(z);
    multiply<kNarrow, NT>(z, p.packed.first + warp * 16 * p.first_depth, p.first_depth >> 3, input(),
                          p.layout.input_stride);
    if (p.packed.linear == nullptr || linear_velocity == nullptr) return;
    const int depth = round_up(p.dim, 8);
    for (int job = warp; job < (p.dim + 15) / 16 * NT; job += kWarps) {
      const int strip = job / NT, n = job - strip * NT;
      float v[1][4] = {};
      multiply<kNarrow, 1>(v, p.packed.linear + strip * 16 * depth, depth >> 3, input() + 8 * n * p.layout.input_stride,
                           p.layout.input_stride);
      for_each_in_job(strip, n, p.dim, [&](int s, int k, int j) { linear_velocity[s * p.dim + k] = v[0][j]; });
    }
  }

  // Pre-activations of hidden layer `layer` (1 is the second) from the one before.
  JKOFLOW_DEVICE void hidden_layer(int layer, const float* factor, float (&z)[NT][4]) const {
    set_units(z, p.packed.bias[layer - 1][row], p.packed.bias[layer - 1][row + 8]);
    multiply_hidden(p.packed.hidden[layer - 1], factor, z);
  }

  // acc += the warp's rows of an (H, H) matrix by a factor.
  JKOFLOW_DEVICE void multiply_hidden(const float* weights, const float* factor, float (&acc)[NT][4]) const {
    if constexpr (kWarpGroups) {
      multiply_operand<H, NT>(acc, weights + warp * 16 * H, factor);
    } else {
      multiply<P, NT>(acc, weights + warp * 16 * H, kSteps, factor, H);
    }
  }

  // The last layer: write(sample, feature, velocity) once for each, by the thread that has it.
  template <class Write>
  JKOFLOW_DEVICE void last_layer(const float* panel, const float* linear_velocity, Write&& write) const {
    for (int job = warp; job < (p.dim + 15) / 16 * NT; job += kWarps) {
      const int strip = job / NT, n = job - strip * NT;
      float v[4] = {};
      multiply_chained<kNarrow>(v, p.packed.last + strip * 16 * H, kSteps, panel + 8 * n * H, H);
      for_each_in_job(strip, n, p.dim, [&](int s, int k, int j) {
        const float addend = p.packed.linear == nullptr ? 0.0f : linear_velocity[s * p.dim + k];
        write(s, k, v[j] + p.packed.bias_last[k] + addend);
      });
    }
  }

  // The last layer, then what it makes known: the input of the next stage, or after the last stage the next position,
  // which is the input of the next step. record(sample * dim + feature, value) sees it. What stages and path see of a
  // position is x alone, so that the adjoint finds the same stages from the path.
  template <class Record>
  JKOFLOW_DEVICE void advance(const float* panel, int step, int s_now, Record&& record) const {
    float *x = at(p.layout.x), *rest = at(p.layout.x_rest);
    const bool last_stage = s_now + 1 == p.stages;
    last_layer(panel, stage(s_now), [&](int s, int k, float velocity) {
      const int i = s * p.dim + k;
      stage(s_now)[i] = velocity;
      float next = p.evaluate ? 0.0f : x[i], increment = 0.0f;
      for (int j = 0; j <= s_now; ++j) increment += (last_stage ? p.b[j] : p.a[s_now + 1][j]) * stage(j)[i];
      if (last_stage) {
        add_compensated(next, rest[i], increment);
        x[i] = next;
      } else {
        next += increment;
      }
      input()[panel_index(s, k, p.layout.input_stride)] = next;
      record(i, next);
    });
    set_time(last_stage ? step + 1 : step, last_stage ? 0 : s_now + 1);
  }

  // ---- Helpers

  JKOFLOW_DEVICE static void clear(float (&z)[NT][4]) {
#pragma unroll
    for (int n = 0; n < NT; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) z[n][j] = 0.0f;
    }
  }

  // The lane's two units, for all samples.
  JKOFLOW_DEVICE static void set_units(float (&z)[NT][4], float low, float high) {
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      z[n][0] = z[n][1] = low;
      z[n][2] = z[n][3] = high;
    }
  }

  // visit(sample, row, j) for the elements of a job's fragment whose row is below `rows`.
  template <class Visit>
  JKOFLOW_DEVICE void for_each_in_job(int strip, int n, int rows, Visit&& visit) const {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int k = 16 * strip + lane.g + 8 * (j >> 1);
      if (k < rows) visit(sample(n, j), k, j);
    }
  }

  // Sums of each sample's two partial values in this thread (samples 2 t and 2 t + 1 of fragment n) over the warp's
  // rows, left for sample_divergence.
  JKOFLOW_DEVICE void reduce_divergence(const float (&partial)[NT][2]) const {
    float* out = shared + p.layout.divergence + warp * kSamples;
#pragma unroll
    for (int n = 0; n < NT; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float v = partial[n][i];
        v += device::shuffle_xor(v, 4);
        v += device::shuffle_xor(v, 8);
        v += device::shuffle_xor(v, 16);
        if (lane.g == 0) out[8 * n + 2 * lane.t + i] = v;
      }
    }
  }
  JKOFLOW_DEVICE float sample_divergence(int s) const {
    float sum = 0.0f;
    for (int w = 0; w < kWarps; ++w) sum += shared[p.layout.divergence + w * kSamples + s];
    return sum;
  }

  // The logdet of sample `thread`, and what rounding cuts off it: this thread's alone, in tiles of any size.
  JKOFLOW_DEVICE float& logdet() const { return shared[p.layout.logdet + 2 * thread]; }
  JKOFLOW_DEVICE float& logdet_rest() const { return shared[p.layout.logdet + 2 * thread + 1]; }
  JKOFLOW_DEVICE void clear_logdet() const {
    if (thread < kSamples) logdet() = logdet_rest() = 0.0f;
  }
  JKOFLOW_DEVICE void add_divergence(float weight) const {
    if (thread >= kSamples || !(p.exact || p.hutchinson)) return;
    add_compensated(logdet(), logdet_rest(), weight * sample_divergence(thread));
  }

  // ---- Directions of the divergence: row `direction` of the last layer and column `direction` of the first, for this
  // lane's two units. Padded units are zero.
  JKOFLOW_DEVICE void first_column(int direction, float (&v)[4]) const {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      v[j] = unit(j) < p.first_width ? device::load_constant(p.first + unit(j) * p.columns + direction) : 0.0f;
    }
  }
  JKOFLOW_DEVICE void last_row(int direction, float (&v)[4]) const {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      v[j] = unit(j) < p.top_width ? device::load_constant(p.last + direction * p.top_width + unit(j)) : 0.0f;
    }
  }
  // W1x noise and W_last^T noise, the same for all stages, into two slots.
  JKOFLOW_DEVICE void keep_noise_products(int first_slot, int last_slot) const {
    const float* noise = shared + p.layout.noise;
    float v[NT][4];
    clear(v);
    multiply<kNarrow, NT>(v, p.packed.first + warp * 16 * p.first_depth, p.first_depth >> 3, noise,
                          p.layout.input_stride);
#pragma unroll
    for (int n = 0; n < NT; ++n) keep(first_slot, n, v[n]);
    clear(v);
    const int depth = round_up(p.dim, 8);
    multiply<kNarrow, NT>(v, p.packed.last_t + warp * 16 * depth, depth >> 3, noise, p.layout.input_stride);
#pragma unroll
    for (int n = 0; n < NT; ++n) keep(last_slot, n, v[n]);
  }
  // The tangent a_1 and the weights w of its divergence in `direction`.
  JKOFLOW_DEVICE void first_tangent(int direction, int slot, int n, float (&v)[4]) const {
    if (p.hutchinson) {
      recall(slot, n, v);
    } else {
      first_column(direction, v);
    }
  }
  JKOFLOW_DEVICE void divergence_weights(int direction, int slot, int n, float (&v)[4]) const {
    if (p.hutchinson) {
      recall(slot, n, v);
    } else {
      last_row(direction, v);
    }
  }
  // The panel of u = s a of a layer whose slopes s are in a slot.
  JKOFLOW_DEVICE void put_tangent(int slopes, const float (&a)[NT][4], float* panel) const {
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      float u[4];
      recall(slopes, n, u);
#pragma unroll
      for (int j = 0; j < 4; ++j) u[j] *= a[n][j];
      put(panel, n, u);
    }
  }
};

}  // namespace jkoflow::cuda
