#include "packing.h"

#include <stdexcept>

#include "layout.h"

namespace jkoflow::cuda {
namespace {

const float* floats(const void* pointer) { return static_cast<const float*>(pointer); }

class Packing {
 public:
  Packing(const Problem& p, const KernelKind& kind, Arena& arena, Packed& packed, PrepareParams& prepare)
      : arena_(arena), prepare_(prepare) {
    const bool adjoint = is_adjoint(kind.task);
    const int H = kind.H;
    const int L = p.hidden_layers, columns = p.input_columns(), top = p.width[L - 1];
    const bool hutchinson = p.divergence == Divergence::kHutchinson;
    prepare.precision = static_cast<int>(kind.precision);
    prepare.paths = {floats(p.weight[0]), floats(p.weight[L]), columns, top, p.dim};

    const int narrow = round_up(p.dim, 8), narrow_rows = round_up(p.dim, 16);
    packed.first = matrix(p.weight[0], p.width[0], columns, columns, 1, H, round_up(columns + 1, 8), p.bias[0]);
    packed.last = matrix(p.weight[L], p.dim, top, top, 1, narrow_rows, H);
    packed.bias_last = vector(p.bias[L], p.dim, narrow_rows);
    if (p.linear != nullptr) packed.linear = matrix(p.linear, p.dim, p.dim, p.dim, 1, narrow_rows, narrow);
    if (adjoint || hutchinson) packed.last_t = matrix(p.weight[L], top, p.dim, 1, top, H, narrow);
    if (adjoint) {
      packed.first_t = matrix(p.weight[0], columns, p.width[0], 1, columns, round_up(columns, 16), H);
      if (p.linear != nullptr) packed.linear_t = matrix(p.linear, p.dim, p.dim, 1, p.dim, narrow_rows, narrow);
    }
    for (int l = 1; l < L; ++l) {
      const int rows = p.width[l], depth = p.width[l - 1];
      packed.bias[l - 1] = vector(p.bias[l], rows, H);
      packed.hidden[l - 1] = matrix(p.weight[l], rows, depth, depth, 1, H, H);
      if (adjoint) packed.hidden_t[l - 1] = matrix(p.weight[l], depth, rows, 1, depth, H, H);
    }
    if (p.divergence != Divergence::kExact || L > 2) return;
    if (L == 1) {
      packed.trace_matrix = vector(nullptr, p.width[0], H);
      last_job().traced = kTraceVector;
      return;
    }
    packed.trace_matrix = matrix(p.weight[1], p.width[1], p.width[0], p.width[0], 1, H, H);
    last_job().traced = kTraceMatrix;
    if (!adjoint) return;
    packed.trace_matrix_t = matrix(p.weight[1], p.width[0], p.width[1], 1, p.width[0], H, H);
    last_job().traced = kTraceMatrixTransposed;
  }

  int blocks() const { return blocks_; }

 private:
  float* matrix(const void* source, int rows, int columns, int row_stride, int column_stride, int padded_rows,
                int depth, const void* bias = nullptr) {
    return add({nullptr, floats(source), floats(bias), rows, columns, row_stride, column_stride, padded_rows, depth,
                kPlain, 0});
  }
  float* vector(const void* source, int count, int padded) {
    return add({nullptr, floats(source), nullptr, count, 1, 1, 0, padded, 1, kPlain, 0});
  }
  float* add(PackJob job) {
    if (prepare_.count == kMaxPackJobs) throw std::logic_error("kMaxPackJobs is too small");
    const int count = job.padded_rows * job.depth, numbers = 4 * kSmallThreads;  // of a thread block
    job.target = arena_.take<float>(count);
    job.end = blocks_ += (count + numbers - 1) / numbers;
    prepare_.jobs[prepare_.count++] = job;
    return job.target;
  }
  PackJob& last_job() { return prepare_.jobs[prepare_.count - 1]; }

  Arena& arena_;
  PrepareParams& prepare_;
  int blocks_ = 0;
};

}  // namespace

int pack_weights(const Problem& problem, const KernelKind& kind, Arena& arena, Packed& packed, PrepareParams& prepare) {
  return Packing(problem, kind, arena, packed, prepare).blocks();
}

}  // namespace jkoflow::cuda
