// Products of a warp: 16 rows of packed weights by a panel of samples, and outer products summed over samples.
//
// A result is kept in fragments: with g = lane / 4 and t = lane % 4, element j of fragment n is row g + 8 (j / 2) of
// the warp's 16, sample 8 n + 2 t + j % 2. That is how the tensor cores leave it, and FMA keeps to it.
#pragma once

#include "device.h"
#include "layout.h"

namespace jkoflow::cuda {

struct Lane {
  int index, g, t;
  JKOFLOW_DEVICE Lane() : index(device::thread() & 31), g(index >> 2), t(index & 3) {}
};

// ---- One 16 x 8 by 8 x 8 product on tensor cores.

// To nearest: half a unit of the last place that counts, then the tensor core truncates. Not for infinity and NaN:
// added to the NaN that GPUs compute, 0x7fffffff, it would make -0. The same as cvt.rna.tf32 in an instruction less.
JKOFLOW_DEVICE unsigned round_tf32(float v) {
  constexpr float kLargest = 3.402823466e38f;
  return device::magnitude(v) <= kLargest ? device::bits(v) + 0x1000u : device::bits(v);
}

constexpr unsigned kHighPart = 0xffffe000u;  // the bits of a number that TF32 keeps

// The left factor of 3xTF32, high + low to 21 bits.
struct Split {
  unsigned high[4], low[4];
  JKOFLOW_DEVICE explicit Split(const float (&a)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      high[i] = device::bits(a[i]) & kHighPart;
      low[i] = device::bits(a[i] - device::from_bits(high[i]));
    }
  }
};

template <Precision P>
JKOFLOW_DEVICE void mma(float (&c)[4], const float (&a)[4], float b0, float b1) {
  static_assert(P != Precision::kFp32);
  if constexpr (P == Precision::kTf32) {
    const unsigned rounded[4] = {round_tf32(a[0]), round_tf32(a[1]), round_tf32(a[2]), round_tf32(a[3])};
    device::mma_tf32(c, rounded, round_tf32(b0), round_tf32(b1));
  } else {
    // So is b; the product of the low parts is beyond float32.
    const Split split(a);
    const unsigned b0_high = device::bits(b0) & kHighPart, b1_high = device::bits(b1) & kHighPart;
    device::mma_tf32(c, split.low, b0_high, b1_high);
    device::mma_tf32(c, split.high, device::bits(b0 - device::from_bits(b0_high)),
                     device::bits(b1 - device::from_bits(b1_high)));
    device::mma_tf32(c, split.high, b0_high, b1_high);
  }
}

JKOFLOW_DEVICE float dot(float4 a, float4 b, float sum) { return sum + a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w; }

// ---- acc += W X

// `weights`: the packed strip of 16 rows; steps: its depth / 8; x: the row of the panel of the first of 8 NT samples.
template <Precision P, int NT>
JKOFLOW_DEVICE void multiply(float (&acc)[NT][4], const float* weights, int steps, const float* x, int stride) {
  const Lane lane;
  if constexpr (P == Precision::kFp32) {
    const int even = swizzle(2 * lane.t), odd = swizzle(2 * lane.t + 1);
    const float* low = weights + lane.g * 4;
    const float* row = x + 2 * lane.t * stride;
#pragma unroll 1
    for (int k = 0; k < 8 * steps; k += 4) {
      const float4 a0 = device::load4_constant(low + k * 16), a1 = device::load4_constant(low + k * 16 + 32);
#pragma unroll
      for (int n = 0; n < NT; ++n) {
        const float4 b0 = device::load4(row + 8 * n * stride + (k ^ even));
        const float4 b1 = device::load4(row + (8 * n + 1) * stride + (k ^ odd));
        acc[n][0] = dot(a0, b0, acc[n][0]);
        acc[n][1] = dot(a0, b1, acc[n][1]);
        acc[n][2] = dot(a1, b0, acc[n][2]);
        acc[n][3] = dot(a1, b1, acc[n][3]);
      }
    }
  } else {
    const int swizzled = swizzle(lane.g);
    const float* fragment = weights + lane.index * 4;
    const float* row = x + lane.g * stride + 2 * lane.t;
#pragma unroll 4
    for (int step = 0; step < steps; ++step) {
      const float4 w = device::load4_constant(fragment + step * 128);
      const float a[4] = {w.x, w.y, w.z, w.w};
      const int column = 8 * step ^ swizzled;
#pragma unroll
      for (int n = 0; n < NT; ++n) {
        const float2 b = device::load2(row + 8 * n * stride + column);
        mma<P>(acc[n], a, b.x, b.y);
      }
    }
  }
}

// The same by warp groups, in 3xTF32: the operand's planes of 8 NT rows by H columns are its high and its low parts
// (the high part being the number itself, of which the tensor cores ignore the lower 13 bits).
template <int H, int NT>
JKOFLOW_DEVICE void multiply_operand(float (&acc)[NT][4], const float* weights, const float* operand) {
  constexpr int kGroup = 4, kGroups = H / 8 / kGroup;  // steps whose weights are loaded while those before are used
  constexpr device::Operand kLow = 8 * NT * H / 4, kBlock = 8 * NT * 32 / 4, kStep = 2;  // in pieces of 16 bytes
  const float* fragment = weights + Lane().index * 4;
  const device::Operand high_plane = device::operand(operand);
  float4 w[kGroup];
#pragma unroll
  for (int i = 0; i < kGroup; ++i) w[i] = device::load4_constant(fragment + i * 128);
#pragma unroll 1
  for (int group = 0; group < kGroups; ++group) {
    // Both parts in registers of their own: those of w are loaded anew before the products are done.
    unsigned high[kGroup][4], low[kGroup][4];
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      const float a[4] = {w[i].x, w[i].y, w[i].z, w[i].w};
      const Split split(a);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        high[i][j] = split.high[j];
        low[i][j] = split.low[j];
      }
    }
    device::begin_products();
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      const device::Operand b = high_plane + group * kBlock + i * kStep;
      device::warp_group_tf32(acc, low[i], b);
      device::warp_group_tf32(acc, high[i], b + kLow);
      device::warp_group_tf32(acc, high[i], b);
    }
    device::end_products();
    const float* next = fragment + (group + 1 < kGroups ? group + 1 : 0) * kGroup * 128;
#pragma unroll
    for (int i = 0; i < kGroup; ++i) w[i] = device::load4_constant(next + i * 128);
    device::wait_for_products();
  }
}

// The same for 8 samples and an even number of steps, in two chains, since one alone waits for each result.
template <Precision P>
JKOFLOW_DEVICE void multiply_chained(float (&acc)[4], const float* weights, int steps, const float* x, int stride) {
  if constexpr (P == Precision::kFp32) {
    float single[1][4] = {{acc[0], acc[1], acc[2], acc[3]}};
    multiply<P, 1>(single, weights, steps, x, stride);
#pragma unroll
    for (int j = 0; j < 4; ++j) acc[j] = single[0][j];
  } else {
    const Lane lane;
    const int swizzled = swizzle(lane.g);
    const float* fragment = weights + lane.index * 4;
    const float* row = x + lane.g * stride + 2 * lane.t;
    float other[4] = {};
#pragma unroll 4
    for (int step = 0; step < steps; step += 2) {
      const float4 w = device::load4_constant(fragment + step * 128);
      const float4 w_next = device::load4_constant(fragment + step * 128 + 128);
      const float a[4] = {w.x, w.y, w.z, w.w}, a_next[4] = {w_next.x, w_next.y, w_next.z, w_next.w};
      const float2 b = device::load2(row + (8 * step ^ swizzled));
      const float2 b_next = device::load2(row + ((8 * step + 8) ^ swizzled));
      mma<P>(acc, a, b.x, b.y);
      mma<P>(other, a_next, b_next.x, b_next.y);
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) acc[j] += other[j];
  }
}

// ---- Outer products: sum over the tile's samples of left(row) right(column), for 16 rows and any number of columns.

// Left factor: in fragments for tensor cores; for FMA in a panel, at columns `first` to `first` + 15, where the warp
// has put it. Both must hold the same.
template <int NT>
struct Left {
  const float (&fragments)[NT][4];
  const float* panel;
  int stride, first;
};

// 8 columns from `column` on for each of kCount fragments of 16 x 8: element j is row g + 8 (j / 2), column 2 t + j
// % 2. Each is one chain of products that wait for each other, so that several go side by side. With kOperand the right
// factor is an operand of 8 NT rows, else a panel.
template <Precision P, bool kOperand, int kCount, int NT>
JKOFLOW_DEVICE void outer_fragments(float (&c)[kCount][4], const Left<NT>& left, const float* right, int panel_stride,
                                    int column) {
  const Lane lane;
  const int stride = kOperand ? 32 : panel_stride;
  const auto at = [&](int row, int i) {
    const int first = column + 8 * i;
    return right +
           (kOperand ? operand_index(row, first + lane.g, 8 * NT) : row * stride + ((first ^ swizzle(row)) + lane.g));
  };
  const float *even[kCount], *odd[kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    even[i] = at(2 * lane.t, i);
    odd[i] = at(2 * lane.t + 1, i);
  }
#pragma unroll
  for (int n = 0; n < NT; ++n) {
    const float a[4] = {left.fragments[n][0], left.fragments[n][2], left.fragments[n][1], left.fragments[n][3]};
#pragma unroll
    for (int i = 0; i < kCount; ++i) mma<P>(c[i], a, even[i][8 * n * stride], odd[i][8 * n * stride]);
  }
}

// For FMA a lane takes 8 rows x 4 columns of 16 x 64: rows 8 (lane / 16) on, columns 4 (lane % 16) on.
template <int NT>
JKOFLOW_DEVICE void outer_block(float (&c)[8][4], const Left<NT>& left, const float* right, int stride, int column) {
  const Lane lane;
  const int row = left.first + 8 * (lane.index >> 4);
#pragma unroll 1
  for (int s = 0; s < 8 * NT; ++s) {
    const float* at = left.panel + panel_index(s, row, left.stride);
    const float4 a0 = device::load4(at), a1 = device::load4(at + 4),
                 b = device::load4(right + panel_index(s, column, stride));
    const float a[8] = {a0.x, a0.y, a0.z, a0.w, a1.x, a1.y, a1.z, a1.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      c[i][0] += a[i] * b.x;
      c[i][1] += a[i] * b.y;
      c[i][2] += a[i] * b.z;
      c[i][3] += a[i] * b.w;
    }
  }
}

// Adds the product to sums in memory, `sums` being the first of the 16 rows; kGlobal: in global memory for certain.
// Every element has one lane that adds to it.
template <Precision P, int NT, bool kOperand = false, bool kGlobal = false>
JKOFLOW_DEVICE void add_outer(float* sums, int sums_stride, int columns, const Left<NT>& left, const float* right,
                              int stride) {
  const Lane lane;
  if constexpr (P == Precision::kFp32) {
    for (int column = 4 * (lane.index & 15); column < columns; column += 64) {
      float c[8][4] = {};
      outer_block<NT>(c, left, right, stride, column);
      float* out = sums + 8 * (lane.index >> 4) * sums_stride + column;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float4 sum = device::load4(out + i * sums_stride);
        device::store4(out + i * sums_stride,
                       float4{sum.x + c[i][0], sum.y + c[i][1], sum.z + c[i][2], sum.w + c[i][3]});
      }
    }
  } else {
    for (int column = 0; column < columns; column += 8) {
      float c[1][4] = {};
      outer_fragments<P, kOperand>(c, left, right, stride, column);
      float* out = sums + lane.g * sums_stride + column + 2 * lane.t;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float2 terms{c[0][2 * i], c[0][2 * i + 1]};
        if constexpr (kGlobal) {
          device::add2_global(out + 8 * i * sums_stride, terms);
        } else {
          const float2 sum = device::load2(out + 8 * i * sums_stride);
          device::store2(out + 8 * i * sums_stride, float2{sum.x + terms.x, sum.y + terms.y});
        }
      }
    }
  }
}

// ---- Gradient of an H x H matrix, 16 rows of each warp: in registers up to H = 128, else in memory.

template <int H, Precision P>
class HiddenSums {
 public:
  static constexpr bool kInRegisters = H <= 128;

  JKOFLOW_DEVICE void clear() {
    if constexpr (kInRegisters) {
#pragma unroll
      for (int i = 0; i < kFragments; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sums_[i][j] = 0.0f;
      }
    }
  }

  // `memory`: the warp's rows of the thread block's partial gradient.
  template <bool kOperand, int NT>
  JKOFLOW_DEVICE void add(float* memory, const Left<NT>& left, const float* right) {
    if constexpr (!kInRegisters) {
      add_outer<P, NT, kOperand, true>(memory, H, H, left, right, H);
    } else if constexpr (P == Precision::kFp32) {
      const Lane lane;
#pragma unroll
      for (int i = 0; i < kFragments / 8; ++i) {
        float (&block)[8][4] = reinterpret_cast<float (&)[8][4]>(sums_[8 * i]);
        outer_block<NT>(block, left, right, H, 64 * i + 4 * (lane.index & 15));
      }
    } else {
#pragma unroll
      for (int i = 0; i < kFragments; i += 2) {
        float c[2][4] = {};
        outer_fragments<P, kOperand>(c, left, right, H, 8 * i);
        // Added outside the tensor core, which truncates: long sums would drift.
#pragma unroll
        for (int j = 0; j < 8; ++j) sums_[i + j / 4][j % 4] += c[j / 4][j % 4];
      }
    }
  }

  JKOFLOW_DEVICE void store(float* memory) const {
    if constexpr (kInRegisters) {
      const Lane lane;
#pragma unroll
      for (int i = 0; i < kFragments; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          if constexpr (P == Precision::kFp32) {
            memory[(8 * (lane.index >> 4) + i % 8) * H + i / 8 * 64 + 4 * (lane.index & 15) + j] = sums_[i][j];
          } else {
            memory[(lane.g + 8 * (j >> 1)) * H + 8 * i + 2 * lane.t + (j & 1)] = sums_[i][j];
          }
        }
      }
    }
  }

 private:
  static constexpr int kFragments = H / 8;
  float sums_[kInRegisters ? kFragments : 1][4];
};

}  // namespace jkoflow::cuda
