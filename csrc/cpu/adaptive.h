// Integration with steps of its own for every row. A lane of the tile carries one row, at its own stage of its own
// step, and takes up the next row when it is done: an evaluation always fills the tile, and no row sees its neighbours.
#pragma once

#include "lanes.h"
#include "step_log.h"

namespace jkoflow::JKOFLOW_ISA {
namespace {

// Carries the rows from `begin` to `end`.
template <class Real>
class RowStepper {
 public:
  RowStepper(const Problem& p, const Adaptive& adaptive, const Network<Real>& net, const LaneTile<Real>& tile,
             cpu::StepLog& log, int64_t begin, int64_t end)
      : p_(p),
        a_(adaptive),
        net_(net),
        tile_(tile),
        stage_(tile.forward.stage[0]),
        log_(log),
        control_(p, adaptive),
        stages_(p.tableau.stages),
        next_row_(begin),
        end_(end) {}

  RowFailure run() {
    tile_.clear();
    const int64_t rows = end_ - next_row_;
    vectors_ = rows > 2 * kLanes<Real> ? 3 : rows > kLanes<Real> ? 2 : 1;
    for (int i = 0; i < vectors_ * kLanes<Real>; ++i) refill(i);
    for (unsigned evaluations = 1; active_ > 0; ++evaluations) {
      if (evaluations % 64 == 0 && cpu::is_interrupted(p_)) break;
      switch (vectors_) {
        case 1:
          evaluate<1>();
          break;
        case 2:
          evaluate<2>();
          break;
        default:
          evaluate<3>();
      }
      if (next_row_ == end_ && active_ <= (vectors_ - 1) * kLanes<Real>) close_ranks();
    }
    return failure_;
  }

 private:
  using V = Vector<Real>;
  static constexpr int kStride = kTile<Real>;

  const Problem& p_;
  const Adaptive& a_;
  const Network<Real>& net_;
  const LaneTile<Real>& tile_;
  const Stage<Real>& stage_;
  cpu::StepLog& log_;
  const StepControl control_;
  const int stages_;
  int64_t next_row_, end_;
  int vectors_ = 1, active_ = 0;
  bool new_probes_ = false;
  RowFailure failure_;

  const Real* row_of(const void* tensor, int64_t row, int columns) const {
    return static_cast<const Real*>(tensor) + row * columns;
  }

  // Gives a lane the next row, if there is one.
  void refill(int i) {
    Lane<Real>& lane = tile_.lane[i];
    lane = Lane<Real>{};
    tile_.slot[i] = -1;
    for (int s = 0; s < stages_; ++s) tile_.weight[s * kStride + i] = 0;
    if (next_row_ == end_) {
      for (int c = 0; c < net_.dim; ++c) tile_.x()[c * kStride + i] = tile_.lost[c * kStride + i] = 0;
      tile_.forget_stages(i, 0);
      return;
    }
    lane.row = next_row_++;
    ++active_;
    const Real* x = row_of(p_.x, lane.row, p_.dim);
    for (int c = 0; c < net_.dim; ++c) {
      tile_.x()[c * kStride + i] = x[c];
      tile_.lost[c * kStride + i] = 0;
    }
    tile_.forget_stages(i, 0);
    for (int c = 0; c < p_.context_dim; ++c) {
      stage_.input[(net_.context_row + c) * kStride + i] = row_of(p_.context, lane.row, p_.context_dim)[c];
    }
    for (int c = 0; net_.probed && c < p_.dim; ++c) {
      tile_.forward.tangent.noise[c * kStride + i] = row_of(p_.noise, lane.row, p_.dim)[c];
      new_probes_ = true;
    }
    tile_.linear_divergence[i] = linear_divergence(lane.row);
    lane.t = p_.t0;
    lane.last_error = 1e-4;
    tile_.slot[i] = 0;
    set_time(i, lane.t);
  }

  // The share of the linear term A x in the divergence of a row, which forward_stage leaves out.
  Real linear_divergence(int64_t row) const {
    if (p_.linear == nullptr || p_.divergence == Divergence::kNone) return 0;
    const Real* v = net_.probed ? row_of(p_.noise, row, p_.dim) : nullptr;
    Real sum = 0;
    for (int r = 0; r < p_.dim; ++r) {
      const Real* a = row_of(p_.linear, r, p_.dim);
      for (int c = 0; v != nullptr && c < p_.dim; ++c) sum += v[r] * a[c] * v[c];
      if (v == nullptr) sum += a[r];
    }
    return sum;
  }

  void set_time(int i, double t) const {
    if (p_.has_time_column()) stage_.input[p_.dim * kStride + i] = static_cast<Real>(t);
  }

  template <int Vectors>
  void evaluate() {
    if (new_probes_) start_probe<Real, Vectors>(net_, tile_.forward.tangent);
    new_probes_ = false;
    for_each_vector_in<Real, Vectors>(net_.dim, [&](int, int j, ptrdiff_t at) {
      store<Real>(stage_.input + at, load(tile_.x() + at) + tile_.increment(j, at));
    });
    V divergence[Vectors];
    forward_stage<Real, Vectors, Keep::kNothing>(net_, 0, stage_, tile_.forward, tile_.fresh, divergence);
    for (int j = 0; j < Vectors; ++j)
      tile_.keep_slopes(j, divergence[j] + load(tile_.linear_divergence + j * kLanes<Real>));
    for (int j = 0; j < Vectors; ++j) {
      bool completed = false;
      for (int i = j * kLanes<Real>; i < (j + 1) * kLanes<Real>; ++i) {
        if (tile_.lane[i].row >= 0) completed |= move_on(i);
      }
      if (completed) complete(j);
    }
  }

  // Sets a lane's next evaluation; returns whether it has come to the end of an attempt.
  bool move_on(int i) {
    Lane<Real>& lane = tile_.lane[i];
    ++lane.evaluations;
    if (lane.phase == Lane<Real>::kStart) {
      try_first_step(i);
      return false;
    }
    if (lane.phase == Lane<Real>::kTrial) {
      choose_first_step(i);
      begin_attempt(i);
      return false;
    }
    if (lane.phase == stages_ - 1) return lane.ended = true;
    set_stage(i, lane.phase + 1);
    return false;
  }

  void set_stage(int i, int s) {
    Lane<Real>& lane = tile_.lane[i];
    lane.phase = s;
    for (int j = 0; j < stages_; ++j) {
      tile_.weight[j * kStride + i] = j < s ? static_cast<Real>(lane.dt * p_.tableau.a[s][j]) : Real(0);
    }
    tile_.slot[i] = static_cast<Real>(s);
    set_time(i, lane.t + lane.dt * p_.tableau.c[s]);
  }

  void begin_attempt(int i) {
    Lane<Real>& lane = tile_.lane[i];
    const double left = control_.t1 - lane.t;
    if (__builtin_fabs(lane.dt) >= __builtin_fabs(left) * (1 - 1e-12)) lane.dt = left;  // no crumb left behind
    if (lane.attempts++ >= a_.max_steps) return fail(i, RowFailure::kMaxSteps);
    if (!(__builtin_fabs(lane.dt) > control_.least) && lane.dt != left) return fail(i, RowFailure::kUnderflow);
    set_stage(i, 1);
  }

  // Root mean square of a lane's numbers: value(c) over the tolerance at the start, for x and for the logdet.
  template <class Value>
  double size_at_start(int i, double logdet, Value&& value) const {
    double sum = logdet / a_.atol * (logdet / a_.atol);
    for (int c = 0; c < net_.dim; ++c) {
      const double scale = a_.atol + a_.rtol * __builtin_fabs(static_cast<double>(tile_.x()[c * kStride + i]));
      sum += value(c) / scale * (value(c) / scale);
    }
    return __builtin_sqrt(sum / control_.components);
  }
  double slope(int s, int c, int i) const { return static_cast<double>(tile_.slopes(s)[c * kStride + i]); }
  double divergence(int s, int i) const { return static_cast<double>(tile_.divergence[s * kStride + i]); }

  // The first step by the sizes of x, its derivative and its second derivative, see the same section.
  void try_first_step(int i) {
    Lane<Real>& lane = tile_.lane[i];
    const double position = size_at_start(i, 0, [&](int c) { return static_cast<double>(tile_.x()[c * kStride + i]); });
    const double speed = size_at_start(i, divergence(0, i), [&](int c) { return slope(0, c, i); });
    if (!__builtin_isfinite(position) || !__builtin_isfinite(speed)) return fail(i, RowFailure::kNotFinite);
    const double whole = __builtin_fabs(control_.t1 - control_.t0);
    const double guess = position < 1e-5 || speed < 1e-5 ? 1e-6 : 0.01 * position / speed;
    lane.dt = control_.direction * (guess < whole ? guess : whole);
    lane.phase = Lane<Real>::kTrial;
    tile_.weight[i] = static_cast<Real>(lane.dt);
    tile_.slot[i] = 1;
    set_time(i, lane.t + lane.dt);
  }
  void choose_first_step(int i) {
    Lane<Real>& lane = tile_.lane[i];
    const double guess = __builtin_fabs(lane.dt);
    const double speed = size_at_start(i, divergence(0, i), [&](int c) { return slope(0, c, i); });
    const double bend =
        size_at_start(i, divergence(1, i) - divergence(0, i), [&](int c) { return slope(1, c, i) - slope(0, c, i); }) /
        guess;
    const double most = bend > speed ? bend : speed;
    double step =
        most <= 1e-15 ? (guess * 1e-3 > 1e-6 ? guess * 1e-3 : 1e-6) : __builtin_pow(0.01 / most, 1.0 / a_.order);
    if (!(step < 100 * guess)) step = 100 * guess;
    if (!__builtin_isfinite(bend)) {
      step = guess;
      tile_.forget_stages(i, 1);
    }
    lane.dt = control_.direction * step;
  }

  // Accepts or rejects the attempts of the lanes of one vector that have come to their end.
  void complete(int j) {
    const int first = j * kLanes<Real>;
    V weight[kMaxStages] = {}, accepted{};
    for (int i = 0; i < kLanes<Real>; ++i) {
      if (!tile_.lane[first + i].ended) continue;
      for (int s = 0; s < stages_; ++s) weight[s][i] = static_cast<Real>(tile_.lane[first + i].dt * a_.error[s]);
    }
    V squares{};
    for (int c = 0; c < net_.dim; ++c) {
      const ptrdiff_t at = c * kStride + first;
      V error{};
      for (int s = 0; s < stages_; ++s) error += weight[s] * load(tile_.slopes(s) + at);
      const V before = load(tile_.x() + at), after = load(stage_.input + at);
      const V low = before < after ? before : after, high = before < after ? after : before;
      const V scale = static_cast<Real>(a_.atol) + static_cast<Real>(a_.rtol) * (-low > high ? -low : high);
      const V ratio = error / scale;
      squares += ratio * ratio;
    }
    bool moved = false;
    for (int i = 0; i < kLanes<Real>; ++i) {
      if (!tile_.lane[first + i].ended) continue;
      if (judge(first + i, static_cast<double>(squares[i]))) {
        accepted[i] = 1;
        moved = true;
      }
    }
    if (moved) move(first, accepted);
    for (int i = first; i < first + kLanes<Real>; ++i) {
      Lane<Real>& lane = tile_.lane[i];
      if (!lane.ended) continue;
      lane.ended = false;
      if (accepted[i - first] != 0 && lane.t == control_.t1) {
        finish(i);
      } else {
        begin_attempt(i);
      }
    }
  }

  // Moves the accepted lanes of a vector to the ends of their steps, whose last stage is the next one's first.
  void move(int first, const V& accepted) const {
    for (int c = 0; c < net_.dim; ++c) {
      const ptrdiff_t at = c * kStride + first;
      const V x = load(tile_.x() + at), moved = load(stage_.input + at);
      const V lost = (moved - x) - tile_.increment(first / kLanes<Real>, at);
      store<Real>(tile_.x() + at, accepted != 0 ? moved : x);
      store<Real>(tile_.lost + at, accepted != 0 ? lost : load(tile_.lost + at));
      const Real* last = tile_.slopes(stages_ - 1) + at;
      store<Real>(tile_.slopes(0) + at, accepted != 0 ? load(last) : load(tile_.slopes(0) + at));
    }
    Real *start = tile_.divergence + first, *last = start + (stages_ - 1) * kStride;
    store<Real>(start, accepted != 0 ? load(last) : load(start));
  }

  // Decides on an attempt by the sum of squares of x's errors over their tolerances, and sets the next step. Records
  // and outputs of an accepted one are written here, from the position at its start.
  bool judge(int i, double squares) {
    Lane<Real>& lane = tile_.lane[i];
    double change = 0, error = 0;
    for (int s = 0; s < stages_; ++s) {
      error += lane.dt * a_.error[s] * divergence(s, i);
      change += lane.dt * p_.tableau.b[s] * divergence(s, i);
    }
    const double before = __builtin_fabs(static_cast<double>(lane.logdet)),
                 after = __builtin_fabs(lane.logdet + change);
    const double ratio = error / (a_.atol + a_.rtol * (before > after ? before : after));
    const double size = __builtin_sqrt((squares + ratio * ratio) / control_.components);
    if (!(size <= 1)) {
      lane.rejected = true;
      lane.finite = __builtin_isfinite(size);
      lane.dt *= control_.after_failure(size);
      if (!lane.finite) tile_.forget_stages(i, 1);
      return false;
    }
    const int outputs = write_outputs(i);
    if (a_.last_step != nullptr) record(i, outputs);
    lane.output += outputs;
    const Real gain = static_cast<Real>(change - static_cast<double>(lane.logdet_lost)), sum = lane.logdet + gain;
    lane.logdet_lost = (sum - lane.logdet) - gain;
    lane.logdet = sum;
    lane.t = lane.dt == control_.t1 - lane.t ? control_.t1 : lane.t + lane.dt;
    double factor = control_.after_success(size, lane.last_error);
    if (lane.rejected && factor > 1) factor = 1;
    lane.dt *= factor;
    lane.rejected = false;
    lane.finite = true;
    lane.last_error = size > 1e-4 ? size : 1e-4;
    return true;
  }

  // Writes x and logdet at the times within the step that are asked for; returns how many.
  int write_outputs(int i) const {
    const Lane<Real>& lane = tile_.lane[i];
    int count = 0;
    for (; lane.output + count < a_.outputs; ++count) {
      const int output = lane.output + count;
      const double theta = (a_.output_times[output] - lane.t) / lane.dt;
      if (theta > 1) break;
      Real weight[kMaxStages];
      double logdet = lane.logdet;
      for (int s = 0; s < stages_; ++s) {
        const double share = lane.dt * dense_weight(a_, s, theta);
        weight[s] = static_cast<Real>(share);
        logdet += share * divergence(s, i);
      }
      const int64_t row = static_cast<int64_t>(output) * p_.batch + lane.row;
      Real* x = static_cast<Real*>(a_.x_outputs) + row * p_.dim;
      for (int c = 0; c < p_.dim; ++c) {
        x[c] = 0;
        for (int s = 0; s < stages_; ++s) x[c] += weight[s] * tile_.slopes(s)[c * kStride + i];
        x[c] += tile_.x()[c * kStride + i];
      }
      static_cast<Real*>(a_.logdet_outputs)[row] = static_cast<Real>(logdet);
    }
    return count;
  }

  void record(int i, int outputs) {
    Lane<Real>& lane = tile_.lane[i];
    char* memory = log_.append();
    if (memory == nullptr) return;  // the call fails in the end
    const StepRecord step{lane.t, lane.dt, lane.last_step, lane.output, lane.output + outputs};
    std::memset(memory + StepRecord::bytes(p_) - sizeof(double), 0, sizeof(double));  // what x leaves of it
    std::memcpy(memory, &step, sizeof step);
    Real* x = reinterpret_cast<Real*>(memory + sizeof step);
    for (int c = 0; c < p_.dim; ++c) x[c] = tile_.x()[c * kStride + i];
    lane.last_step = log_.count() - 1;
  }

  void finish(int i) {
    const Lane<Real>& lane = tile_.lane[i];
    Real* x = static_cast<Real*>(p_.x_end) + lane.row * p_.dim;
    for (int c = 0; c < p_.dim; ++c) x[c] = tile_.x()[c * kStride + i];
    static_cast<Real*>(p_.logdet)[lane.row] = lane.logdet;
    leave(i);
  }

  void fail(int i, RowFailure::Reason reason) {
    const Lane<Real>& lane = tile_.lane[i];
    if (failure_.row < 0 || lane.row < failure_.row) {
      failure_ = {lane.row, lane.finite ? reason : RowFailure::kNotFinite, lane.t, lane.dt};
    }
    leave(i);
  }

  void leave(int i) {
    const Lane<Real>& lane = tile_.lane[i];
    if (a_.evaluations != nullptr) a_.evaluations[lane.row] = lane.evaluations;
    if (a_.last_step != nullptr) a_.last_step[lane.row] = lane.last_step;
    --active_;
    refill(i);
  }

  // Brings the rows that are left together in as few vectors as hold them.
  void close_ranks() {
    const int lanes = vectors_ * kLanes<Real>;
    int to = 0;
    for (int from = 0; from < lanes; ++from) {
      if (tile_.lane[from].row < 0) continue;
      if (from != to) tile_.move_lane(from, to);
      ++to;
    }
    for (int i = to; i < lanes; ++i) refill(i);
    vectors_ = (active_ + kLanes<Real> - 1) / kLanes<Real>;
    new_probes_ = net_.probed;
  }
};

}  // namespace
}  // namespace jkoflow::JKOFLOW_ISA
