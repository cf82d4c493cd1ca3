// What decides about the steps of one row, by the same formulas as the CPU kernels. One thread treats one row.
#pragma once

#include "lanes.cuh"

namespace jkoflow::cuda {

// Factors by Hairer, Norsett and Wanner, Solving Ordinary Differential Equations I, section II.4.
struct StepControl {
  static constexpr double kSafety = 0.9;

  JKOFLOW_DEVICE static double memory(const Stepping& s) { return 0.2 / s.order; }
  JKOFLOW_DEVICE static double growth(const Stepping& s, double error) {
    return device::power(error, 1.0 / s.order - 0.75 * memory(s));
  }
  JKOFLOW_DEVICE static double after_success(const Stepping& s, double error, double last_error) {
    const double factor = growth(s, error) / (device::power(last_error, memory(s)) * kSafety);
    return factor < 0.1 ? 10.0 : factor > 5.0 ? 0.2 : 1.0 / factor;
  }
  JKOFLOW_DEVICE static double after_failure(const Stepping& s, double error) {
    const double factor = growth(s, error) / kSafety;
    return factor < 5.0 ? 1.0 / factor : 0.2;  // and for NaN
  }
};

// The row in one lane of a tile.
template <class T>
struct RowControl {
  const T& tile;
  const Params& p;
  const Stepping& s;
  RowLane& lane;
  const int place;  // in the tile
  float* const x;
  const int stages;

  JKOFLOW_DEVICE RowControl(const T& tile, RowLane& lane)
      : tile(tile),
        p(tile.p),
        s(tile.p.stepping),
        lane(lane),
        place(tile.thread),
        x(tile.at(tile.p.layout.x) + tile.thread * tile.p.dim),
        stages(tile.p.stages) {}

  // A new row, or none.
  JKOFLOW_DEVICE void take(long long row) {
    lane.row = row;
    lane.taken = row >= 0;
    lane.t = s.t0;
    lane.time = static_cast<float>(s.t0);
    lane.dt = 0.0;
    lane.last_error = 1e-4;
    lane.attempts = lane.steps = lane.evaluations = 0;
    lane.phase = RowLane::kStart;
    lane.output = lane.slot = lane.rejected = 0;
    lane.finite = 1;
    lane.logdet = lane.logdet_rest = 0.0f;
  }

  // After an evaluation, whose divergence is that of lane.slot: sets the next one, or leaves the lane free.
  JKOFLOW_DEVICE void move_on() {
    ++lane.evaluations;
    if (lane.phase == RowLane::kStart) {
      try_first_step();
    } else if (lane.phase == RowLane::kTrial) {
      choose_first_step();
      begin_attempt();
    } else if (lane.phase < stages - 1) {
      set_stage(lane.phase + 1);
    } else if (judge() && lane.t == s.t1) {
      finish();
    } else {
      begin_attempt();
    }
  }

 private:
  JKOFLOW_DEVICE float slope(int stage, int c) const { return tile.stage(stage)[place * p.dim + c]; }
  JKOFLOW_DEVICE float moved(int c) const { return tile.input()[panel_index(place, c, p.layout.input_stride)]; }

  JKOFLOW_DEVICE void set_stage(int stage) {
    lane.phase = lane.slot = stage;
    for (int j = 0; j < stage; ++j) lane.weight[j] = static_cast<float>(lane.dt * s.a[stage][j]);
    lane.time = static_cast<float>(lane.t + lane.dt * p.c[stage]);
  }

  JKOFLOW_DEVICE void begin_attempt() {
    const double left = s.t1 - lane.t;
    if (device::magnitude(lane.dt) >= device::magnitude(left) * (1 - 1e-12)) lane.dt = left;  // no crumb left behind
    const bool counted = lane.attempts++ < s.max_steps;
    if (counted && (device::magnitude(lane.dt) > s.least_step || lane.dt == left)) {
      set_stage(1);
    } else {
      fail(counted ? kUnderflow : kMaxSteps);
    }
  }

  // Root mean square of the row's numbers: value(c) over the tolerance at the start, for x and for the logdet.
  template <class Value>
  JKOFLOW_DEVICE double size_at_start(double logdet, Value&& value) const {
    double sum = logdet / s.atol * (logdet / s.atol);
    for (int c = 0; c < p.dim; ++c) {
      const double ratio = value(c) / (s.atol + s.rtol * device::magnitude(static_cast<double>(x[c])));
      sum += ratio * ratio;
    }
    return device::square_root(sum / s.components);
  }
  JKOFLOW_DEVICE double speed() const {
    return size_at_start(lane.divergence[0], [&](int c) { return static_cast<double>(slope(0, c)); });
  }

  // The first step by the sizes of x, its derivative and its second derivative, see the same section.
  JKOFLOW_DEVICE void try_first_step() {
    const double position = size_at_start(0.0, [&](int c) { return static_cast<double>(x[c]); }), speed = this->speed();
    if (!device::is_finite(position) || !device::is_finite(speed)) {
      fail(kNotFinite);
    } else {
      const double whole = device::magnitude(s.t1 - s.t0);
      const double guess = position < 1e-5 || speed < 1e-5 ? 1e-6 : 0.01 * position / speed;
      lane.dt = s.direction * (guess < whole ? guess : whole);
      lane.phase = RowLane::kTrial;
      lane.slot = 1;
      lane.weight[0] = static_cast<float>(lane.dt);
      lane.time = static_cast<float>(lane.t + lane.dt);
    }
  }
  JKOFLOW_DEVICE void choose_first_step() {
    const double guess = device::magnitude(lane.dt), speed = this->speed();
    const double change = static_cast<double>(lane.divergence[1]) - static_cast<double>(lane.divergence[0]);
    const double bend =
        size_at_start(change,
                      [&](int c) { return static_cast<double>(slope(1, c)) - static_cast<double>(slope(0, c)); }) /
        guess;
    const double most = bend > speed ? bend : speed;
    double step =
        most <= 1e-15 ? (guess * 1e-3 > 1e-6 ? guess * 1e-3 : 1e-6) : device::power(0.01 / most, 1.0 / s.order);
    if (!(step < 100 * guess)) step = 100 * guess;
    if (!device::is_finite(bend)) step = guess;
    lane.dt = s.direction * step;
  }

  // Accepts or rejects an attempt and sets the next step. Records and outputs of an accepted one are written here, from
  // the position at its start.
  JKOFLOW_DEVICE bool judge() {
    double change = 0.0, error = 0.0;
    for (int j = 0; j < stages; ++j) {
      const double divergence = lane.divergence[j];
      error += lane.dt * s.error[j] * divergence;
      if (j < stages - 1) change += lane.dt * s.a[stages - 1][j] * divergence;
      lane.weight[j] = static_cast<float>(lane.dt * s.error[j]);
    }
    float squares = 0.0f;
    for (int c = 0; c < p.dim; ++c) {
      float wrong = 0.0f;
      for (int j = 0; j < stages; ++j) wrong += lane.weight[j] * slope(j, c);
      const float before = device::magnitude(x[c]), after = device::magnitude(moved(c));
      const float ratio =
          wrong / (static_cast<float>(s.atol) + static_cast<float>(s.rtol) * (before > after ? before : after));
      squares += ratio * ratio;
    }
    const double before = device::magnitude(static_cast<double>(lane.logdet)),
                 after = device::magnitude(lane.logdet + change);
    const double ratio = error / (s.atol + s.rtol * (before > after ? before : after));
    const double size = device::square_root((squares + ratio * ratio) / s.components);
    const bool accepted = size <= 1.0;
    if (accepted) {
      accept(size, change);
    } else {
      lane.rejected = 1;
      lane.finite = device::is_finite(size);
      lane.dt *= StepControl::after_failure(s, size);
    }
    return accepted;
  }

  JKOFLOW_DEVICE void accept(double size, double change) {
    const int outputs = write_outputs();
    if (s.records != nullptr) record(outputs);
    ++lane.steps;
    lane.output += outputs;
    add_compensated(lane.logdet, lane.logdet_rest, static_cast<float>(change));
    lane.divergence[0] = lane.divergence[stages - 1];  // as the slopes, see AdaptiveForward::place
    lane.t = lane.dt == s.t1 - lane.t ? s.t1 : lane.t + lane.dt;
    double factor = StepControl::after_success(s, size, lane.last_error);
    if (lane.rejected && factor > 1.0) factor = 1.0;
    lane.dt *= factor;
    lane.rejected = 0;
    lane.finite = lane.moved = 1;
    lane.last_error = size > 1e-4 ? size : 1e-4;
  }

  // Writes x and logdet at the times within the step that are asked for; returns how many.
  JKOFLOW_DEVICE int write_outputs() {
    int count = 0;
    for (bool inside = true; inside && lane.output + count < s.outputs;) {
      const double theta = (s.output_times[lane.output + count] - lane.t) / lane.dt;
      inside = theta <= 1.0;
      if (inside) write_output(lane.output + count++, theta);
    }
    return count;
  }
  JKOFLOW_DEVICE void write_output(int output, double theta) {
    double logdet = lane.logdet;
    for (int j = 0; j < stages; ++j) {
      const double share = lane.dt * dense_weight(s, j, theta);
      lane.weight[j] = static_cast<float>(share);
      logdet += share * static_cast<double>(lane.divergence[j]);
    }
    const long long row = output * p.batch + lane.row;
    for (int c = 0; c < p.dim; ++c) {
      float sum = 0.0f;
      for (int j = 0; j < stages; ++j) sum += lane.weight[j] * slope(j, c);
      s.x_outputs[row * p.dim + c] = sum + x[c];
    }
    s.logdet_outputs[row] = static_cast<float>(logdet);
  }

  // Where there is no room left the steps are only counted.
  JKOFLOW_DEVICE void record(int outputs) {
    const long long begin = s.record_begin[lane.row], place = begin + lane.steps;
    if (place < s.record_begin[lane.row + 1]) {
      RecordHead* head = record_at(s, place);
      *head = {lane.t, lane.dt, lane.steps > 0 ? place - 1 : -1LL, lane.output, lane.output + outputs};
      for (int c = 0; c < p.dim; ++c) record_position(head)[c] = x[c];
      if (p.dim % 2 != 0) record_position(head)[p.dim] = 0.0f;
    }
  }

  JKOFLOW_DEVICE void finish() {
    lane.finished = lane.row;
    p.logdet[lane.row] = lane.logdet;
    leave(kArrived);
  }
  JKOFLOW_DEVICE void fail(int reason) { leave(lane.finite ? reason : kNotFinite); }
  JKOFLOW_DEVICE void leave(int reason) {
    s.evaluations[lane.row] = lane.evaluations;
    if (s.records != nullptr) s.last_step[lane.row] = lane.steps > 0 ? s.record_begin[lane.row] + lane.steps - 1 : -1LL;
    double* outcome = s.outcome + 4 * lane.row;
    outcome[0] = reason;
    outcome[1] = lane.t;
    outcome[2] = lane.dt;
    outcome[3] = static_cast<double>(lane.steps);
    lane.row = -1;
  }
};

}  // namespace jkoflow::cuda
