// Gradients of all partitions into the output tensors, in a fixed order; rows are shared among the threads.
#pragma once

#include "threads.h"
#include "workspace.h"

namespace jkoflow::JKOFLOW_ISA {
namespace {

// What partitions hand over to the reduction.
template <class Real>
struct PartitionResult {
  BackwardSpace<Real> work;
  double terms[3];
};

template <class Real>
class Reduction {
 public:
  Reduction(const Problem& p, const Adjoint& adjoint, const Network<Real>& net, const PartitionResult<Real>* results,
            int partitions)
      : p_(p), adjoint_(adjoint), net_(net), results_(results), partitions_(partitions) {}

  void run(int part, int parts) const {
    biases(part, parts);
    if (net_.modulated) modulation(part, parts);
    linear(part, parts);
    upper_layers(part, parts);
    middle_layers(part, parts);
    if (net_.product_grad != nullptr) wait_for_threads();
    first_layer(part, parts);
  }

 private:
  void biases(int part, int parts) const {
    const GradientSums<Real>& sums = results_[0].work.sums;
    for (int l = 0; l < net_.hidden; ++l) {
      for (int i = part; i < net_.width[l]; i += parts) {
        out(adjoint_.bias[l])[i] = total_lanes(sums.bias[l] + i * kLanes<Real>);
      }
    }
    for (int i = part; i < net_.dim; i += parts) {
      out(adjoint_.bias[net_.hidden])[i] = total_lanes(sums.bias_last + i * kLanes<Real>);
    }
  }

  void modulation(int part, int parts) const {
    const ModulationSums<Real>& sums = results_[0].work.sums.modulation;
    const int columns = net_.modulation.columns;
    Real* tensor = out(adjoint_.modulation);
    const ModulationPlaces places(p_);
    for (int k = part; k < net_.modulation.kind.frequencies; k += parts) {
      tensor[k] = total_lanes(sums.frequency + k * kLanes<Real>);
    }
    for (int l = 0; l <= net_.hidden; ++l) {
      for (int i = part; i < (l < net_.hidden ? net_.width[l] : net_.dim); i += parts) {
        for (int k = 0; sums.gate[l] != nullptr && k < columns; ++k) {
          tensor[places.gate[l] + i * columns + k] = narrow_total(sums.gate[l], columns, i, k);
        }
        if (sums.bias[l] != nullptr) tensor[places.gate_bias[l] + i] = total_lanes(sums.bias[l] + i * kLanes<Real>);
        for (int k = 0; sums.shift[l] != nullptr && k < columns; ++k) {
          tensor[places.shift[l] + i * columns + k] = narrow_total(sums.shift[l], columns, i, k);
        }
      }
    }
  }

  void linear(int part, int parts) const {
    for (int i = part; net_.has_linear && i < net_.dim; i += parts) {
      for (int k = 0; k < net_.dim; ++k) {
        out(adjoint_.linear)[static_cast<ptrdiff_t>(i) * net_.dim + k] =
            narrow_total(results_[0].work.sums.linear, net_.first_inputs, i, k);
      }
    }
  }

  // The last layer and the one below it, by rows m of the last hidden layer. In closed form, M = W2 * P with
  // P = (W1x W3)^T hands its gradient on to W2 and P, and P to W3 here and to W1x in first_layer.
  void upper_layers(int part, int parts) const {
    const GradientSums<Real>& sums = results_[0].work.sums;
    const int top = net_.top();
    const ptrdiff_t width = net_.padded[0];
    for (int m = part; m < net_.width[top]; m += parts) {
      Real* product = net_.product_grad == nullptr ? nullptr : net_.product_grad + m * width;
      if (top > 0) copy_row(top, m);
      if (product != nullptr) {
        const Real* w2 = static_cast<const Real*>(p_.weight[1]) + static_cast<ptrdiff_t>(m) * net_.width[0];
        Real* w2_grad = out(adjoint_.weight[1]) + static_cast<ptrdiff_t>(m) * net_.width[0];
        net_.product_row(p_, m, nullptr, product);
        pass_on(add_partitions(sums.trace_matrix + m * width, net_.padded[0]), net_.width[0], w2, w2_grad, product);
        for (int k = net_.width[0]; k < width; ++k) product[k] = 0;
      }
      for (int i = 0; i < net_.dim; ++i) {
        Real sum = narrow_total(sums.last, net_.dim, m, i);
        if (product != nullptr) sum += dot(product, net_.first_columns + i * width, net_.padded[0]);
        if (net_.has_trace_vector()) sum += trace_vector_total(m) * first_weight(m, i);
        if (sums.last_tangent != nullptr) sum += tangent_total(sums.last_tangent, net_.padded[top], i, m);
        out(adjoint_.weight[net_.hidden])[static_cast<ptrdiff_t>(i) * net_.width[top] + m] = sum;
      }
    }
  }

  void middle_layers(int part, int parts) const {
    for (int l = 1; l < net_.top(); ++l) {
      for (int m = part; m < net_.width[l]; m += parts) copy_row(l, m);
    }
  }

  // Layer 1, by vectors of its units.
  void first_layer(int part, int parts) const {
    const GradientSums<Real>& sums = results_[0].work.sums;
    const Real* w_last = static_cast<const Real*>(p_.weight[net_.hidden]);
    for (int block = part * kLanes<Real>; block < net_.width[0]; block += parts * kLanes<Real>) {
      const int end = block + kLanes<Real> < net_.width[0] ? block + kLanes<Real> : net_.width[0];
      for (int a = block; a < end; ++a) {
        Real* row = out(adjoint_.weight[0]) + static_cast<ptrdiff_t>(a) * p_.input_columns();
        for (int k = 0; k < net_.first_inputs; ++k) {
          row[Network<Real>::weight_column(p_, k)] = narrow_total(sums.weights[0], net_.first_inputs, a, k);
        }
        if (p_.time && !p_.has_time_column()) row[p_.dim] = total_lanes(sums.time + a * kLanes<Real>);
        for (int i = 0; net_.has_trace_vector() && i < net_.dim; ++i) {
          row[i] += trace_vector_total(a) * w_last[static_cast<ptrdiff_t>(i) * net_.width[0] + a];
        }
        for (int i = 0; sums.first_tangent != nullptr && i < net_.dim; ++i) {
          row[i] += tangent_total(sums.first_tangent, net_.padded[0], i, a);
        }
      }
      if (net_.product_grad == nullptr) continue;
      for_each_few(net_.dim, [&](int i, auto count) {
        Vector<Real> sum[decltype(count)::value] = {};
        for (int m = 0; m < net_.width[1]; ++m) {
          const Vector<Real> grad = load(net_.product_grad + static_cast<ptrdiff_t>(m) * net_.padded[0] + block);
          JKOFLOW_UNROLL
          for (int j = 0; j < decltype(count)::value; ++j) {
            sum[j] += w_last[static_cast<ptrdiff_t>(i + j) * net_.width[1] + m] * grad;
          }
        }
        for (int a = block; a < end; ++a) {
          Real* row = out(adjoint_.weight[0]) + static_cast<ptrdiff_t>(a) * p_.input_columns() + i;
          for (int j = 0; j < decltype(count)::value; ++j) row[j] += sum[j][a - block];
        }
      });
    }
  }

  // Row m of the gradient of hidden layer l, l >= 1.
  void copy_row(int l, int m) const {
    const int columns = net_.padded[l - 1], width = net_.width[l - 1];
    const Real* source =
        add_partitions(results_[0].work.sums.weights[l] + static_cast<ptrdiff_t>(m) * columns, columns);
    std::memcpy(out(adjoint_.weight[l]) + static_cast<ptrdiff_t>(m) * width, source, sizeof(Real) * width);
  }

  // From a row of the gradient of M = W2 * P: adds that of W2, and puts that of P in P's place.
  static void pass_on(const Real* __restrict m_grad, int width, const Real* __restrict w2, Real* __restrict w2_grad,
                      Real* __restrict product) {
    for (int k = 0; k < width; ++k) {
      w2_grad[k] += m_grad[k] * product[k];
      product[k] = m_grad[k] * w2[k];
    }
  }

  // Of a gradient by narrow_product.
  Real narrow_total(const Real* sums, int columns, int row, int column) const {
    const Real* from = sums + static_cast<ptrdiff_t>(row) * narrow_stride<Real>(columns);
    return columns <= kFewColumns ? total_lanes(from + column * kLanes<Real>) : total(from + column);
  }
  Real tangent_total(const Real* sums, ptrdiff_t width, int direction, int unit) const {
    return total_lanes(sums + (direction * width + unit) * kLanes<Real>);
  }
  Real first_weight(int a, int i) const {
    return static_cast<const Real*>(p_.weight[0])[static_cast<ptrdiff_t>(a) * p_.input_columns() + i];
  }
  Real trace_vector_total(int a) const { return total_lanes(results_[0].work.sums.trace_vector + a * kLanes<Real>); }

  static Real dot(const Real* a, const Real* b, int count) {
    Vector<Real> sum{};
    for (int k = 0; k < count; k += kLanes<Real>) sum += load(a + k) * load(b + k);
    return lane_sum<Real>(sum);
  }

  static Real* out(void* tensor) { return static_cast<Real*>(tensor); }

  // A row of sums over all partitions, in the place of the first one's; its length is a multiple of the lanes.
  const Real* add_partitions(Real* row, int length) const {
    const ptrdiff_t offset = row - results_[0].work.sums.begin;
    for (int i = 1; i < partitions_; ++i) {
      const Real* other = results_[i].work.sums.begin + offset;
      for (int k = 0; k < length; k += kLanes<Real>) add_to<Real>(row + k, load(other + k));
    }
    return row;
  }

  // The element's sum over partitions, whose sums all lie at the same offset.
  Real total(const Real* element) const {
    const ptrdiff_t offset = element - results_[0].work.sums.begin;
    Real sum = *element;
    for (int i = 1; i < partitions_; ++i) sum += results_[i].work.sums.begin[offset];
    return sum;
  }
  Real total_lanes(const Real* lanes) const {
    Real sum = 0;
    for (int i = 0; i < kLanes<Real>; ++i) sum += total(lanes + i);
    return sum;
  }
  const Problem& p_;
  const Adjoint& adjoint_;
  const Network<Real>& net_;
  const PartitionResult<Real>* results_;
  int partitions_;
};

}  // namespace
}  // namespace jkoflow::JKOFLOW_ISA
