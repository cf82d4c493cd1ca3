// The forward kernel of adaptive steps: a tile's lanes carry one row each, at its own stage of its own step, and take
// up the next row of the thread block's share when it is done. An evaluation is always of the whole tile.
#pragma once

#include "../forward.cuh"
#include "control.cuh"

namespace jkoflow::cuda {

template <int H, Precision P, int NT, bool kTangents>
struct AdaptiveForward {
  using Layers = Forward<H, P, NT, kTangents>;
  using T = Tile<H, P, NT, kTangents>;

  const T tile;
  const Params& p;
  Dealer<RowLane> dealer;

  JKOFLOW_DEVICE explicit AdaptiveForward(const Params& params) : tile(params), p(params), dealer(params) {}

  // Ends: max_steps bounds the evaluations of every row.
  JKOFLOW_DEVICE void run() {
    tile.load_constant_inputs(p.batch);  // where there are no rows: of context, zeros
    if (kTangents && p.hutchinson) tile.load_noise(p.batch);
    float *x = tile.at(p.layout.x), *rest = tile.at(p.layout.x_rest);
    for (int i = tile.thread; i < T::kSamples * p.dim; i += T::kThreads) x[i] = rest[i] = 0.0f;
    if (tile.warp == 0) {
      if (tile.thread < T::kSamples) {
        RowLane& lane = lane_at(tile.thread);
        lane.row = lane.finished = -1;
        lane.moved = 0;
      }
      deal();
    }
    device::sync_block(Barrier::kRowSteps);
    place();
    while (board_of(tile).active > 0) {
      device::sync_block(Barrier::kStageInput);
      if (kTangents && p.hutchinson && board_of(tile).taken > 0) {
        tile.keep_noise_products(Layers::noise_slot(p), Layers::noise_slot(p) + 1);
      }
      // Behind the stages: room for the linear term's velocity.
      const float* top =
          kTangents ? Layers::layers_with_tangents(tile, p.stages) : Layers::layers_in_closed_form(tile, p.stages);
      tile.last_layer(top, tile.stage(p.stages),
                      [&](int s, int k, float velocity) { tile.stage(lane_at(s).slot)[s * p.dim + k] = velocity; });
      device::sync_block(Barrier::kRowSlopes);
      if (tile.warp == 0) {
        if (tile.thread < T::kSamples) decide();
        deal();
      }
      device::sync_block(Barrier::kRowSteps);
      place();
    }
  }

  JKOFLOW_DEVICE RowLane& lane_at(int s) const { return lane_of<RowLane>(tile, s); }

  JKOFLOW_DEVICE void deal() {
    dealer.deal(tile, [&](RowLane& lane, long long row) { RowControl<T>(tile, lane).take(row); });
  }

  JKOFLOW_DEVICE void decide() {
    RowLane& lane = lane_at(tile.thread);
    lane.finished = -1;
    lane.moved = lane.taken = 0;
    if (lane.row >= 0) {
      const bool integrated = p.exact || p.hutchinson;
      const float constant = p.stepping.row_divergence != nullptr ? p.stepping.row_divergence[lane.row] : 0.0f;
      lane.divergence[lane.slot] = integrated ? tile.sample_divergence(tile.thread) + constant : 0.0f;
      RowControl<T>(tile, lane).move_on();
    }
  }

  // Moves the rows as was decided, writes those that have arrived, loads new ones, and sets all inputs.
  JKOFLOW_DEVICE void place() const {
    float *x = tile.at(p.layout.x), *rest = tile.at(p.layout.x_rest), *next_rest = tile.at(p.layout.next_rest);
    for (int i = tile.thread; i < T::kSamples * p.dim; i += T::kThreads) {
      const int s = i / p.dim, k = i - s * p.dim;
      const RowLane& lane = lane_at(s);
      float& input = tile.input()[panel_index(s, k, p.layout.input_stride)];
      if (lane.moved) {  // to the last stage's input, and that stage is the next step's first
        x[i] = input;
        rest[i] = next_rest[i];
        tile.stage(0)[i] = tile.stage(p.stages - 1)[i];
      }
      if (lane.finished >= 0) p.x_end[lane.finished * p.dim + k] = x[i];
      if (lane.taken) {
        x[i] = p.x[lane.row * p.dim + k];
        rest[i] = 0.0f;
      }
      float increment = 0.0f;
      for (int j = 0; j < lane.slot; ++j) increment += lane.weight[j] * tile.stage(j)[i];
      input = x[i];
      next_rest[i] = rest[i];
      add_compensated(input, next_rest[i], increment);
      if (kTangents && p.hutchinson && lane.taken) {
        tile.shared[p.layout.noise + panel_index(s, k, p.layout.input_stride)] = p.noise[lane.row * p.dim + k];
      }
    }
    for (int i = tile.thread; i < T::kSamples * p.context_dim; i += T::kThreads) {
      const int s = i / p.context_dim, c = i - s * p.context_dim;
      const RowLane& lane = lane_at(s);
      if (lane.taken) {
        tile.input()[panel_index(s, p.dim + p.has_time + c, p.layout.input_stride)] =
            p.context[lane.row * p.context_dim + c];
      }
    }
    if (p.has_time && tile.thread < T::kSamples) {
      tile.input()[panel_index(tile.thread, p.dim, p.layout.input_stride)] = lane_at(tile.thread).time;
    }
  }
};

}  // namespace jkoflow::cuda
