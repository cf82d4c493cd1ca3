// Packs the weights of a call in the order in which the kernels read them, and builds M or c for the divergence.
#pragma once

#include "device.h"
#include "layout.h"
#include "params.h"
#include "trace_matrix.cuh"

namespace jkoflow::cuda {

struct Prepare {
  JKOFLOW_DEVICE static void run(const PrepareParams& p) {
    const int first = device::block() * device::block_threads() + device::thread();
    const int stride = device::blocks() * device::block_threads();
    for (int i = 0; i < p.count; ++i) {
      const PackJob& job = p.jobs[i];
      for (int at = first; at < job.padded_rows * job.depth; at += stride) {
        Element e{at, 0};
        if (job.depth > 1) e = packed_element(static_cast<Precision>(p.precision), at, job.depth);
        job.target[at] = element(p, job, e);
      }
    }
  }

 private:
  JKOFLOW_DEVICE static float element(const PrepareParams& p, const PackJob& job, Element e) {
    if (e.row >= job.rows) return 0.0f;
    if (e.column >= job.columns) return e.column == job.columns && job.bias != nullptr ? job.bias[e.row] : 0.0f;
    const float v = job.source == nullptr ? 1.0f : job.source[e.row * job.row_stride + e.column * job.column_stride];
    if (job.traced == kPlain) return v;
    const bool transposed = job.traced == kTraceMatrixTransposed;
    const int last = transposed ? e.column : e.row;
    const int first = transposed || job.traced == kTraceVector ? e.row : e.column;
    return v * path_weight(p.first, p.first_stride, first, p.last, p.width_last, last, p.dim);
  }
};

}  // namespace jkoflow::cuda
