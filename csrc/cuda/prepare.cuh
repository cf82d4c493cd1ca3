// Packs the weights of a call in the order in which the kernels read them, and builds M or c for the divergence.
#pragma once

#include "device.h"
#include "layout.h"
#include "params.h"
#include "shapes.h"
#include "trace_matrix.cuh"

namespace jkoflow::cuda {

// Every matrix or vector has thread blocks of its own, and every thread four numbers that lie side by side. For tensor
// cores they are of two rows and two columns, so that a warp reads all of each 32 bytes that it touches.
struct Prepare {
  JKOFLOW_DEVICE static void run(const PrepareParams& p) {
    const int block = device::block();
    int i = 0, begin = 0;
    for (; block >= p.jobs[i].end; ++i) begin = p.jobs[i].end;
    const PackJob& job = p.jobs[i];
    const int four = (block - begin) * kSmallThreads + device::thread();
    if (4 * four >= job.padded_rows * job.depth) return;
    if (job.depth == 1) {
      const int rows[4] = {4 * four, 4 * four + 1, 4 * four + 2, 4 * four + 3}, columns[1] = {0};
      return pack(p, job, four, rows, columns);
    }
    const auto precision = static_cast<Precision>(p.precision);
    const Element e = packed_four(precision, four, job.depth);
    if (precision == Precision::kFp32) {
      const int rows[1] = {e.row}, columns[4] = {e.column, e.column + 1, e.column + 2, e.column + 3};
      return pack(p, job, four, rows, columns);
    }
    const int rows[2] = {e.row, e.row + 8}, columns[2] = {e.column, e.column + 1};
    pack(p, job, four, rows, columns);
  }

 private:
  template <int R, int C>
  JKOFLOW_DEVICE static void pack(const PrepareParams& p, const PackJob& job, int four, const int (&rows)[R],
                                  const int (&columns)[C]) {
    static_assert(R * C == 4);
    float v[C][R];
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i / R][i % R] = element(job, rows[i % R], columns[i / R]);
    if (job.traced != kPlain) trace(p, job, rows, columns, v);
    device::store4(job.target + 4 * four, float4{v[0][0], v[1 / R][1 % R], v[2 / R][2 % R], v[3 / R][3 % R]});
  }

  JKOFLOW_DEVICE static bool within(const PackJob& job, int row, int column) {
    return row < job.rows && column < job.columns;
  }
  JKOFLOW_DEVICE static float element(const PackJob& job, int row, int column) {
    if (within(job, row, column)) {
      if (job.source == nullptr) return 1.0f;
      return device::load_constant(job.source + row * job.row_stride + column * job.column_stride);
    }
    const bool bias = job.bias != nullptr && row < job.rows && column == job.columns;
    return bias ? device::load_constant(job.bias + row) : 0.0f;
  }

  // Times (W1x W_last)^T at the same place. Padding stays zero, whatever the paths at the edge next to it may weigh.
  template <int R, int C>
  JKOFLOW_DEVICE static void trace(const PrepareParams& p, const PackJob& job, const int (&rows)[R],
                                   const int (&columns)[C], float (&v)[C][R]) {
    int row[R], column[C];
#pragma unroll
    for (int r = 0; r < R; ++r) row[r] = rows[r] < job.rows ? rows[r] : job.rows - 1;
#pragma unroll
    for (int c = 0; c < C; ++c) column[c] = columns[c] < job.columns ? columns[c] : job.columns - 1;
    float weight[C][R];
    if (job.traced == kTraceMatrix) {
      path_weights(p.paths, column, row, weight);
    } else if (job.traced == kTraceMatrixTransposed) {
      float transposed[R][C];
      path_weights(p.paths, row, column, transposed);
#pragma unroll
      for (int i = 0; i < 4; ++i) weight[i / R][i % R] = transposed[i % R][i / R];
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int unit[1] = {row[i % R]};
        float path[1][1];
        path_weights(p.paths, unit, unit, path);
        weight[i / R][i % R] = path[0][0];
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (within(job, rows[i % R], columns[i / R])) v[i / R][i % R] *= weight[i / R][i % R];
    }
  }
};

}  // namespace jkoflow::cuda
