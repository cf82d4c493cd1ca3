// Sums of the gradients of the parameters and of the loss's terms, over all tiles of a thread block. They are left as
// its partial gradient and terms.
#pragma once

#include "../shapes.h"
#include "../tile.cuh"

namespace jkoflow::cuda {

// What a thread keeps of the gradients from tile to tile.
template <int H, Precision P>
struct KeptSums {
  HiddenSums<H, P> hidden[2];  // W2, then M or W3
  float units[2][2] = {};      // biases of the second (with one layer: of c) and the third, this lane's two units
};

template <int H, Precision P, int NT, bool kTangents>
struct BackwardSums {
  using T = Tile<H, P, NT, kTangents>;
  static constexpr Precision kNarrow = T::kNarrow;

  T tile;
  const Params& p;
  KeptSums<H, P>& kept;

  JKOFLOW_DEVICE BackwardSums(const Params& params, KeptSums<H, P>& kept) : tile(params), p(params), kept(kept) {}

  // The thread block's partial gradient.
  JKOFLOW_DEVICE float* partial() const {
    return p.partial + static_cast<long long>(device::block()) * p.gradient.count;
  }

  JKOFLOW_DEVICE float* sums(Place place, int in_partial) const {
    return place.in_shared ? tile.shared + place.offset : partial() + in_partial;
  }

  // ---- What a tile adds

  JKOFLOW_DEVICE Left<NT> left(const float (&fragments)[NT][4], const float* panel) const {
    return {fragments, panel, H, 16 * tile.warp};
  }
  // Adds to a narrow sum, by this warp's rows. Where FMA reads the left factor from its panel, the warp has just put it
  // there, and afterwards may overwrite it.
  JKOFLOW_DEVICE void add_narrow(Place sum, int in_partial, int sum_stride, int columns, const Left<NT>& left,
                                 const float* right, int stride) {
    if (!p.want_parameters) return;
    add_outer<kNarrow, NT>(sums(sum, in_partial) + 16 * tile.warp * sum_stride, sum_stride, columns, left, right,
                           stride);
  }
  JKOFLOW_DEVICE void add_hidden(int i, const Left<NT>& left, const float* right) {
    if (!p.want_parameters) return;
    float* memory = nullptr;
    if constexpr (!HiddenSums<H, P>::kInRegisters) memory = partial() + p.gradient.hidden[i] + 16 * tile.warp * H;
    kept.hidden[i].template add<T::kWarpGroups>(memory, left, right);
  }
  JKOFLOW_DEVICE void sync_left() const {
    if constexpr (P == Precision::kFp32) device::sync_warp();
  }
  JKOFLOW_DEVICE void add_first(const Left<NT>& left, const float* right) {
    add_narrow(p.layout.first_sum, p.gradient.first, p.gradient.first_stride, p.first_depth, left, right,
               p.layout.input_stride);
  }
  JKOFLOW_DEVICE void add_last(const Left<NT>& left, const float* right, int stride) {
    add_narrow(p.layout.last_sum, p.gradient.last, p.gradient.narrow_stride, round_up(p.dim, 8), left, right, stride);
  }

  // Sums over samples of this lane's two units, added to `sums`.
  JKOFLOW_DEVICE static void add_samples(const float (&v)[NT][4], float (&sums)[2]) {
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      sums[0] += v[n][0] + v[n][1];
      sums[1] += v[n][2] + v[n][3];
    }
  }

  // Adds sums over samples to column k of a narrow sum. Other lanes add to it in add_outer: the warp waits for them.
  JKOFLOW_DEVICE void add_column(Place sum, int in_partial, int sum_stride, int k, const float (&v)[NT][4]) {
    float units[2] = {};
    add_samples(v, units);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      units[i] += device::shuffle_xor(units[i], 1);
      units[i] += device::shuffle_xor(units[i], 2);
    }
    device::sync_warp();
    if (tile.lane.t == 0) {
      float* out = sums(sum, in_partial) + tile.row * sum_stride + k;
      out[0] += units[0];
      out[8 * sum_stride] += units[1];
    }
    device::sync_warp();
  }

  // ---- Clearing and storing

  JKOFLOW_DEVICE void clear_sums() {
    if (!p.want_parameters) return;
    kept.hidden[0].clear();
    kept.hidden[1].clear();
    zero(sums(p.layout.first_sum, p.gradient.first), H * p.gradient.first_stride);
    zero(sums(p.layout.last_sum, p.gradient.last), H * p.gradient.narrow_stride);
    zero(sums(p.layout.bias_last_sum, p.gradient.bias_last), round_up(p.dim, 8));
    if (p.packed.linear != nullptr) zero(sums(p.layout.linear_sum, p.gradient.linear), linear_numbers());
    if (!HiddenSums<H, P>::kInRegisters && p.layers > 1) zero(partial() + p.gradient.hidden[0], H * H);
    if (!HiddenSums<H, P>::kInRegisters && two_hidden_sums()) zero(partial() + p.gradient.hidden[1], H * H);
    // The first adjoint is barriers away.
  }
  JKOFLOW_DEVICE bool two_hidden_sums() const { return p.layers > 2 || (!kTangents && p.layers == 2 && p.exact); }
  JKOFLOW_DEVICE int linear_numbers() const { return round_up(p.dim, 16) * p.gradient.narrow_stride; }
  // Sums begin at a multiple of 8 floats, and are as many.
  JKOFLOW_DEVICE void zero(float* sums, int count) const {
    const float4 zeros = {0.0f, 0.0f, 0.0f, 0.0f};
    for (int i = 4 * tile.thread; i < count; i += 4 * T::kThreads) device::store4(sums + i, zeros);
  }

  JKOFLOW_DEVICE void store_sums() {
    if (p.layers > 1) kept.hidden[0].store(partial() + p.gradient.hidden[0] + 16 * tile.warp * H);
    if (two_hidden_sums()) kept.hidden[1].store(partial() + p.gradient.hidden[1] + 16 * tile.warp * H);
    if (p.layers > 1) store_units(kept.units[0], p.gradient.bias[0]);
    if (p.layers > 2) store_units(kept.units[1], p.gradient.bias[1]);
    if (p.layers == 1) store_units(kept.units[0], p.gradient.trace_vector);
    // The last of these sums were complete at kStepAdjoint.
    copy(p.layout.first_sum, p.gradient.first, H * p.gradient.first_stride);
    copy(p.layout.last_sum, p.gradient.last, H * p.gradient.narrow_stride);
    copy(p.layout.bias_last_sum, p.gradient.bias_last, round_up(p.dim, 8));
    if (p.packed.linear != nullptr) copy(p.layout.linear_sum, p.gradient.linear, linear_numbers());
  }
  JKOFLOW_DEVICE void copy(Place place, int in_partial, int count) const {
    if (!place.in_shared) return;
    float* gradient = partial() + in_partial;
    const float* sums = tile.shared + place.offset;
    for (int i = 4 * tile.thread; i < count; i += 4 * T::kThreads)
      device::store4(gradient + i, device::load4(sums + i));
  }
  JKOFLOW_DEVICE void store_units(float (&sums)[2], int in_partial) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      sums[i] += device::shuffle_xor(sums[i], 1);
      sums[i] += device::shuffle_xor(sums[i], 2);
      if (tile.lane.t == 0) partial()[in_partial + tile.row + 8 * i] = sums[i];
    }
  }

  // |y|^2, -logdet and |y - x|^2, summed over the samples that have this thread's place in their tile. Cleared and
  // stored for large tiles, which have all places.
  JKOFLOW_DEVICE double* sample_terms() const {
    return p.sample_terms + (static_cast<long long>(device::block()) * p.tile + tile.thread) * 3;
  }
  JKOFLOW_DEVICE void clear_terms() const {
    for (int i = 0; i < 3 && tile.thread < T::kSamples; ++i) sample_terms()[i] = 0.0;
  }
  JKOFLOW_DEVICE void store_terms() const {
    device::sync_block(Barrier::kTermSums);
    if (tile.thread < 3) {
      const double* terms = p.sample_terms + static_cast<long long>(device::block()) * p.tile * 3 + tile.thread;
      double sum = 0.0;
#pragma unroll
      for (int s = 0; s < T::kSamples; ++s) sum += terms[3 * s];
      p.terms[device::block() * 3 + tile.thread] = sum;
    }
  }
};

}  // namespace jkoflow::cuda
