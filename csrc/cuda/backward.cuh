// The adjoint kernel: from the cotangents at the end of the integration, or from the JKO objective itself, back to
// those of x, context and parameters. The stages of a step are recomputed from its position; the loss carries its tile
// forward first. Gradients of parameters are summed over all tiles of a block and left as its partial gradient.
#pragma once

#include "block.cuh"

namespace jkoflow::cuda {

// What a thread keeps of the gradients from tile to tile.
template <int H, Precision P>
struct KeptSums {
  HiddenSums<H, P> hidden[2];  // W2, then M or W3
  float units[2][2] = {};      // biases of the second (with one layer: of c) and the third, this lane's two units
};

template <int H, Precision P, int NT, bool kTangents>
struct Backward {
  using B = Block<H, P, NT>;
  static constexpr Precision kNarrow = B::kNarrow;
  static constexpr int kPanels = kTangents ? 5 : 4;

  // Panels. In closed form h_1 (later z_1's cotangent), s_1, and the cotangents of z_2 and q.
  static constexpr int kFirst = 0, kSlopes = 1, kTop = 2, kCoupled = 3;
  // With tangents h_1, h_2, u_1, u_2 and a cotangent of a tangent; the last three then serve for cotangents of z.
  static constexpr int kSecond = 1, kTangent1 = 2, kTangent2 = 3, kTangentBar = 4;

  B b;
  const Params& p;
  KeptSums<H, P>& kept;
  float logdet = 0.0f;  // of sample `thread`

  JKOFLOW_DEVICE Backward(const Params& params, KeptSums<H, P>& kept) : b(params), p(params), kept(kept) {}

  // The block's partial gradient.
  JKOFLOW_DEVICE float* partial() const {
    return p.partial + static_cast<long long>(device::block()) * p.gradient.count;
  }

  // ---- Tiles

  JKOFLOW_DEVICE void adjoint_of_tile(int tile) {
    const auto first = [&] { return first_sample(p, tile); };  // not held in registers either
    float *x = b.at(p.layout.x), *x_bar = b.at(p.layout.x_bar), *context_bar = b.at(p.layout.context_bar);
    const long long step_rows = p.batch * p.dim;
    const bool loss = p.terms != nullptr;
    b.load_constant_inputs(first());
    if (kTangents && p.hutchinson) b.load_noise(first());
    clear_cotangent_padding();
    for (int i = b.thread; i < B::kTile * p.context_dim; i += B::kThreads) context_bar[i] = 0.0f;
    logdet = 0.0f;
    if (loss) {
      b.load_rows(p.x, first(), x, false);
      b.set_input(x, 0, 0);
      for (int i = b.thread; i < B::kTile * p.dim; i += B::kThreads) record(0, 0)[i] = x[i];
      for (int step = 0; step < p.num_steps; ++step) sweep(step, p.stages, step);
      device::sync_block(Barrier::kLossTerms);
      start_from_loss(first());
    } else {
      b.load_rows(p.x_end_bar, first(), x_bar, false);
      if (p.path_bar != nullptr) b.load_rows(p.path_bar + p.num_steps * step_rows, first(), x_bar, true);
      if (b.thread < B::kTile) {
        const bool given = p.logdet_bar != nullptr && b.thread < b.samples(first());
        b.shared[p.layout.logdet_bar + b.thread] = given ? p.logdet_bar[first() + b.thread] : 0.0f;
      }
    }
    for (int step = p.num_steps - 1; step >= 0; --step) {
      if (!loss) {
        b.load_rows(p.path + step * step_rows, first(), x, false);
        for (int i = b.thread; i < B::kTile * p.dim; i += B::kThreads) record(0, 0)[i] = x[i];
        b.set_input(x, step, 0);
        sweep(step, p.stages - 1, 0);
      }
      for (int stage = p.stages - 1; stage >= 0; --stage) {
        device::sync_block(Barrier::kInputAdjoint);
        b.renew();
        set_stage(step, stage, loss ? step : 0);
        device::sync_block(Barrier::kStageAdjoint);
        if (kTangents && p.hutchinson && step + 1 == p.num_steps && stage + 1 == p.stages) {
          const AdjointSlots slots(p.layers, p.hutchinson);
          b.keep_noise_products(slots.noise(), slots.noise() + 1);
        }
        if constexpr (kTangents) {
          adjoint_with_tangents(stage);
        } else {
          adjoint_in_closed_form(stage);
        }
        if (loss && b.thread < B::kTile && (p.exact || p.hutchinson)) {
          logdet += p.b[stage] * b.sample_divergence(b.thread);
        }
      }
      device::sync_block(Barrier::kStepAdjoint);
      for (int i = b.thread; i < B::kTile * p.dim; i += B::kThreads) {
        float sum = x_bar[i];
        for (int s = 0; s < p.stages; ++s) sum += b.stage(s)[i];
        x_bar[i] = sum;
      }
      if (p.path_bar != nullptr) b.load_rows(p.path_bar + step * step_rows, first(), x_bar, true);
    }
    if (loss) {
      if (b.thread < b.samples(first())) sample_terms()[1] -= logdet;
      // x holds the penalty's own gradient.
      for (int i = b.thread; i < B::kTile * p.dim; i += B::kThreads) x_bar[i] += x[i];
    }
    if (p.x_grad != nullptr) b.store_rows(x_bar, first(), p.dim, p.x_grad);
    if (p.context_grad != nullptr) b.store_rows(context_bar, first(), p.context_dim, p.context_grad);
  }

  // Columns of the cotangent panel beyond dim are factors of zero weights: they must be finite.
  JKOFLOW_DEVICE void clear_cotangent_padding() const {
    const int count = round_up(p.dim, 8) - p.dim;
    for (int i = b.thread; i < B::kTile * count; i += B::kThreads) {
      const int s = i / count, k = p.dim + i - s * count;
      cotangent()[panel_index(s, k, p.layout.cotangent_stride)] = 0.0f;
    }
  }

  // The objective's terms and cotangents at the tile's end. A thread treats its sample.
  JKOFLOW_DEVICE void start_from_loss(long long first) {
    if (b.thread >= B::kTile) return;
    const bool given = b.thread < b.samples(first);
    float *y = b.at(p.layout.x) + b.thread * p.dim, *x_bar = b.at(p.layout.x_bar) + b.thread * p.dim;
    const float* start = record(0, 0) + b.thread * p.dim;
    double norm = 0.0, movement = 0.0;
    for (int k = 0; k < p.dim; ++k) {
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
    b.shared[p.layout.logdet_bar + b.thread] = given ? -p.mean : 0.0f;
  }

  // ---- Stages

  JKOFLOW_DEVICE float* cotangent() const { return b.shared + p.layout.cotangent; }
  // Inputs of a stage: the loss keeps those of all steps.
  JKOFLOW_DEVICE float* record(int kept_step, int stage) const {
    return b.scratch + p.layout.records + (static_cast<long long>(kept_step) * p.stages + stage) * (B::kTile * p.dim);
  }

  // The velocities of the first `count` stages of a step and the inputs that follow from them.
  JKOFLOW_DEVICE void sweep(int step, int count, int kept_step) {
    for (int stage = 0; stage < count; ++stage) {
      device::sync_block(Barrier::kStageInput);
      float z[NT][4];
      b.first_layer(z, b.stage(stage));
      put_values(z, b.panel(kFirst));
      device::sync_block(Barrier::kFirstLayer);
      int top = kFirst;
      if (p.layers > 1) {
        b.hidden_layer(1, b.panel(kFirst), z);
        put_values(z, b.panel(kTop));
        device::sync_block(Barrier::kSecondLayer);
        top = kTop;
      }
      if (kTangents && p.layers > 2) {
        b.hidden_layer(2, b.panel(kTop), z);
        put_values(z, b.panel(kFirst));
        device::sync_block(Barrier::kTopLayer);
        top = kFirst;
      }
      const bool last_stage = stage + 1 == p.stages;
      float* next =
          last_stage ? (step + 1 < p.num_steps ? record(kept_step + 1, 0) : nullptr) : record(kept_step, stage + 1);
      b.advance(b.panel(top), step, stage, [&](int i, float v) {
        if (next != nullptr) next[i] = v;
      });
    }
  }

  JKOFLOW_DEVICE void put_values(const float (&z)[NT][4], float* panel) const {
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      Jets jets;
      activate(p.activation, p.beta, z[n], jets);
      b.put(panel, n, jets.value);
    }
  }

  JKOFLOW_DEVICE void put_all(const float (&v)[NT][4], float* panel) const {
#pragma unroll
    for (int n = 0; n < NT; ++n) b.put(panel, n, v[n]);
  }

  // The stage's input again, and the cotangent of its velocity: dt b_s x_bar + sum_j dt a_js (input_bar of stage j).
  JKOFLOW_DEVICE void set_stage(int step, int stage, int kept_step) {
    const float *x_bar = b.at(p.layout.x_bar), *input = record(kept_step, stage);
    for (int i = b.thread; i < B::kTile * p.dim; i += B::kThreads) {
      const int s = i / p.dim, k = i - s * p.dim;
      float v = p.b[stage] * x_bar[i];
      for (int j = stage + 1; j < p.stages; ++j) v += p.a[j][stage] * b.stage(j)[i];
      cotangent()[panel_index(s, k, p.layout.cotangent_stride)] = v;
      b.input()[panel_index(s, k, p.layout.input_stride)] = input[i];
    }
    b.set_time(step, stage);
    divergence_weight_ = p.b[stage];
  }

  JKOFLOW_DEVICE float divergence_bar(int n, int j) const {
    return divergence_weight_ * b.shared[p.layout.logdet_bar + b.sample(n, j)];
  }

  // ---- Pieces of a stage's adjoint

  JKOFLOW_DEVICE Left<NT> left(const float (&fragments)[NT][4], const float* panel) const {
    return {fragments, panel, H, 16 * b.warp};
  }
  // Adds to a narrow sum, by this warp's rows. Where FMA reads the left factor from its panel, the warp has just put it
  // there, and afterwards may overwrite it.
  JKOFLOW_DEVICE void add_narrow(Place sum, int in_partial, int columns, const Left<NT>& left, const float* right,
                                 int stride) {
    if (!p.want_parameters) return;
    add_outer<kNarrow, NT>(sums(sum, in_partial) + 16 * b.warp * columns, columns, columns, left, right, stride);
  }
  JKOFLOW_DEVICE void add_hidden(int i, const Left<NT>& left, const float* right) {
    if (!p.want_parameters) return;
    float* memory = nullptr;
    if constexpr (!HiddenSums<H, P>::kInRegisters) memory = partial() + p.gradient.hidden[i] + 16 * b.warp * H;
    kept.hidden[i].add(memory, left, right);
  }
  JKOFLOW_DEVICE void sync_left() const {
    if constexpr (P == Precision::kFp32) device::sync_warp();
  }
  JKOFLOW_DEVICE void add_first(const Left<NT>& left, const float* right) {
    add_narrow(p.layout.first_sum, p.gradient.first, p.first_depth, left, right, p.layout.input_stride);
  }
  JKOFLOW_DEVICE void add_last(const Left<NT>& left, const float* right, int stride) {
    add_narrow(p.layout.last_sum, p.gradient.last, round_up(p.dim, 8), left, right, stride);
  }

  // dW_last^T += h v_bar^T for the last hidden layer at z, by way of a panel that is free; then W_last^T v_bar.
  JKOFLOW_DEVICE void last_layer_adjoint(const float (&z)[NT][4], float* panel, float (&value_bar)[NT][4]) {
    if (p.want_parameters) {
      float h[NT][4];
#pragma unroll
      for (int n = 0; n < NT; ++n) {
        Jets jets;
        activate(p.activation, p.beta, z[n], jets);
#pragma unroll
        for (int j = 0; j < 4; ++j) h[n][j] = jets.value[j];
        if (P == Precision::kFp32) b.put(panel, n, jets.value);
      }
      sync_left();
      add_last(left(h, panel), cotangent(), p.layout.cotangent_stride);
      sync_left();
    }
    const int depth = round_up(p.dim, 8);
    B::clear(value_bar);
    multiply<kNarrow, NT>(value_bar, p.packed.last_t + b.warp * 16 * depth, depth >> 3, cotangent(),
                          p.layout.cotangent_stride);
  }

  // Sums over samples of this lane's two units, added to `sums`.
  JKOFLOW_DEVICE static void add_samples(const float (&v)[NT][4], float (&sums)[2]) {
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      sums[0] += v[n][0] + v[n][1];
      sums[1] += v[n][2] + v[n][3];
    }
  }

  // The cotangent of z_1 is in fragments and panel: gradient of layer 1, then of the stage's input.
  JKOFLOW_DEVICE void first_layer_adjoint(const float (&z_bar)[NT][4], const float* panel, int stage) {
    sync_left();
    add_first(left(z_bar, panel), b.input());
    device::sync_block(Barrier::kFirstAdjoint);
    input_adjoint(panel, stage);
  }

  JKOFLOW_DEVICE void input_adjoint(const float* panel, int stage) {
    const int begin = p.dim + p.has_time, rows = p.context_grad == nullptr ? p.dim : p.columns;
    const int depth = round_up(p.dim, 8);
    float *x_bar = b.stage(stage), *context_bar = b.at(p.layout.context_bar);
    for (int job = b.warp; job < (rows + 15) / 16 * NT; job += B::kWarps) {
      const int tile = job / NT, n = job - tile * NT;
      float v[1][4] = {};
      multiply_chained<kNarrow>(v[0], p.packed.first_t + tile * 16 * H, B::kSteps, panel + 8 * n * H, H);
      if (p.packed.linear_t != nullptr && 16 * tile < p.dim) {
        multiply<kNarrow, 1>(v, p.packed.linear_t + tile * 16 * depth, depth >> 3,
                             cotangent() + 8 * n * p.layout.cotangent_stride, p.layout.cotangent_stride);
      }
      b.for_each_in_job(tile, n, rows, [&](int s, int k, int j) {
        if (k < p.dim) {
          x_bar[s * p.dim + k] = v[0][j];
        } else if (k >= begin) {
          context_bar[s * p.context_dim + k - begin] += v[0][j];
        }
      });
    }
    if (!p.want_parameters) return;
    float* bias = sums(p.layout.bias_last_sum, p.gradient.bias_last);
    for (int k = b.thread; k < p.dim; k += B::kThreads) {
      float sum = 0.0f;
      for (int s = 0; s < B::kTile; ++s) sum += cotangent()[panel_index(s, k, p.layout.cotangent_stride)];
      bias[k] += sum;
    }
    if (p.packed.linear != nullptr) linear_gradient(depth);
  }

  // dA += v_bar x^T.
  JKOFLOW_DEVICE void linear_gradient(int columns) {
    float* gradient = sums(p.layout.linear_sum, p.gradient.linear);
    for (int tile = b.warp; tile < (p.dim + 15) / 16; tile += B::kWarps) {
      float v[NT][4];
#pragma unroll
      for (int n = 0; n < NT; ++n) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int k = 16 * tile + b.lane.g + 8 * (j >> 1);
          v[n][j] = k < p.dim ? cotangent()[panel_index(b.sample(n, j), k, p.layout.cotangent_stride)] : 0.0f;
        }
      }
      const Left<NT> left{v, cotangent(), p.layout.cotangent_stride, 16 * tile};
      add_outer<kNarrow, NT>(gradient + 16 * tile * columns, columns, columns, left, b.input(), p.layout.input_stride);
    }
  }

  // ---- One or two hidden layers, divergence in closed form or none

  JKOFLOW_DEVICE void adjoint_in_closed_form(int stage) {
    float z[NT][4], q[NT][4];
    b.first_layer(z, nullptr);
    if (p.layers == 1) {
      const float low = p.exact ? p.packed.coupling[b.row] : 0.0f, high = p.exact ? p.packed.coupling[b.row + 8] : 0.0f;
      B::set_units(q, low, high);
      top_adjoint(z, q, kFirst);
      add_samples(q, kept.units[0]);
      first_layer_adjoint(z, b.panel(kFirst), stage);
      return;
    }
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      Jets jets;
      activate(p.activation, p.beta, z[n], jets);
      b.put(b.panel(kFirst), n, jets.value);
      b.put(b.panel(kSlopes), n, jets.slope);
      if (p.exact) b.keep(0, n, jets.curvature);
    }
    device::sync_block(Barrier::kFirstLayer);
    b.hidden_layer(1, b.panel(kFirst), z);
    B::clear(q);
    if (p.exact) b.multiply_hidden(p.packed.coupling, b.panel(kSlopes), q);
    top_adjoint(z, q, kTop);
    if (p.exact) put_all(q, b.panel(kCoupled));
    add_samples(z, kept.units[0]);
    sync_left();
    add_hidden(0, left(z, b.panel(kTop)), b.panel(kFirst));
    if (p.exact) add_hidden(1, left(q, b.panel(kCoupled)), b.panel(kSlopes));
    device::sync_block(Barrier::kTopAdjoint);

    B::clear(z);
    b.multiply_hidden(p.packed.hidden_t[0], b.panel(kTop), z);
    B::clear(q);
    if (p.exact) b.multiply_hidden(p.packed.coupling_t, b.panel(kCoupled), q);
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      float curvature[4] = {};
      if (p.exact) b.recall(0, n, curvature);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        z[n][j] = b.panel(kSlopes)[b.element(n, j)] * z[n][j] + curvature[j] * q[n][j];
      }
      b.put(b.panel(kFirst), n, z[n]);
    }
    first_layer_adjoint(z, b.panel(kFirst), stage);
  }

  // The last hidden layer: z becomes its cotangent, which goes to `panel` too, and q that of s in s . q.
  JKOFLOW_DEVICE void top_adjoint(float (&z)[NT][4], float (&q)[NT][4], int panel) {
    float value_bar[NT][4], divergence[NT][2];
    last_layer_adjoint(z, b.panel(panel), value_bar);
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      Jets jets;
      activate(p.activation, p.beta, z[n], jets);
      divergence[n][0] = jets.slope[0] * q[n][0] + jets.slope[2] * q[n][2];
      divergence[n][1] = jets.slope[1] * q[n][1] + jets.slope[3] * q[n][3];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float bar = divergence_bar(n, j);
        z[n][j] = jets.slope[j] * value_bar[n][j] + bar * jets.curvature[j] * q[n][j];
        q[n][j] = bar * jets.slope[j];
      }
      b.put(b.panel(panel), n, z[n]);
    }
    if (p.exact) b.reduce_divergence(divergence);
  }

  // ---- One to three hidden layers, divergence by tangents or none

  JKOFLOW_DEVICE void adjoint_with_tangents(int stage) {
    const AdjointSlots slots(p.layers, p.hutchinson);
    float z[NT][4];
    b.first_layer(z, nullptr);
    keep_layer(slots, 0, z);
    if (p.layers > 1) {
      put_values(z, b.panel(kFirst));
      device::sync_block(Barrier::kFirstLayer);
      b.hidden_layer(1, b.panel(kFirst), z);
      keep_layer(slots, 1, z);
    }
    if (p.layers > 2) {
      put_values(z, b.panel(kSecond));
      device::sync_block(Barrier::kSecondLayer);
      b.hidden_layer(2, b.panel(kSecond), z);
      keep_layer(slots, 2, z);
    }
    {
      float value_bar[NT][4];
      last_layer_adjoint(z, b.panel(kTangentBar), value_bar);
#pragma unroll
      for (int n = 0; n < NT; ++n) b.keep(slots.value_bar(), n, value_bar[n]);
    }
    float divergence[NT][2] = {};
    for (int k = 0; k < p.directions; ++k) direction_adjoint(slots, k, divergence);
    if (p.directions > 0) b.reduce_divergence(divergence);

    // From here on panels of tangents hold cotangents of z: the last layer's, then those of the layers before.
    int panel = kTangent1;
#pragma unroll
    for (int n = 0; n < NT; ++n) b.recall(slots.value_bar(), n, z[n]);
    pre_activation_adjoint(slots, p.layers - 1, z, b.panel(panel));
    if (p.layers > 2) {
      add_samples(z, kept.units[1]);
      back_through<1>(z, panel, kSecond, Barrier::kMiddleAdjoint);
      pre_activation_adjoint(slots, 1, z, b.panel(++panel));
    }
    if (p.layers > 1) {
      add_samples(z, kept.units[0]);
      back_through<0>(z, panel, kFirst, Barrier::kTopAdjoint);
      pre_activation_adjoint(slots, 0, z, b.panel(++panel));
    }
    first_layer_adjoint(z, b.panel(panel), stage);
  }

  // Keeps sigma' and sigma'' of a layer and starts the cotangent of sigma'.
  JKOFLOW_DEVICE void keep_layer(const AdjointSlots& slots, int layer, const float (&z)[NT][4]) const {
    const float zero[4] = {};
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      Jets jets;
      activate(p.activation, p.beta, z[n], jets);
      b.keep(slots.slope(layer), n, jets.slope);
      b.keep(slots.curvature(layer), n, jets.curvature);
      b.keep(slots.slope_bar(layer), n, zero);
    }
  }

  // z_bar = s (value_bar) + sigma'' (slope_bar), where z holds value_bar.
  JKOFLOW_DEVICE void pre_activation_adjoint(const AdjointSlots& slots, int layer, float (&z)[NT][4],
                                             float* panel) const {
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      float slope[4], curvature[4], slope_bar[4];
      b.recall(slots.slope(layer), n, slope);
      b.recall(slots.curvature(layer), n, curvature);
      b.recall(slots.slope_bar(layer), n, slope_bar);
#pragma unroll
      for (int j = 0; j < 4; ++j) z[n][j] = slope[j] * z[n][j] + curvature[j] * slope_bar[j];
      b.put(panel, n, z[n]);
    }
  }

  // Through the matrix after the first (I = 0) or second (I = 1) hidden layer: from the cotangent of its product, in
  // fragments and a panel, to its gradient and the cotangent of the right factor. `complete`: the panel is.
  template <int I>
  JKOFLOW_DEVICE void back_through(float (&bar)[NT][4], int panel, int right, Barrier complete) {
    sync_left();
    add_hidden(I, left(bar, b.panel(panel)), b.panel(right));
    device::sync_block(complete);
    B::clear(bar);
    b.multiply_hidden(p.packed.hidden_t[I], b.panel(panel), bar);
  }

  // From the cotangent of u = s a: adds a u_bar to that of s and returns s u_bar, the cotangent of a, in u_bar.
  JKOFLOW_DEVICE void tangent_adjoint(const AdjointSlots& slots, int layer, int n, const float (&a)[4],
                                      float (&u_bar)[4]) const {
    float slope[4], slope_bar[4];
    b.recall(slots.slope(layer), n, slope);
    b.recall(slots.slope_bar(layer), n, slope_bar);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      slope_bar[j] += a[j] * u_bar[j];
      u_bar[j] *= slope[j];
    }
    b.keep(slots.slope_bar(layer), n, slope_bar);
  }

  // One direction: tangents up to the last hidden layer, w . u added to the divergence, and back.
  JKOFLOW_DEVICE void direction_adjoint(const AdjointSlots& slots, int k, float (&divergence)[NT][2]) {
    const int top = p.layers - 1;
    float a[NT][4];
#pragma unroll
    for (int n = 0; n < NT; ++n) b.first_tangent(k, slots.noise(), n, a[n]);
    if (p.layers > 1) {
      b.put_tangent(slots.slope(0), a, b.panel(kTangent1));
      device::sync_block(Barrier::kTangent1);
      B::clear(a);
      b.multiply_hidden(p.packed.hidden[0], b.panel(kTangent1), a);
    }
    if (p.layers > 2) {
#pragma unroll
      for (int n = 0; n < NT; ++n) b.keep(slots.middle_tangent(), n, a[n]);
      b.put_tangent(slots.slope(1), a, b.panel(kTangent2));
      device::sync_block(Barrier::kTangent2);
      B::clear(a);
      b.multiply_hidden(p.packed.hidden[1], b.panel(kTangent2), a);
    }
    // The last hidden layer: u = s a, its weight w in the divergence, and their cotangents.
    float w_bar[NT][4];
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      float slope[4], w[4];
      b.recall(slots.slope(top), n, slope);
      b.divergence_weights(k, slots.noise() + 1, n, w);
      float u_bar[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float bar = divergence_bar(n, j), u = slope[j] * a[n][j];
        divergence[n][j & 1] += w[j] * u;
        w_bar[n][j] = bar * u;
        u_bar[j] = bar * w[j];
      }
      tangent_adjoint(slots, top, n, a[n], u_bar);
#pragma unroll
      for (int j = 0; j < 4; ++j) a[n][j] = u_bar[j];
    }
    divergence_weights_adjoint(k, w_bar);
    // a is now the cotangent of the last layer's a.
    if (p.layers > 2) {
      put_all(a, b.panel(kTangentBar));
      back_through<1>(a, kTangentBar, kTangent2, Barrier::kTangentAdjoint2);
#pragma unroll
      for (int n = 0; n < NT; ++n) {
        float tangent[4];
        b.recall(slots.middle_tangent(), n, tangent);
        tangent_adjoint(slots, 1, n, tangent, a[n]);
      }
    }
    if (p.layers > 1) {
      const int panel = p.layers > 2 ? kTangent2 : kTangentBar;
      put_all(a, b.panel(panel));
      back_through<0>(a, panel, kTangent1, Barrier::kTangentAdjoint1);
#pragma unroll
      for (int n = 0; n < NT; ++n) {
        float tangent[4];
        b.first_tangent(k, slots.noise(), n, tangent);
        tangent_adjoint(slots, 0, n, tangent, a[n]);
      }
    }
    first_tangent_adjoint(k, a);
  }

  // Gradient of the last layer through w: its row k, or w = W_last^T noise.
  JKOFLOW_DEVICE void divergence_weights_adjoint(int k, const float (&w_bar)[NT][4]) {
    if (!p.want_parameters) return;
    if (p.hutchinson) {
      put_left(w_bar, kTangentBar);
      add_last(left(w_bar, b.panel(kTangentBar)), b.shared + p.layout.noise, p.layout.input_stride);
      sync_left();
    } else {
      add_column(p.layout.last_sum, p.gradient.last, round_up(p.dim, 8), k, w_bar);
    }
  }
  // Gradient of layer 1 through a_1: column k of W1x, or W1x noise.
  JKOFLOW_DEVICE void first_tangent_adjoint(int k, const float (&a_bar)[NT][4]) {
    if (!p.want_parameters) return;
    if (p.hutchinson) {
      // With two layers other warps still read the cotangents in kTangentBar.
      const int panel = p.layers == 2 ? kTangent2 : kTangentBar;
      put_left(a_bar, panel);
      add_first(left(a_bar, b.panel(panel)), b.shared + p.layout.noise);
      sync_left();
    } else {
      add_column(p.layout.first_sum, p.gradient.first, p.first_depth, k, a_bar);
    }
  }

  // A left factor of FMA's outer product, in a panel of which the warp only uses its own rows for the moment.
  JKOFLOW_DEVICE void put_left(const float (&v)[NT][4], int panel) const {
    if constexpr (P == Precision::kFp32) {
      put_all(v, b.panel(panel));
      device::sync_warp();
    }
  }

  // Adds sums over samples to column k of a narrow sum. Other lanes add to it in add_outer: the warp waits for them.
  JKOFLOW_DEVICE void add_column(Place sum, int in_partial, int columns, int k, const float (&v)[NT][4]) {
    float units[2] = {};
    add_samples(v, units);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      units[i] += device::shuffle_xor(units[i], 1);
      units[i] += device::shuffle_xor(units[i], 2);
    }
    device::sync_warp();
    if (b.lane.t == 0) {
      float* out = sums(sum, in_partial) + b.row * columns + k;
      out[0] += units[0];
      out[8 * columns] += units[1];
    }
    device::sync_warp();
  }

  // ---- Sums of gradients

  JKOFLOW_DEVICE float* sums(Place place, int in_partial) const {
    return place.in_shared ? b.shared + place.offset : partial() + in_partial;
  }

  JKOFLOW_DEVICE void clear_sums() {
    if (!p.want_parameters) return;
    kept.hidden[0].clear();
    kept.hidden[1].clear();
    const int depth = round_up(p.dim, 8), rows = round_up(p.dim, 16);
    zero(sums(p.layout.first_sum, p.gradient.first), H * p.first_depth);
    zero(sums(p.layout.last_sum, p.gradient.last), H * depth);
    zero(sums(p.layout.bias_last_sum, p.gradient.bias_last), depth);
    if (p.packed.linear != nullptr) zero(sums(p.layout.linear_sum, p.gradient.linear), rows * depth);
    if (!HiddenSums<H, P>::kInRegisters && p.layers > 1) zero(partial() + p.gradient.hidden[0], H * H);
    if (!HiddenSums<H, P>::kInRegisters && two_hidden_sums()) zero(partial() + p.gradient.hidden[1], H * H);
    // The first adjoint is barriers away.
  }
  JKOFLOW_DEVICE bool two_hidden_sums() const { return p.layers > 2 || (!kTangents && p.layers == 2 && p.exact); }
  JKOFLOW_DEVICE void zero(float* sums, int count) const {
    for (int i = b.thread; i < count; i += B::kThreads) sums[i] = 0.0f;
  }

  JKOFLOW_DEVICE void store_sums() {
    if (p.layers > 1) kept.hidden[0].store(partial() + p.gradient.hidden[0] + 16 * b.warp * H);
    if (two_hidden_sums()) kept.hidden[1].store(partial() + p.gradient.hidden[1] + 16 * b.warp * H);
    if (p.layers > 1) store_units(kept.units[0], p.gradient.bias[0]);
    if (p.layers > 2) store_units(kept.units[1], p.gradient.bias[1]);
    if (p.layers == 1) store_units(kept.units[0], p.gradient.coupling);
    // The last of these sums were complete at kStepAdjoint.
    const int depth = round_up(p.dim, 8);
    copy(p.layout.first_sum, p.gradient.first, H * p.first_depth);
    copy(p.layout.last_sum, p.gradient.last, H * depth);
    copy(p.layout.bias_last_sum, p.gradient.bias_last, depth);
    if (p.packed.linear != nullptr) copy(p.layout.linear_sum, p.gradient.linear, round_up(p.dim, 16) * depth);
  }
  JKOFLOW_DEVICE void copy(Place place, int in_partial, int count) const {
    if (!place.in_shared) return;
    float* gradient = partial();
    for (int i = b.thread; i < count; i += B::kThreads) gradient[in_partial + i] = b.shared[place.offset + i];
  }
  JKOFLOW_DEVICE void store_units(float (&sums)[2], int in_partial) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      sums[i] += device::shuffle_xor(sums[i], 1);
      sums[i] += device::shuffle_xor(sums[i], 2);
      if (b.lane.t == 0) partial()[in_partial + b.row + 8 * i] = sums[i];
    }
  }

  // |y|^2, -logdet and |y - x|^2, summed over the samples that have this thread's place in their tile. Cleared and
  // stored for large tiles, which have all places.
  JKOFLOW_DEVICE double* sample_terms() const {
    return p.sample_terms + (static_cast<long long>(device::block()) * p.tile + b.thread) * 3;
  }
  JKOFLOW_DEVICE void clear_terms() const {
    for (int i = 0; i < 3 && b.thread < B::kTile; ++i) sample_terms()[i] = 0.0;
  }
  JKOFLOW_DEVICE void store_terms() const {
    device::sync_block(Barrier::kTermSums);
    if (b.thread < 3) {
      const double* terms = p.sample_terms + static_cast<long long>(device::block()) * p.tile * 3 + b.thread;
      double sum = 0.0;
      for (int s = 0; s < B::kTile; ++s) sum += terms[3 * s];
      p.terms[device::block() * 3 + b.thread] = sum;
    }
  }

 private:
  float divergence_weight_ = 0.0f;  // dt b of the stage
};

// A block's share: large tiles, the last tile small if that is enough. Between the two the barriers of a tile suffice.
template <int H, Precision P, int NT, int kSmall, bool kTangents>
JKOFLOW_DEVICE void run_backward(const Params& p) {
  using Large = Backward<H, P, NT, kTangents>;
  using Small = Backward<H, P, kSmall, kTangents>;
  KeptSums<H, P> kept;
  Large large(p, kept);
  large.clear_sums();
  if (p.terms != nullptr) large.clear_terms();
  for (int tile = 0; tile < p.large_tiles && first_sample(p, tile) < p.batch; ++tile) large.adjoint_of_tile(tile);
  if constexpr (NT != kSmall) {
    if (p.small_tiles > 0 && first_sample(p, p.large_tiles) < p.batch) Small(p, kept).adjoint_of_tile(p.large_tiles);
  }
  large.b.renew();
  if (p.want_parameters) large.store_sums();
  if (p.terms != nullptr) large.store_terms();
}

}  // namespace jkoflow::cuda
