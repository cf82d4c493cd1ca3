// The adjoint of adaptive steps: each lane of a tile goes back through the recorded steps of one row, and takes up the
// next row of the thread block's share at its first step. A lane without a row stands still at zero: it adds nothing.
#pragma once

#include "../backward.cuh"
#include "lanes.cuh"

namespace jkoflow::cuda {

template <int H, Precision P, int NT, bool kTangents>
struct AdaptiveAdjoint : TileAdjoint<H, P, NT, kTangents> {
  using Base = TileAdjoint<H, P, NT, kTangents>;
  using Base::adjoint_of_stage, Base::clear_cotangent_padding, Base::cotangent, Base::layer_values, Base::record;
  using Base::tile, Base::p;
  using typename Base::T;

  const Stepping& s;
  Dealer<ReturnLane> dealer;

  JKOFLOW_DEVICE AdaptiveAdjoint(const Params& params, KeptSums<H, P>& kept)
      : Base(params, kept), s(params.stepping), dealer(params) {}

  // Ends: a row's places among the records descend.
  JKOFLOW_DEVICE void run() {
    tile.load_constant_inputs(p.batch);  // where there are no rows: of context, zeros
    if (kTangents && p.hutchinson) tile.load_noise(p.batch);
    clear_cotangent_padding();
    this->divergence_weight = 1.0f;
    if (tile.warp == 0) {
      if (tile.thread < T::kSamples) lane_at(tile.thread).row = lane_at(tile.thread).finished = -1;
      deal();
    }
    device::sync_block(Barrier::kRowSteps);
    place();
    while (board_of(tile).active > 0) {
      sweep_rows();
      for (int stage = p.stages - 1; stage >= 0; --stage) {
        device::sync_block(Barrier::kInputAdjoint);
        tile.renew();
        set_stage_of_rows(stage);
        device::sync_block(Barrier::kStageAdjoint);
        if (kTangents && p.hutchinson && stage + 1 == p.stages && board_of(tile).taken > 0) {
          const AdjointSlots slots(p.layers, p.hutchinson);
          tile.keep_noise_products(slots.noise(), slots.noise() + 1);
        }
        adjoint_of_stage(stage);
      }
      device::sync_block(Barrier::kStepAdjoint);
      add_stages();
      if (tile.warp == 0) {
        if (tile.thread < T::kSamples) turn_back(lane_at(tile.thread));
        deal();
      }
      device::sync_block(Barrier::kRowSteps);
      place();
    }
  }

  // ---- Lanes, a thread for each

  JKOFLOW_DEVICE ReturnLane& lane_at(int r) const { return lane_of<ReturnLane>(tile, r); }

  JKOFLOW_DEVICE void deal() {
    dealer.deal(tile, [&](ReturnLane& lane, long long row) {
      lane.row = row;
      lane.taken = row >= 0;
      lane.step = row >= 0 ? s.last_step[row] : -1;
      lane.logdet_bar = row >= 0 && p.logdet_bar != nullptr ? p.logdet_bar[row] : 0.0f;
      load_step(lane, s.record_count);
    });
  }

  // To the step before, or to the row's start.
  JKOFLOW_DEVICE void turn_back(ReturnLane& lane) {
    lane.finished = -1;
    lane.taken = 0;
    if (lane.row >= 0) {
      const long long step = lane.step;
      lane.step = lane.previous;
      lane.logdet_bar += lane.pending_logdet_bar;
      load_step(lane, step);
      if (lane.step < 0) {
        lane.finished = lane.row;
        lane.row = -1;
      }
    }
  }

  // Numbers of the lane's step, whose place must be below `limit`: whatever the records hold, their chain ends and
  // leads nowhere else.
  JKOFLOW_DEVICE void load_step(ReturnLane& lane, long long limit) {
    if (lane.step >= limit) lane.step = -1;
    lane.t = lane.dt = 0.0;
    lane.previous = -1;
    lane.first_output = lane.end_output = 0;
    lane.pending_logdet_bar = 0.0f;
    for (int j = 0; j < p.stages; ++j) lane.divergence_extra[j] = 0.0f;
    if (lane.row >= 0 && lane.step >= 0) {
      const RecordHead& head = *record_at(s, lane.step);
      lane.t = head.t;
      lane.dt = head.dt;
      lane.previous = head.previous;
      lane.first_output = head.first_output > 0 ? head.first_output : 0;
      lane.end_output = head.end_output < s.outputs ? head.end_output : s.outputs;
      for (int output = lane.first_output; s.logdet_outputs != nullptr && output < lane.end_output; ++output) {
        const float bar = s.logdet_outputs[output * p.batch + lane.row];
        const double theta = (s.output_times[output] - lane.t) / lane.dt;
        for (int j = 0; j < p.stages; ++j) {
          lane.divergence_extra[j] += static_cast<float>(lane.dt * dense_weight(s, j, theta)) * bar;
        }
        lane.pending_logdet_bar += bar;
      }
    }
  }

  // ---- All samples of the tile

  // Writes the gradients of rows that have come to their start, loads new ones and the steps at hand.
  JKOFLOW_DEVICE void place() const {
    float *x = tile.at(p.layout.x), *x_bar = tile.at(p.layout.x_bar);
    for (int i = tile.thread; i < T::kSamples * p.dim; i += T::kThreads) {
      const int r = i / p.dim, k = i - r * p.dim;
      const ReturnLane& lane = lane_at(r);
      if (lane.finished >= 0 && p.x_grad != nullptr) p.x_grad[lane.finished * p.dim + k] = x_bar[i];
      if (lane.taken) x_bar[i] = p.x_end_bar != nullptr ? p.x_end_bar[lane.row * p.dim + k] : 0.0f;
      if (lane.row < 0) x_bar[i] = 0.0f;
      const float v = lane.row >= 0 && lane.step >= 0 ? record_position(record_at(s, lane.step))[k] : 0.0f;
      x[i] = record(0, 0)[i] = v;
      tile.input()[panel_index(r, k, p.layout.input_stride)] = v;
      if (s.outputs > 0) place_outputs(lane, i, k);
      if (kTangents && p.hutchinson && (lane.taken || lane.row < 0)) {
        tile.shared[p.layout.noise + panel_index(r, k, p.layout.input_stride)] =
            lane.taken ? p.noise[lane.row * p.dim + k] : 0.0f;
      }
    }
    float* context_bar = tile.at(p.layout.context_bar);
    for (int i = tile.thread; i < T::kSamples * p.context_dim; i += T::kThreads) {
      const int r = i / p.context_dim, c = i - r * p.context_dim;
      const ReturnLane& lane = lane_at(r);
      if (lane.finished >= 0 && p.context_grad != nullptr) {
        p.context_grad[lane.finished * p.context_dim + c] = context_bar[i];
      }
      if (lane.taken || lane.row < 0) {
        context_bar[i] = 0.0f;
        tile.input()[panel_index(r, p.dim + p.has_time + c, p.layout.input_stride)] =
            lane.taken ? p.context[lane.row * p.context_dim + c] : 0.0f;
      }
    }
    set_time_of_rows(0);
  }

  // The cotangents that the outputs within a step give to its start and to its stages' velocities.
  JKOFLOW_DEVICE void place_outputs(const ReturnLane& lane, int i, int k) const {
    const int stride = T::kSamples * p.dim;
    float *x_extra = tile.at(p.layout.x_extra), *velocity_extra = tile.at(p.layout.velocity_extra);
    x_extra[i] = 0.0f;
    for (int j = 0; j < p.stages; ++j) velocity_extra[j * stride + i] = 0.0f;
    for (int output = lane.first_output; s.x_outputs != nullptr && output < lane.end_output; ++output) {
      const float bar = s.x_outputs[(output * p.batch + lane.row) * p.dim + k];
      const double theta = (s.output_times[output] - lane.t) / lane.dt;
      x_extra[i] += bar;
      for (int j = 0; j < p.stages; ++j) {
        velocity_extra[j * stride + i] += static_cast<float>(lane.dt * dense_weight(s, j, theta)) * bar;
      }
    }
  }

  JKOFLOW_DEVICE void set_time_of_rows(int stage) const {
    if (p.has_time && tile.thread < T::kSamples) {
      const ReturnLane& lane = lane_at(tile.thread);
      tile.input()[panel_index(tile.thread, p.dim, p.layout.input_stride)] =
          static_cast<float>(lane.t + p.c[stage] * lane.dt);
    }
  }

  // The inputs of all stages, from the step's start.
  JKOFLOW_DEVICE void sweep_rows() {
    const float* x = tile.at(p.layout.x);
    for (int stage = 0; stage + 1 < p.stages; ++stage) {
      device::sync_block(Barrier::kStageInput);
      const float* top = layer_values(stage);
      tile.last_layer(top, tile.stage(stage), [&](int r, int k, float velocity) {
        const int i = r * p.dim + k;
        tile.stage(stage)[i] = velocity;
        float sum = 0.0f;
        for (int j = 0; j <= stage; ++j) sum += p.a[stage + 1][j] * tile.stage(j)[i];
        const float next = x[i] + static_cast<float>(lane_at(r).dt) * sum;
        tile.input()[panel_index(r, k, p.layout.input_stride)] = next;
        record(0, stage + 1)[i] = next;
      });
      set_time_of_rows(stage + 1);
    }
  }

  // The stage's input again, and the cotangents of its velocity and its divergence.
  JKOFLOW_DEVICE void set_stage_of_rows(int stage) const {
    const float *x_bar = tile.at(p.layout.x_bar), *input = record(0, stage);
    const float* extra = tile.at(p.layout.velocity_extra) + stage * T::kSamples * p.dim;
    for (int i = tile.thread; i < T::kSamples * p.dim; i += T::kThreads) {
      const int r = i / p.dim, k = i - r * p.dim;
      float v = p.b[stage] * x_bar[i];
      for (int j = stage + 1; j < p.stages; ++j) v += p.a[j][stage] * tile.stage(j)[i];
      v *= static_cast<float>(lane_at(r).dt);
      cotangent()[panel_index(r, k, p.layout.cotangent_stride)] = s.outputs > 0 ? v + extra[i] : v;
      tile.input()[panel_index(r, k, p.layout.input_stride)] = input[i];
    }
    set_time_of_rows(stage);
    if (tile.thread < T::kSamples) {
      const ReturnLane& lane = lane_at(tile.thread);
      tile.shared[p.layout.logdet_bar + tile.thread] =
          p.b[stage] * static_cast<float>(lane.dt) * lane.logdet_bar + lane.divergence_extra[stage];
    }
  }

  JKOFLOW_DEVICE void add_stages() const {
    float *x_bar = tile.at(p.layout.x_bar), *x_extra = tile.at(p.layout.x_extra);
    for (int i = tile.thread; i < T::kSamples * p.dim; i += T::kThreads) {
      float sum = s.outputs > 0 ? x_bar[i] + x_extra[i] : x_bar[i];
      for (int j = 0; j < p.stages; ++j) sum += tile.stage(j)[i];
      x_bar[i] = sum;
    }
  }
};

// A thread block's share.
template <int H, Precision P, int NT, bool kTangents>
JKOFLOW_DEVICE void run_adaptive_adjoint(const Params& p) {
  KeptSums<H, P> kept;
  AdaptiveAdjoint<H, P, NT, kTangents> adjoint(p, kept);
  adjoint.clear_sums();
  adjoint.run();
  adjoint.tile.renew();
  if (p.want_parameters) adjoint.store_sums();
}

}  // namespace jkoflow::cuda
