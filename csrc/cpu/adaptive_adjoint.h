// The adjoint of an integration with steps of its own for every row: each lane of the tile goes back through the
// recorded steps of one row, and takes up the next row at its first step.
#pragma once

#include "adaptive.h"

namespace jkoflow::JKOFLOW_ISA {
namespace {

// Stages that the adjoint evaluates: the last one, which has no share in the end of its step, only for outputs within.
inline int adjoint_stages(const Problem& p, const Adaptive& a) { return p.tableau.stages - (a.outputs > 0 ? 0 : 1); }

template <class Real>
struct AdaptiveAdjointSpace {
  ForwardSpace<Real> forward;
  BackwardSpace<Real> backward;
  Real *dt, *logdet_bar;                              // [kTile]
  Real *x_extra, *velocity_extra, *divergence_extra;  // cotangents by outputs: [dim], [stages][dim], [stages] tiles
  int64_t *row, *step;                                // [kTile]: -1 for none

  AdaptiveAdjointSpace(const Problem& p, const Adaptive& a, const Network<Real>& net, Arena& arena)
      : forward(net, adjoint_stages(p, a), 1, keep_for_adjoint(net), arena),
        backward(net, adjoint_stages(p, a), arena) {
    const int stages = adjoint_stages(p, a);
    const auto tile = [&](int rows) { return arena.take<Real>(static_cast<ptrdiff_t>(rows) * kTile<Real>); };
    dt = tile(1);
    logdet_bar = tile(1);
    x_extra = tile(net.dim);
    velocity_extra = tile(stages * net.dim);
    divergence_extra = tile(stages);
    row = arena.take<int64_t>(kTile<Real>);
    step = arena.take<int64_t>(kTile<Real>);
  }
};

// Goes back through the rows from `begin` to `end`.
template <class Real, Keep K>
class RowAdjoint {
 public:
  RowAdjoint(const Problem& p, const Adaptive& adaptive, const Adjoint& adjoint, const Network<Real>& net,
             AdaptiveAdjointSpace<Real>& space, int64_t begin, int64_t end)
      : p_(p),
        a_(adaptive),
        adjoint_(adjoint),
        net_(net),
        space_(space),
        work_(space.backward),
        stages_(adjoint_stages(p, adaptive)),
        record_bytes_(StepRecord::bytes(p)),
        next_row_(begin),
        end_(end),
        parameters_(adjoint.weight[0] != nullptr) {}

  void run() {
    clear();
    const int64_t rows = end_ - next_row_;
    vectors_ = rows > 2 * kLanes<Real> ? 3 : rows > kLanes<Real> ? 2 : 1;
    for (int i = 0; i < vectors_ * kLanes<Real>; ++i) refill(i);
    for (unsigned steps = 1; active_ > 0; ++steps) {
      if (steps % 16 == 0 && cpu::is_interrupted(p_)) break;
      switch (vectors_) {
        case 1:
          go_back<1>();
          break;
        case 2:
          go_back<2>();
          break;
        default:
          go_back<3>();
      }
      for (int i = 0; i < vectors_ * kLanes<Real>; ++i) {
        if (space_.row[i] >= 0 && space_.step[i] < 0) leave(i);
      }
      if (next_row_ == end_ && active_ <= (vectors_ - 1) * kLanes<Real>) close_ranks();
    }
    flush_probes();
  }

 private:
  using V = Vector<Real>;
  static constexpr int kStride = kTile<Real>;

  const Problem& p_;
  const Adaptive& a_;
  const Adjoint& adjoint_;
  const Network<Real>& net_;
  AdaptiveAdjointSpace<Real>& space_;
  BackwardSpace<Real>& work_;
  const int stages_;
  const int64_t record_bytes_;
  int64_t next_row_, end_;
  const bool parameters_;
  int vectors_ = 1, active_ = 0;
  bool new_probes_ = false;

  const Stage<Real>& stage(int s) const { return space_.forward.stage[s]; }
  Real* x_rows() const { return space_.forward.x; }
  Real* velocity_bar(int s) const { return work_.velocity_bar + static_cast<ptrdiff_t>(s) * net_.dim * kStride; }
  Real* velocity_extra(int s) const { return space_.velocity_extra + static_cast<ptrdiff_t>(s) * net_.dim * kStride; }
  const StepRecord& record(int64_t step) const {
    return *reinterpret_cast<const StepRecord*>(a_.records + step * record_bytes_);
  }
  static const Real* row_of(const void* tensor, int64_t row, int columns) {
    return static_cast<const Real*>(tensor) + row * columns;
  }

  void clear() {
    const auto zero = [&](Real* rows, int count) { std::memset(rows, 0, sizeof(Real) * count * kStride); };
    zero(x_rows(), net_.dim);
    zero(work_.x_bar, net_.dim);
    zero(work_.context_bar, net_.inputs - net_.dim);
    zero(space_.dt, 1);
    zero(space_.logdet_bar, 1);
    zero(space_.x_extra, net_.dim);
    zero(space_.velocity_extra, stages_ * net_.dim);
    zero(space_.divergence_extra, stages_);
    for (int s = 0; s < stages_; ++s) zero(stage(s).input, net_.inputs);
    for (int i = 0; i < kStride; ++i) space_.row[i] = space_.step[i] = -1;
    if (!net_.probed) return;
    zero(space_.forward.tangent.noise, net_.inputs);
    clear_probe_sums();
  }
  void clear_probe_sums() {
    std::memset(work_.tangent.seed_bar, 0, sizeof(Real) * net_.padded[0] * kStride);
    std::memset(work_.tangent.weighing_bar, 0, sizeof(Real) * net_.padded[net_.top()] * kStride);
  }

  // Gives a lane the next row, if there is one.
  void refill(int i) {
    space_.row[i] = space_.step[i] = -1;
    space_.dt[i] = space_.logdet_bar[i] = 0;
    for (int c = 0; c < net_.dim; ++c) x_rows()[c * kStride + i] = work_.x_bar[c * kStride + i] = 0;
    for (int c = 0; c < net_.inputs - net_.dim; ++c) work_.context_bar[c * kStride + i] = 0;
    if (next_row_ == end_) return;
    const int64_t row = next_row_++;
    ++active_;
    space_.row[i] = row;
    space_.step[i] = a_.last_step[row];
    for (int c = 0; adjoint_.x_end != nullptr && c < p_.dim; ++c) {
      work_.x_bar[c * kStride + i] = row_of(adjoint_.x_end, row, p_.dim)[c];
    }
    if (adjoint_.logdet != nullptr) space_.logdet_bar[i] = *row_of(adjoint_.logdet, row, 1);
    for (int s = 0; s < stages_; ++s) {
      for (int c = 0; c < p_.context_dim; ++c) {
        stage(s).input[(net_.context_row + c) * kStride + i] = row_of(p_.context, row, p_.context_dim)[c];
      }
    }
    if (!net_.probed) return;
    flush_probes();  // of the noise that is replaced
    for (int c = 0; c < p_.dim; ++c) {
      space_.forward.tangent.noise[c * kStride + i] = row_of(p_.noise, row, p_.dim)[c];
    }
    new_probes_ = true;
  }

  // Adds what the gradients of all lanes' directions have gathered to the sums. They are linear in it, so any time
  // does.
  void flush_probes() {
    if (!net_.probed || new_probes_ || !parameters_) return;
    switch (vectors_) {
      case 1:
        accumulate_probe<Real, 1>(net_, space_.forward.tangent, work_);
        break;
      case 2:
        accumulate_probe<Real, 2>(net_, space_.forward.tangent, work_);
        break;
      default:
        accumulate_probe<Real, 3>(net_, space_.forward.tangent, work_);
    }
    clear_probe_sums();
  }

  // One step of every lane: its stages from the record, then their adjoint.
  template <int Vectors>
  void go_back() {
    if (new_probes_) start_probe<Real, Vectors>(net_, space_.forward.tangent);
    new_probes_ = false;
    for (int i = 0; i < vectors_ * kLanes<Real>; ++i) load_step(i);
    V dt[Vectors], unused[Vectors];
    for (int j = 0; j < Vectors; ++j) dt[j] = load(space_.dt + j * kLanes<Real>);
    for (int s = 0; s < stages_; ++s) {
      for_each_vector_in<Real, Vectors>(net_.dim, [&](int, int j, ptrdiff_t at) {
        V v = load(x_rows() + at);
        for (int k = 0; k < s; ++k) {
          v += (dt[j] * static_cast<Real>(p_.tableau.a[s][k])) * load(space_.forward.velocity[k] + at);
        }
        store<Real>(stage(s).input + at, v);
      });
      forward_stage<Real, Vectors, K>(net_, 0, stage(s), space_.forward, space_.forward.velocity[s], unused);
    }
    for (int s = stages_ - 1; s >= 0; --s) {
      for_each_vector_in<Real, Vectors>(net_.dim, [&](int, int j, ptrdiff_t at) {
        V v = static_cast<Real>(p_.tableau.b[s]) * load(work_.x_bar + at);
        for (int k = s + 1; k < stages_; ++k) {
          v += static_cast<Real>(p_.tableau.a[k][s]) * load(work_.input_bar[k] + at);
        }
        v *= dt[j];
        if (a_.outputs > 0) v += load(velocity_extra(s) + at);
        store<Real>(velocity_bar(s) + at, v);
      });
      V divergence_bar[Vectors];
      for (int j = 0; j < Vectors; ++j) {
        divergence_bar[j] = static_cast<Real>(p_.tableau.b[s]) * dt[j] * load(space_.logdet_bar + j * kLanes<Real>);
        if (a_.outputs > 0) divergence_bar[j] += load(space_.divergence_extra + s * kStride + j * kLanes<Real>);
        unused[j] = V{};
      }
      backward_stage<Real, Vectors, K>(net_, 0, stage(s), space_.forward, work_, s, divergence_bar, unused,
                                       parameters_);
    }
    const auto add_stages = [&](Real* bar, int first, int rows, const Real* extra) {
      for_each_vector<Real, Vectors>(rows, [&](int at) {
        V sum = load(bar + at);
        for (int s = 0; s < stages_; ++s) sum += load(work_.input_bar[s] + first * kStride + at);
        if (extra != nullptr) sum += load(extra + at);
        store<Real>(bar + at, sum);
      });
    };
    add_stages(work_.x_bar, 0, net_.dim, a_.outputs > 0 ? space_.x_extra : nullptr);
    add_stages(work_.context_bar, net_.dim, net_.inputs - net_.dim, nullptr);
    if (parameters_) accumulate_weights<Real, Vectors, K>(net_, space_.forward.stage, work_);
    for (int i = 0; i < vectors_ * kLanes<Real>; ++i) {
      if (space_.row[i] >= 0) pass_step(i);
    }
  }

  // Idle lanes stand still at zero, so that all their cotangents are zero.
  void load_step(int i) {
    if (space_.row[i] < 0) return;
    const StepRecord& step = record(space_.step[i]);
    const Real* x = reinterpret_cast<const Real*>(&step + 1);
    for (int c = 0; c < net_.dim; ++c) x_rows()[c * kStride + i] = x[c];
    space_.dt[i] = static_cast<Real>(step.dt);
    for (int s = 0; p_.has_time_column() && s < stages_; ++s) {
      stage(s).input[p_.dim * kStride + i] = static_cast<Real>(step.t + p_.tableau.c[s] * step.dt);
    }
    for (int output = step.first_output; output < step.end_output; ++output) add_output(i, step, output);
  }

  // The cotangents that an output within a step gives to its start and its stages.
  void add_output(int i, const StepRecord& step, int output) {
    const double theta = (a_.output_times[output] - step.t) / step.dt;
    const int64_t row = static_cast<int64_t>(output) * p_.batch + space_.row[i];
    const Real* x_bar = a_.x_outputs == nullptr ? nullptr : row_of(a_.x_outputs, row, p_.dim);
    const Real logdet_bar = a_.logdet_outputs == nullptr ? Real(0) : *row_of(a_.logdet_outputs, row, 1);
    for (int s = 0; s < stages_; ++s) {
      const Real weight = static_cast<Real>(step.dt * dense_weight(a_, s, theta));
      for (int c = 0; x_bar != nullptr && c < net_.dim; ++c) velocity_extra(s)[c * kStride + i] += weight * x_bar[c];
      space_.divergence_extra[s * kStride + i] += weight * logdet_bar;
    }
    for (int c = 0; x_bar != nullptr && c < net_.dim; ++c) space_.x_extra[c * kStride + i] += x_bar[c];
    // The logdet at an output starts from the logdet at the step's start, to which all steps before contribute.
    pending_logdet_bar_[i] += logdet_bar;
  }
  Real pending_logdet_bar_[kStride] = {};

  // Turns a lane to the step before.
  void pass_step(int i) {
    const StepRecord& step = record(space_.step[i]);
    space_.step[i] = step.previous;
    if (step.first_output == step.end_output) return;
    space_.logdet_bar[i] += pending_logdet_bar_[i];
    pending_logdet_bar_[i] = 0;
    for (int c = 0; c < net_.dim; ++c) {
      space_.x_extra[c * kStride + i] = 0;
      for (int s = 0; s < stages_; ++s) velocity_extra(s)[c * kStride + i] = 0;
    }
    for (int s = 0; s < stages_; ++s) space_.divergence_extra[s * kStride + i] = 0;
  }

  void leave(int i) {
    const int64_t row = space_.row[i];
    const auto write = [&](void* tensor, int columns, const Real* rows) {
      if (tensor == nullptr) return;
      for (int c = 0; c < columns; ++c) static_cast<Real*>(tensor)[row * columns + c] = rows[c * kStride + i];
    };
    write(adjoint_.x, p_.dim, work_.x_bar);
    write(adjoint_.context, p_.context_dim, work_.context_bar + (net_.context_row - net_.dim) * kStride);
    --active_;
    refill(i);
  }

  // Brings the rows that are left together in as few vectors as hold them.
  void close_ranks() {
    flush_probes();
    const int lanes = vectors_ * kLanes<Real>;
    int to = 0;
    for (int from = 0; from < lanes; ++from) {
      if (space_.row[from] < 0) continue;
      if (from != to) move_lane(from, to);
      ++to;
    }
    for (int i = to; i < lanes; ++i) refill(i);
    vectors_ = (active_ + kLanes<Real> - 1) / kLanes<Real>;
    new_probes_ = net_.probed;
  }

  void move_lane(int from, int to) {
    const auto carry = [&](Real* rows, int count) {
      for (int c = 0; c < count; ++c) rows[c * kStride + to] = rows[c * kStride + from];
    };
    space_.row[to] = space_.row[from];
    space_.step[to] = space_.step[from];
    space_.row[from] = space_.step[from] = -1;
    carry(work_.x_bar, net_.dim);
    carry(work_.context_bar, net_.inputs - net_.dim);
    carry(space_.logdet_bar, 1);
    for (int s = 0; s < stages_; ++s) carry(stage(s).input + net_.dim * kStride, net_.inputs - net_.dim);
    if (net_.probed) carry(space_.forward.tangent.noise, p_.dim);
  }
};

}  // namespace
}  // namespace jkoflow::JKOFLOW_ISA
