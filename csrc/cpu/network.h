// The velocity's weights, packed for the panel products once a call. Sizes and pointers come from one code path.
#pragma once

#include "../problem.h"
#include "modulation.h"
#include "split.h"

namespace jkoflow::JKOFLOW_ISA {
namespace {

template <class Real>
constexpr int padded_width(int width) {
  constexpr int kMultiple = kLanes<Real> > kPanelRows ? kLanes<Real> : kPanelRows;
  return (width + kMultiple - 1) / kMultiple * kMultiple;
}

constexpr int larger(int a, int b) { return a > b ? a : b; }

// The network of a Problem with weights packed for the panel products. Hidden widths are padded with zero weights.
template <class Real>
struct Network {
  int dim, inputs;   // inputs: rows of x, t and context, without t if it is the same for all rows
  int context_row;   // first row of the context among the inputs; t, if it is there, stands before it
  int first_inputs;  // inputs that layer 1 reads: x alone if time and context scale and shift the layers
  int hidden;        // hidden layers
  int width[kMaxHidden] = {}, padded[kMaxHidden] = {};
  bool closed;      // the divergence is wanted and has a closed form
  bool probed;      // it is taken along the noise of the Problem
  int directions;   // tangents that it takes where there is no closed form
  bool has_linear;  // whether the velocity has the term A x
  bool modulated, residual, gated_output, row_times;
  ActivationKind activation;
  Real beta;

  Real *first, *last, *linear = nullptr;  // of layer 1, of the last, A
  Matrix<Real> weights[kMaxHidden];       // between hidden layers: [l] reads layer l - 1
  Real *bias[kMaxHidden], *bias_last, *time;
  Real *first_t = nullptr, *last_t = nullptr, *linear_t = nullptr;  // transposed, for the adjoint
  Matrix<Real> weights_t[kMaxHidden];
  // What the closed-form divergence needs of the weights: c_a = sum_i W1[a, i] W2[i, a], so that div = c . s1, padded;
  // with two layers M = W2 * (W1x W3)^T elementwise, so that div = s2^T M s1.
  Real *trace_vector = nullptr, *trace_rows = nullptr;  // c; M row by row
  Matrix<Real> trace_matrix, trace_matrix_t;            // M
  PackedModulation<Real> modulation;
  Real* product_grad = nullptr;  // for the adjoint: gradient of (W1x W3)^T, with the shape of trace_rows
  // Rows that tangents start from and end on, plain: W1x transposed (dim, padded H1) and W_last (dim, padded HL).
  Real *first_columns = nullptr, *last_rows = nullptr;

  Network(const Problem& p, Arena& arena, bool adjoint)
      : dim(p.dim),
        inputs(p.dim + p.has_time_column() + p.context_dim),
        context_row(p.dim + p.has_time_column()),
        first_inputs(p.modulation.present ? p.dim : inputs),
        hidden(p.hidden_layers),
        closed(p.divergence == Divergence::kExact && p.hidden_layers <= 2 && !p.modulation.has_gate(p.hidden_layers)),
        probed(p.divergence == Divergence::kHutchinson),
        directions(closed || p.divergence == Divergence::kNone ? 0
                   : probed                                    ? 1
                                                               : p.dim),
        has_linear(p.linear != nullptr),
        modulated(p.modulation.present),
        residual(p.residual),
        gated_output(p.modulation.has_gate(p.hidden_layers)),
        row_times(p.row_times),
        activation(p.activation),
        beta(static_cast<Real>(p.beta)),
        modulation(p, pad(p), arena, adjoint) {
    for (int l = 0; l < hidden; ++l) {
      width[l] = p.width[l];
      bias[l] = arena.take<Real>(padded[l]);
      if (l > 0) weights[l] = Matrix<Real>::take(padded[l], width[l - 1], arena);
      if (l > 0 && adjoint) weights_t[l] = Matrix<Real>::take(padded[l - 1], width[l], arena);
    }
    first = arena.take<Real>(static_cast<ptrdiff_t>(padded[0]) * first_inputs);
    if (adjoint) first_t = arena.take<Real>(static_cast<ptrdiff_t>(padded[0]) * first_inputs);
    if (has_trace_vector()) trace_vector = arena.take<Real>(padded[0]);
    time = arena.take<Real>(padded[0]);
    bias_last = arena.take<Real>(dim);
    last = arena.take<Real>(static_cast<ptrdiff_t>(dim) * padded[top()]);
    if (adjoint || probed) last_t = arena.take<Real>(static_cast<ptrdiff_t>(padded[top()]) * dim);
    if (has_linear) linear = arena.take<Real>(dim * dim);
    if (has_linear && adjoint) linear_t = arena.take<Real>(dim * dim);
    if (two_layer_form() || (directions > 0 && !probed)) first_columns = arena.take<Real>(dim * padded[0]);
    if (directions > 0 && !probed) last_rows = arena.take<Real>(dim * padded[top()]);
    if (two_layer_form()) {
      trace_rows = arena.take<Real>(static_cast<ptrdiff_t>(padded[1]) * padded[0]);
      trace_matrix = Matrix<Real>::take(padded[1], width[0], arena);
      if (adjoint) trace_matrix_t = Matrix<Real>::take(padded[0], width[1], arena);
      if (adjoint) product_grad = arena.take<Real>(static_cast<ptrdiff_t>(padded[1]) * padded[0]);
    }
  }

  int top() const { return hidden - 1; }
  int widest() const {
    int most = 0;
    for (int l = 0; l < hidden; ++l) most = larger(most, padded[l]);
    return most;
  }
  // Of the layers with the last one, whose index is `hidden`.
  int rows(int l) const { return l < hidden ? padded[l] : dim; }
  int widest_layer() const { return larger(widest(), dim); }
  bool two_layer_form() const { return closed && hidden == 2; }
  // With residual layers the divergence is c . s1 + s2^T M s1.
  bool has_trace_vector() const { return closed && (hidden == 1 || residual); }
  bool plain() const { return !modulated && !residual; }
  // Column of the first weights that an input row meets: those of t are left out if t is the same for all rows.
  static int weight_column(const Problem& p, int input) {
    return input < p.dim || !p.time || p.row_times ? input : input + 1;
  }

  // Thread `part` of `parts` prepares its share; wait() is a barrier of all of them. Ends with one.
  template <class Wait>
  void prepare(const Problem& p, int part, int parts, Wait&& wait) const {
    for (int phase = 0; phase < phases(); ++phase) {
      prepare_phase(p, phase, part, parts);
      wait();
    }
  }

  // The phases of the preparation, each of which reads what all threads have written in the one before.
  int phases() const { return !closed ? 1 : two_layer_form() ? 3 : 2; }
  void prepare_phase(const Problem& p, int phase, int part, int parts) const {
    if (phase == 0) {
      pack_weights(p, part, parts);
      modulation.pack_from(p, padded, part, parts);
      copy_rows(p, part, parts);
    } else if (phase == 1) {
      set_trace_matrix(p, part, parts);
    } else {
      pack_hidden(trace_rows, padded[0], 1, trace_matrix, trace_matrix_t, part, parts);
    }
  }

  // Row m of (W1x W3)^T times the elements of `factor` (one row, or null), into `out`: padded H1 numbers.
  void product_row(const Problem& p, int m, const Real* factor, Real* out) const {
    const Real* w_last = static_cast<const Real*>(p.weight[hidden]) + m;
    for_each_few(padded[0] / kLanes<Real>, [&](int vector, auto count) {
      const int k = vector * kLanes<Real>;
      Vector<Real> sum[decltype(count)::value] = {};
      for (int i = 0; i < dim; ++i) {
        const Real w = w_last[static_cast<ptrdiff_t>(i) * width[1]];
        JKOFLOW_UNROLL
        for (int j = 0; j < decltype(count)::value; ++j) {
          sum[j] += w * load(first_columns + i * padded[0] + k + j * kLanes<Real>);
        }
      }
      for (int j = 0; j < decltype(count)::value; ++j) store<Real>(out + k + j * kLanes<Real>, sum[j]);
    });
    for (int k = 0; factor != nullptr && k < width[0]; ++k) out[k] *= factor[k];
  }

 private:
  const int* pad(const Problem& p) {
    for (int l = 0; l < hidden; ++l) padded[l] = padded_width<Real>(p.width[l]);
    return padded;
  }

  void pack_weights(const Problem& p, int part, int parts) const {
    const int stride = p.input_columns();
    const auto column = [&](int input) { return weight_column(p, input); };
    const auto give = [&](Real* packed, int rows, int padded_rows, int depth, auto&& element) {
      if (packed != nullptr) pack<Real>(packed, rows, padded_rows, depth, part, parts, element);
    };
    const Real* w1 = static_cast<const Real*>(p.weight[0]);
    give(first, width[0], padded[0], first_inputs, [=](int m, int k) { return w1[m * stride + column(k)]; });
    give(first_t, first_inputs, first_inputs, width[0], [=](int m, int k) { return w1[k * stride + column(m)]; });
    for (int l = 1; l < hidden; ++l) {
      pack_hidden(static_cast<const Real*>(p.weight[l]), width[l - 1], l, weights[l], weights_t[l], part, parts);
    }
    const int columns = width[top()];
    const Real* w_last = static_cast<const Real*>(p.weight[hidden]);
    give(last, dim, dim, columns, [=](int m, int k) { return w_last[m * columns + k]; });
    give(last_t, columns, padded[top()], dim, [=](int m, int k) { return w_last[k * columns + m]; });
    const Real* a = static_cast<const Real*>(p.linear);
    give(linear, dim, dim, dim, [=, d = dim](int m, int k) { return a[m * d + k]; });
    give(linear_t, dim, dim, dim, [=, d = dim](int m, int k) { return a[k * d + m]; });
    if (part != 0) return;
    for (int l = 0; l < hidden; ++l) copy_padded(bias[l], static_cast<const Real*>(p.bias[l]), 1, width[l], padded[l]);
    copy_padded(bias_last, static_cast<const Real*>(p.bias[hidden]), 1, dim, dim);
    copy_padded(time, w1 + p.dim, stride, p.time && !p.has_time_column() ? width[0] : 0, padded[0]);
  }

  // A matrix from hidden layer l - 1 to l whose rows are `stride` apart, and for the adjoint its transpose.
  void pack_hidden(const Real* rows, int stride, int l, const Matrix<Real>& packed, const Matrix<Real>& packed_t,
                   int part, int parts) const {
    packed.pack_from(width[l], padded[l], width[l - 1], part, parts,
                     [=](int m, int k) { return rows[static_cast<ptrdiff_t>(m) * stride + k]; });
    if (first_t == nullptr) return;
    packed_t.pack_from(width[l - 1], padded[l - 1], width[l], part, parts,
                       [=](int m, int k) { return rows[static_cast<ptrdiff_t>(k) * stride + m]; });
  }

  void copy_rows(const Problem& p, int part, int parts) const {
    const int stride = p.input_columns(), columns = width[top()];
    for (int i = part; first_columns != nullptr && i < dim; i += parts) {
      copy_padded(first_columns + i * padded[0], static_cast<const Real*>(p.weight[0]) + i, stride, width[0],
                  padded[0]);
    }
    for (int i = part; last_rows != nullptr && i < dim; i += parts) {
      copy_padded(last_rows + i * padded[top()], static_cast<const Real*>(p.weight[hidden]) + i * columns, 1, columns,
                  padded[top()]);
    }
  }

  void set_trace_matrix(const Problem& p, int part, int parts) const {
    if (two_layer_form()) {
      const Real* w2 = static_cast<const Real*>(p.weight[1]);
      for (int m = part; m < width[1]; m += parts) {
        product_row(p, m, w2 + static_cast<ptrdiff_t>(m) * width[0],
                    trace_rows + static_cast<ptrdiff_t>(m) * padded[0]);
      }
    }
    if (!has_trace_vector()) return;
    const int stride = p.input_columns();
    const Real *w1 = static_cast<const Real*>(p.weight[0]), *w_last = static_cast<const Real*>(p.weight[hidden]);
    for (int a = part; a < padded[0]; a += parts) {
      Real sum = 0;
      for (int i = 0; a < width[0] && i < dim; ++i) sum += w1[a * stride + i] * w_last[i * width[0] + a];
      trace_vector[a] = sum;
    }
  }

  static void copy_padded(Real* out, const Real* source, int stride, int count, int padded_count) {
    for (int i = 0; i < padded_count; ++i) out[i] = i < count ? source[static_cast<ptrdiff_t>(i) * stride] : Real(0);
  }
};

}  // namespace
}  // namespace jkoflow::JKOFLOW_ISA
