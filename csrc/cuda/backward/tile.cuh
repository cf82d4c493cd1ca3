// The adjoint of a tile: its end's cotangents, given or those of the loss, back through all steps and stages. The
// stages of a step are recomputed from its position; the loss carries its tile forward first.
#pragma once

#include "closed_form.cuh"
#include "tangents.cuh"

namespace jkoflow::cuda {

template <int H, Precision P, int NT, bool kTangents>
struct TileAdjoint : StageAdjoint<H, P, NT, kTangents> {
  using Stage = StageAdjoint<H, P, NT, kTangents>;
  using Stage::adjoint_of_stage, Stage::cotangent, Stage::put_values, Stage::sample_terms;
  using Stage::Stage, Stage::tile, Stage::p;
  using typename Stage::T;

  // Panels of the sweep: h_1 and h_3, h_2.
  static constexpr int kOdd = 0, kEven = 2;

  JKOFLOW_DEVICE void adjoint_of_tile(int index) {
    const auto first = [&] { return first_sample(p, index); };  // not held in registers either
    float *x = tile.at(p.layout.x), *x_bar = tile.at(p.layout.x_bar), *context_bar = tile.at(p.layout.context_bar);
    const long long step_rows = p.batch * p.dim;
    const bool loss = p.terms != nullptr;
    tile.load_constant_inputs(first());
    if (kTangents && p.hutchinson) tile.load_noise(first());
    clear_cotangent_padding();
    for (int i = tile.thread; i < T::kSamples * p.context_dim; i += T::kThreads) context_bar[i] = 0.0f;
    tile.clear_logdet();
    if (loss) {
      tile.load_rows(p.x, first(), x, false);
      for (int i = tile.thread; i < T::kSamples * p.dim; i += T::kThreads) tile.at(p.layout.x_rest)[i] = 0.0f;
      tile.set_input(x, 0, 0);
      for (int i = tile.thread; i < T::kSamples * p.dim; i += T::kThreads) record(0, 0)[i] = x[i];
      for (int step = 0; step < p.num_steps; ++step) sweep(step, p.stages, step);
      device::sync_block(Barrier::kLossTerms);
      start_from_loss(first());
    } else {
      tile.load_rows(p.x_end_bar, first(), x_bar, false);
      if (p.path_bar != nullptr) tile.load_rows(p.path_bar + p.num_steps * step_rows, first(), x_bar, true);
      if (tile.thread < T::kSamples) {
        const bool given = p.logdet_bar != nullptr && tile.thread < tile.samples(first());
        tile.shared[p.layout.logdet_bar + tile.thread] = given ? p.logdet_bar[first() + tile.thread] : 0.0f;
      }
    }
    for (int step = p.num_steps - 1; step >= 0; --step) {
      if (!loss) {
        tile.load_rows(p.path + step * step_rows, first(), x, false);
        for (int i = tile.thread; i < T::kSamples * p.dim; i += T::kThreads) record(0, 0)[i] = x[i];
        tile.set_input(x, step, 0);
        sweep(step, p.stages - 1, 0);
      }
      for (int stage = p.stages - 1; stage >= 0; --stage) {
        device::sync_block(Barrier::kInputAdjoint);
        tile.renew();
        set_stage(step, stage, loss ? step : 0);
        device::sync_block(Barrier::kStageAdjoint);
        if (kTangents && p.hutchinson && step + 1 == p.num_steps && stage + 1 == p.stages) {
          const AdjointSlots slots(p.layers, p.hutchinson);
          tile.keep_noise_products(slots.noise(), slots.noise() + 1);
        }
        adjoint_of_stage(stage);
        if (loss) tile.add_divergence(p.b[stage]);
      }
      device::sync_block(Barrier::kStepAdjoint);
      for (int i = tile.thread; i < T::kSamples * p.dim; i += T::kThreads) {
        float sum = p.evaluate ? 0.0f : x_bar[i];
        for (int s = 0; s < p.stages; ++s) sum += tile.stage(s)[i];
        x_bar[i] = sum;
      }
      if (p.path_bar != nullptr) tile.load_rows(p.path_bar + step * step_rows, first(), x_bar, true);
    }
    if (loss) {
      if (tile.thread < tile.samples(first())) sample_terms()[1] -= tile.logdet();
      // x holds the penalty's own gradient.
      for (int i = tile.thread; i < T::kSamples * p.dim; i += T::kThreads) x_bar[i] += x[i];
    }
    if (p.x_grad != nullptr) tile.store_rows(x_bar, first(), p.dim, p.x_grad);
    if (p.times_grad != nullptr) tile.store_rows(tile.at(p.layout.time_bar), first(), 1, p.times_grad);
    if (p.context_grad != nullptr) tile.store_rows(context_bar, first(), p.context_dim, p.context_grad);
  }

  // Columns of the cotangent panel beyond dim are factors of zero weights: they must be finite.
  JKOFLOW_DEVICE void clear_cotangent_padding() const {
    const int count = round_up(p.dim, 8) - p.dim;
    for (int i = tile.thread; i < T::kSamples * count; i += T::kThreads) {
      const int s = i / count, k = p.dim + i - s * count;
      cotangent()[panel_index(s, k, p.layout.cotangent_stride)] = 0.0f;
    }
  }

  // The objective's terms and cotangents at the tile's end. A thread treats its sample.
  JKOFLOW_DEVICE void start_from_loss(long long first) {
    if (tile.thread >= T::kSamples) return;
    const bool given = tile.thread < tile.samples(first);
    float *y = tile.at(p.layout.x) + tile.thread * p.dim, *x_bar = tile.at(p.layout.x_bar) + tile.thread * p.dim;
    const float* start = record(0, 0) + tile.thread * p.dim;
    double norm = 0.0, movement = 0.0;
    // From a feature of its own on, or all threads would read the same bank where dim is a multiple of 32.
    int k = tile.thread % p.dim;
    for (int i = 0; i < p.dim; ++i, k = k + 1 < p.dim ? k + 1 : 0) {
      const float end = y[k], moved = end - start[k];
      norm += static_cast<double>(end) * end;
      movement += static_cast<double>(moved) * moved;
      x_bar[k] = given ? p.mean * (end + p.inverse_step_size * moved) : 0.0f;
      y[k] = -p.inverse_step_size * p.mean * moved;
    }
    if (given) {
      sample_terms()[0] += norm;
      sample_terms()[2] += movement;
    }
    tile.shared[p.layout.logdet_bar + tile.thread] = given ? -p.mean : 0.0f;
  }

  // ---- Stages

  // Inputs of a stage: the loss keeps those of all steps.
  JKOFLOW_DEVICE float* record(int kept_step, int stage) const {
    return tile.scratch + p.layout.records +
           (static_cast<long long>(kept_step) * p.stages + stage) * (T::kSamples * p.dim);
  }

  // The velocities of the first `count` stages of a step and the inputs that follow from them.
  JKOFLOW_DEVICE void sweep(int step, int count, int kept_step) {
    for (int stage = 0; stage < count; ++stage) {
      device::sync_block(Barrier::kStageInput);
      const float* top = layer_values(stage);
      const bool last_stage = stage + 1 == p.stages;
      float* next =
          last_stage ? (step + 1 < p.num_steps ? record(kept_step + 1, 0) : nullptr) : record(kept_step, stage + 1);
      tile.advance(top, step, stage, [&](int i, float v) {
        if (next != nullptr) next[i] = v;
      });
    }
  }

  // The top panel, with the values alone. Ends with a barrier.
  JKOFLOW_DEVICE const float* layer_values(int stage) const {
    float z[NT][4];
    tile.first_layer(z, tile.stage(stage));
    put_values(z, tile.panel(kOdd), p.layers > 1);
    T::sync_factors(Barrier::kFirstLayer);
    int top = kOdd;
    if (p.layers > 1) {
      tile.hidden_layer(1, tile.panel(kOdd), z);
      put_values(z, tile.panel(kEven), false);
      device::sync_block(Barrier::kSecondLayer);
      top = kEven;
    }
    if (kTangents && p.layers > 2) {
      tile.hidden_layer(2, tile.panel(kEven), z);
      put_values(z, tile.panel(kOdd), false);
      device::sync_block(Barrier::kTopLayer);
      top = kOdd;
    }
    return tile.panel(top);
  }

  // The stage's input again, and the cotangent of its velocity: dt b_s x_bar + sum_j dt a_js (input_bar of stage j).
  JKOFLOW_DEVICE void set_stage(int step, int stage, int kept_step) {
    const float *x_bar = tile.at(p.layout.x_bar), *input = record(kept_step, stage);
    for (int i = tile.thread; i < T::kSamples * p.dim; i += T::kThreads) {
      const int s = i / p.dim, k = i - s * p.dim;
      float v = p.b[stage] * x_bar[i];
      for (int j = stage + 1; j < p.stages; ++j) v += p.a[j][stage] * tile.stage(j)[i];
      cotangent()[panel_index(s, k, p.layout.cotangent_stride)] = v;
      tile.input()[panel_index(s, k, p.layout.input_stride)] = input[i];
    }
    tile.set_time(step, stage);
    this->divergence_weight = p.b[stage];
  }
};

}  // namespace jkoflow::cuda
