// Whole integrations on one instruction set: tiles over threads, Runge-Kutta steps over tiles, and the exact adjoint.
#include "block.h"
#include "kernels.h"
#include "threads.h"

namespace jkoflow::JKOFLOW_ISA {
namespace {

// ---- Tiles

// Samples are dealt to partitions in whole vectors; a partition is the unit that sums its gradients.
template <class Real>
int partition_count(const Problem& p) {
  const int64_t vectors = (p.batch + kLanes<Real> - 1) / kLanes<Real>;
  return static_cast<int>(vectors < p.threads ? (vectors > 0 ? vectors : 1) : p.threads);
}

// Calls visit(Constant<Vectors>, first_sample, samples) for every tile of a partition, tiles as even as can be.
template <class Real, class Visit>
void for_each_tile(const Problem& p, int partition, int partitions, Visit&& visit) {
  const int64_t vectors = (p.batch + kLanes<Real> - 1) / kLanes<Real>;
  const int64_t begin = vectors * partition / partitions, end = vectors * (partition + 1) / partitions;
  const int64_t tiles = (end - begin + kTileVectors - 1) / kTileVectors;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t from = begin + (end - begin) * tile / tiles, to = begin + (end - begin) * (tile + 1) / tiles;
    const int64_t first = from * kLanes<Real>, last = to * kLanes<Real>;
    const int samples = static_cast<int>((last < p.batch ? last : p.batch) - first);
    switch (to - from) {
      case 1:
        visit(Constant<1>{}, first, samples);
        break;
      case 2:
        visit(Constant<2>{}, first, samples);
        break;
      default:
        visit(Constant<3>{}, first, samples);
    }
  }
}
static_assert(kTileVectors == 3, "for_each_tile lists the tile sizes");

// Rows of a (batch, columns) tensor into a feature-major tile; lanes without a sample are zero. Null reads as zero.
template <class Real, int Vectors>
void load_tile(const void* tensor, int64_t first, int samples, int columns, Real* tile) {
  const Real* source = static_cast<const Real*>(tensor) + (tensor == nullptr ? 0 : first * columns);
  for (int c = 0; c < columns; ++c) {
    Real* row = tile + c * kTile<Real>;
    const int count = tensor == nullptr ? 0 : samples;
    for (int i = 0; i < count; ++i) row[i] = source[static_cast<ptrdiff_t>(i) * columns + c];
    for (int i = count; i < Vectors * kLanes<Real>; ++i) row[i] = 0;
  }
}

template <class Real>
void store_tile(void* tensor, int64_t first, int samples, int columns, const Real* tile) {
  Real* out = static_cast<Real*>(tensor) + first * columns;
  for (int i = 0; i < samples; ++i) {
    for (int c = 0; c < columns; ++c) out[static_cast<ptrdiff_t>(i) * columns + c] = tile[c * kTile<Real> + i];
  }
}

template <class Real, int Vectors, class Function>
JKOFLOW_INLINE void for_each_vector(int rows, Function&& function) {
  for (int i = 0; i < rows; ++i) {
    JKOFLOW_UNROLL
    for (int j = 0; j < Vectors; ++j) function(i * kTile<Real> + j * kLanes<Real>);
  }
}

// ---- Runge-Kutta steps of one tile

template <class Real>
struct Grid {
  Real dt;
  explicit Grid(const Problem& p) : dt(static_cast<Real>((p.t1 - p.t0) / p.num_steps)) {}
  Real time(const Problem& p, int step, int stage) const {
    return static_cast<Real>(p.t0 + (step + p.tableau.c[stage]) * ((p.t1 - p.t0) / p.num_steps));
  }
};

// Writes x + dt sum_j a_ij k_j into the stage's input rows.
template <class Real, int Vectors>
void set_stage_input(const Problem& p, const ForwardSpace<Real>& space, Real* input, Real dt, int stage) {
  Real weight[kMaxStages];
  for (int j = 0; j < stage; ++j) weight[j] = dt * static_cast<Real>(p.tableau.a[stage][j]);
  for_each_vector<Real, Vectors>(p.dim, [&](int at) {
    Vector<Real> v = load(space.x + at);
    for (int j = 0; j < stage; ++j) {
      if (weight[j] != 0) v += weight[j] * load(space.velocity[j] + at);
    }
    store<Real>(input + at, v);
  });
}

// All stages of one step from space.x, without moving it. Adds the weighted divergences to logdet.
template <class Real, int Vectors, Keep K>
void evaluate_stages(const Problem& p, const Network<Real>& net, const ForwardSpace<Real>& space,
                     const Stage<Real>* stage, const Grid<Real>& grid, int step, Vector<Real> (&logdet)[Vectors]) {
  for (int s = 0; s < p.tableau.stages; ++s) {
    set_stage_input<Real, Vectors>(p, space, stage[s].input, grid.dt, s);
    Vector<Real> divergence[Vectors];
    forward_stage<Real, Vectors, K>(net, grid.time(p, step, s), stage[s], space, space.velocity[s], divergence);
    const Real weight = grid.dt * static_cast<Real>(p.tableau.b[s]);
    for (int j = 0; j < Vectors; ++j) logdet[j] += weight * divergence[j];
  }
}

// Moves space.x to the end of the step whose stages have been evaluated.
template <class Real, int Vectors>
void advance(const Problem& p, const ForwardSpace<Real>& space, const Grid<Real>& grid) {
  for_each_vector<Real, Vectors>(p.dim, [&](int at) {
    Vector<Real> v = load(space.x + at);
    for (int s = 0; s < p.tableau.stages; ++s) {
      v += (grid.dt * static_cast<Real>(p.tableau.b[s])) * load(space.velocity[s] + at);
    }
    store<Real>(space.x + at, v);
  });
}

// What stays the same for all stages of a tile: the context rows of every stage's input, and the probe.
template <class Real, int Vectors>
void load_constants(const Problem& p, const Network<Real>& net, const ForwardSpace<Real>& space, int steps,
                    int64_t first, int samples) {
  if (net.probed) {
    load_tile<Real, Vectors>(p.noise, first, samples, p.dim, space.tangent.noise);
    load_tile<Real, Vectors>(nullptr, first, samples, p.context_dim, space.tangent.noise + p.dim * kTile<Real>);
    start_probe<Real, Vectors>(net, space.tangent);
  }
  for (int s = 0; s < steps * p.tableau.stages; ++s) {
    load_tile<Real, Vectors>(p.context, first, samples, p.context_dim, space.stage[s].input + p.dim * kTile<Real>);
  }
}

template <class Real>
void* path_at(const Problem& p, int step) {
  return static_cast<Real*>(p.path) + static_cast<int64_t>(step) * p.batch * p.dim;
}

template <class Real, int Vectors>
void forward_tile(const Problem& p, const Network<Real>& net, const ForwardSpace<Real>& space, int64_t first,
                  int samples) {
  const Grid<Real> grid(p);
  load_tile<Real, Vectors>(p.x, first, samples, p.dim, space.x);
  load_constants<Real, Vectors>(p, net, space, 1, first, samples);
  Vector<Real> logdet[Vectors] = {};
  for (int step = 0; step < p.num_steps; ++step) {
    if (p.path != nullptr) store_tile<Real>(path_at<Real>(p, step), first, samples, p.dim, space.x);
    evaluate_stages<Real, Vectors, Keep::kNothing>(p, net, space, space.stage, grid, step, logdet);
    advance<Real, Vectors>(p, space, grid);
  }
  store_tile<Real>(p.x_end, first, samples, p.dim, space.x);
  if (p.path != nullptr) store_tile<Real>(path_at<Real>(p, p.num_steps), first, samples, p.dim, space.x);
  Real* out = static_cast<Real*>(p.logdet) + first;
  for (int i = 0; i < samples; ++i) out[i] = logdet[i / kLanes<Real>][i % kLanes<Real>];
}

// Adds rows of a cotangent, if there is one, to a tile.
template <class Real>
void add_cotangent(const void* tensor, int64_t first, int samples, int columns, Real* tile) {
  if (tensor == nullptr) return;
  const Real* source = static_cast<const Real*>(tensor) + first * columns;
  for (int c = 0; c < columns; ++c) {
    for (int i = 0; i < samples; ++i) tile[c * kTile<Real> + i] += source[static_cast<ptrdiff_t>(i) * columns + c];
  }
}

// The adjoint of one step whose stages are kept: x_bar at the step's end becomes x_bar at its start. Adds to logdet
// what evaluate_stages left out.
template <class Real, int Vectors, Keep K>
void backward_step(const Problem& p, const Network<Real>& net, const ForwardSpace<Real>& space,
                   const Stage<Real>* stage, BackwardSpace<Real>& work, const Grid<Real>& grid, int step,
                   const Vector<Real> (&logdet_bar)[Vectors], Vector<Real> (&logdet)[Vectors], bool parameters) {
  const Tableau& tableau = p.tableau;
  for (int s = tableau.stages - 1; s >= 0; --s) {
    const Real weight = grid.dt * static_cast<Real>(tableau.b[s]);
    Real later[kMaxStages];
    for (int j = s + 1; j < tableau.stages; ++j) later[j] = grid.dt * static_cast<Real>(tableau.a[j][s]);
    Real* velocity_bar = work.velocity_bar + static_cast<ptrdiff_t>(s) * net.dim * kTile<Real>;
    for_each_vector<Real, Vectors>(p.dim, [&](int at) {
      Vector<Real> v = weight * load(work.x_bar + at);
      for (int j = s + 1; j < tableau.stages; ++j) {
        if (later[j] != 0) v += later[j] * load(work.input_bar[j] + at);
      }
      store<Real>(velocity_bar + at, v);
    });
    Vector<Real> divergence_bar[Vectors], divergence[Vectors] = {};
    for (int j = 0; j < Vectors; ++j) divergence_bar[j] = weight * logdet_bar[j];
    backward_stage<Real, Vectors, K>(net, grid.time(p, step, s), stage[s], space, work, s, divergence_bar, divergence,
                                     parameters);
    for (int j = 0; j < Vectors; ++j) logdet[j] += weight * divergence[j];
  }
  for (int s = 0; s < tableau.stages; ++s) {
    for_each_vector<Real, Vectors>(p.dim, [&](int at) { add_to<Real>(work.x_bar + at, load(work.input_bar[s] + at)); });
    for_each_vector<Real, Vectors>(p.context_dim, [&](int at) {
      add_to<Real>(work.context_bar + at, load(work.input_bar[s] + p.dim * kTile<Real> + at));
    });
  }
  if (parameters) accumulate_weights<Real, Vectors, K>(net, stage, work);
}

// Cotangents of a tile start at zero.
template <class Real, int Vectors>
void clear_tile(const Problem& p, const Network<Real>& net, const BackwardSpace<Real>& work) {
  load_tile<Real, Vectors>(nullptr, 0, 0, p.dim, work.x_bar);
  load_tile<Real, Vectors>(nullptr, 0, 0, p.context_dim, work.context_bar);
  if (!net.probed) return;
  load_tile<Real, Vectors>(nullptr, 0, 0, net.padded[0], work.tangent.seed_bar);
  load_tile<Real, Vectors>(nullptr, 0, 0, net.padded[net.top()], work.tangent.weighing_bar);
}

// Ends the adjoint of a tile.
template <class Real, int Vectors>
void store_gradients(const Problem& p, const Adjoint& adjoint, const Network<Real>& net, const Tangent<Real>& tangent,
                     BackwardSpace<Real>& work, int64_t first, int samples) {
  if (net.probed && adjoint.weight[0] != nullptr) {
    accumulate_probe<Real, Vectors>(net, tangent, work);
  }
  if (adjoint.x != nullptr) store_tile<Real>(adjoint.x, first, samples, p.dim, work.x_bar);
  if (adjoint.context != nullptr) store_tile<Real>(adjoint.context, first, samples, p.context_dim, work.context_bar);
}

template <class Real, int Vectors, Keep K>
void backward_tile(const Problem& p, const Adjoint& adjoint, const Network<Real>& net, const ForwardSpace<Real>& space,
                   BackwardSpace<Real>& work, int64_t first, int samples) {
  const Grid<Real> grid(p);
  const bool parameters = adjoint.weight[0] != nullptr;
  clear_tile<Real, Vectors>(p, net, work);
  add_cotangent<Real>(adjoint.x_end, first, samples, p.dim, work.x_bar);
  load_constants<Real, Vectors>(p, net, space, 1, first, samples);
  const auto path_bar = [&](int step) -> const void* {
    if (adjoint.path == nullptr) return nullptr;
    return static_cast<const Real*>(adjoint.path) + static_cast<int64_t>(step) * p.batch * p.dim;
  };
  add_cotangent<Real>(path_bar(p.num_steps), first, samples, p.dim, work.x_bar);
  Vector<Real> logdet_bar[Vectors] = {}, unused[Vectors];
  if (adjoint.logdet != nullptr) {
    const Real* source = static_cast<const Real*>(adjoint.logdet) + first;
    for (int i = 0; i < samples; ++i) logdet_bar[i / kLanes<Real>][i % kLanes<Real>] = source[i];
  }
  for (int step = p.num_steps - 1; step >= 0; --step) {
    load_tile<Real, Vectors>(path_at<Real>(p, step), first, samples, p.dim, space.x);
    for (int j = 0; j < Vectors; ++j) unused[j] = Vector<Real>{};
    evaluate_stages<Real, Vectors, K>(p, net, space, space.stage, grid, step, unused);
    backward_step<Real, Vectors, K>(p, net, space, space.stage, work, grid, step, logdet_bar, unused, parameters);
    add_cotangent<Real>(path_bar(step), first, samples, p.dim, work.x_bar);
  }
  store_gradients<Real, Vectors>(p, adjoint, net, space.tangent, work, first, samples);
}

// Value and gradient of the JKO objective on one tile. The stages of `kept_steps` steps are kept: all of them, or, for
// very many, those of one step at a time, which are then recomputed from the tile's own path.
template <class Real, int Vectors, Keep K>
void jko_loss_tile(const Problem& p, const JkoLoss& loss, const Adjoint& adjoint, const Network<Real>& net,
                   const ForwardSpace<Real>& space, BackwardSpace<Real>& work, int kept_steps, Real* path,
                   double* terms, int64_t first, int samples) {
  const Grid<Real> grid(p);
  const bool keep_all = kept_steps == p.num_steps;
  const ptrdiff_t tile = p.dim * kTile<Real>;
  const auto stages_of = [&](int step) { return space.stage + (keep_all ? step * p.tableau.stages : 0); };
  clear_tile<Real, Vectors>(p, net, work);
  load_tile<Real, Vectors>(p.x, first, samples, p.dim, space.x);
  load_constants<Real, Vectors>(p, net, space, kept_steps, first, samples);
  Vector<Real> logdet[Vectors] = {}, unused[Vectors] = {};
  for (int step = 0; step < p.num_steps; ++step) {
    std::memcpy(path + step * tile, space.x, sizeof(Real) * tile);
    evaluate_stages<Real, Vectors, K>(p, net, space, stages_of(step), grid, step, logdet);
    advance<Real, Vectors>(p, space, grid);
  }

  // Terms, and the cotangents at the end; those of lanes without a sample stay zero.
  const double mean = 1.0 / static_cast<double>(p.batch), half_inverse_h = 0.5 / loss.step_size;
  Vector<Real> logdet_bar[Vectors] = {};
  for (int i = 0; i < samples; ++i) {
    double norm = 0, movement = 0;
    for (int c = 0; c < p.dim; ++c) {
      const Real y = space.x[c * kTile<Real> + i], moved = y - path[c * kTile<Real> + i];
      norm += static_cast<double>(y) * y;
      movement += static_cast<double>(moved) * moved;
      work.x_bar[c * kTile<Real> + i] = static_cast<Real>(mean) * (y + static_cast<Real>(2 * half_inverse_h) * moved);
    }
    terms[0] += 0.5 * norm;
    terms[2] += half_inverse_h * movement;
    logdet_bar[i / kLanes<Real>][i % kLanes<Real>] = static_cast<Real>(-mean);
  }
  if (adjoint.x != nullptr) {  // the penalty's own gradient, before x_bar is carried back: keep it in x's place
    for (ptrdiff_t at = 0; at < tile; ++at) {
      space.x[at] = static_cast<Real>(-2 * half_inverse_h * mean) * (space.x[at] - path[at]);
    }
  }

  const bool parameters = adjoint.weight[0] != nullptr;
  for (int step = p.num_steps - 1; step >= 0; --step) {
    if (!keep_all) {
      const ForwardSpace<Real> from_path = space.at(path + step * tile);
      evaluate_stages<Real, Vectors, K>(p, net, from_path, space.stage, grid, step, unused);
    }
    backward_step<Real, Vectors, K>(p, net, space, stages_of(step), work, grid, step, logdet_bar, logdet, parameters);
  }
  for (int i = 0; i < samples; ++i) terms[1] -= logdet[i / kLanes<Real>][i % kLanes<Real>];
  if (adjoint.x != nullptr) {
    for_each_vector<Real, Vectors>(p.dim, [&](int at) { add_to<Real>(work.x_bar + at, load(space.x + at)); });
  }
  store_gradients<Real, Vectors>(p, adjoint, net, space.tangent, work, first, samples);
}

// ---- Gradients of all partitions into the output tensors, in a fixed order; rows are shared among the threads.

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

  void linear(int part, int parts) const {
    for (int i = part; net_.has_linear && i < net_.dim; i += parts) {
      for (int k = 0; k < net_.dim; ++k) {
        out(adjoint_.linear)[static_cast<ptrdiff_t>(i) * net_.dim + k] =
            narrow_total(results_[0].work.sums.linear, net_.inputs, i, k);
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
        for (int k = 0; k < net_.width[0]; ++k) {
          const Real m_grad = total(sums.coupling + m * width + k);
          w2_grad[k] += m_grad * product[k];
          product[k] = m_grad * w2[k];
        }
        for (int k = net_.width[0]; k < width; ++k) product[k] = 0;
      }
      for (int i = 0; i < net_.dim; ++i) {
        Real sum = narrow_total(sums.last, net_.dim, m, i);
        if (product != nullptr) sum += dot(product, net_.first_columns + i * width, net_.padded[0]);
        if (net_.closed && net_.hidden == 1) sum += coupling_total(m) * first_weight(m, i);
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
        for (int k = 0; k < net_.inputs; ++k) {
          row[k < p_.dim || !p_.time ? k : k + 1] = narrow_total(sums.weights[0], net_.inputs, a, k);
        }
        if (p_.time) row[p_.dim] = total_lanes(sums.time + a * kLanes<Real>);
        for (int i = 0; net_.closed && net_.hidden == 1 && i < net_.dim; ++i) {
          row[i] += coupling_total(a) * w_last[static_cast<ptrdiff_t>(i) * net_.width[0] + a];
        }
        for (int i = 0; sums.first_tangent != nullptr && i < net_.dim; ++i) {
          row[i] += tangent_total(sums.first_tangent, net_.padded[0], i, a);
        }
      }
      for (int i = 0; net_.product_grad != nullptr && i < net_.dim; ++i) {
        Vector<Real> sum{};
        for (int m = 0; m < net_.width[1]; ++m) {
          sum += w_last[static_cast<ptrdiff_t>(i) * net_.width[1] + m] *
                 load(net_.product_grad + static_cast<ptrdiff_t>(m) * net_.padded[0] + block);
        }
        for (int a = block; a < end; ++a) {
          out(adjoint_.weight[0])[static_cast<ptrdiff_t>(a) * p_.input_columns() + i] += sum[a - block];
        }
      }
    }
  }

  // Row m of the gradient of hidden layer l, l >= 1.
  void copy_row(int l, int m) const {
    const Real* source = results_[0].work.sums.weights[l] + static_cast<ptrdiff_t>(m) * net_.padded[l - 1];
    Real* target = out(adjoint_.weight[l]) + static_cast<ptrdiff_t>(m) * net_.width[l - 1];
    for (int k = 0; k < net_.width[l - 1]; ++k) target[k] = total(source + k);
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
  Real coupling_total(int a) const { return total_lanes(results_[0].work.sums.coupling + a * kLanes<Real>); }

  static Real dot(const Real* a, const Real* b, int count) {
    Vector<Real> sum{};
    for (int k = 0; k < count; k += kLanes<Real>) sum += load(a + k) * load(b + k);
    return lane_sum<Real>(sum);
  }

  static Real* out(void* tensor) { return static_cast<Real*>(tensor); }

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

// ---- Entry points. Memory: the packed network, then one workspace for each partition.

template <class Real>
size_t forward_bytes(const Problem& p) {
  Arena network(nullptr), space(nullptr);
  const Network<Real> net(p, network, false);
  ForwardSpace<Real>(net, p.tableau.stages, 1, Keep::kNothing, space);
  return network.used() + space.used() * partition_count<Real>(p);
}

template <class Real>
void forward(const Problem& p, char* memory) {
  Arena arena(memory);
  const Network<Real> net(p, arena, false);
  const int partitions = partition_count<Real>(p);
  Arena counted(nullptr);
  ForwardSpace<Real>(net, p.tableau.stages, 1, Keep::kNothing, counted);
  run_threads(partitions, [&](int thread, int threads) {
    [[maybe_unused]] const TileSession tiles;
    net.prepare(p, thread, threads, wait_for_threads);
    for (int i = thread; i < partitions; i += threads) {
      Arena own(memory + arena.used() + counted.used() * i);
      const ForwardSpace<Real> space(net, p.tableau.stages, 1, Keep::kNothing, own);
      for_each_tile<Real>(p, i, partitions, [&](auto vectors, int64_t first, int samples) {
        forward_tile<Real, decltype(vectors)::value>(p, net, space, first, samples);
      });
    }
  });
}

// What a partition of the adjoint or the loss works in.
template <class Real>
struct AdjointSpace {
  ForwardSpace<Real> forward;
  BackwardSpace<Real> backward;
  Real* path;  // the tile's own positions, for the loss
  AdjointSpace(const Problem& p, const Network<Real>& net, int kept_steps, bool with_path, Arena& arena)
      : forward(net, p.tableau.stages, kept_steps, keep_for_adjoint(net.activation), arena),
        backward(net, p.tableau.stages, arena),
        path(arena.take<Real>(with_path ? static_cast<ptrdiff_t>(p.num_steps) * p.dim * kTile<Real> : 0)) {}
};

// Memory and threads of the adjoint and of the loss, which differ in what they do with a tile.
template <class Real>
size_t adjoint_bytes(const Problem& p, int kept_steps, bool with_path) {
  Arena network(nullptr), space(nullptr);
  const Network<Real> net(p, network, true);
  AdjointSpace<Real>(p, net, kept_steps, with_path, space);
  const size_t partitions = partition_count<Real>(p);
  network.take<PartitionResult<Real>>(partitions);
  return network.used() + space.used() * partitions;
}

// run_tile(net, space, terms, Constant<Vectors>, Constant<keep>, first, samples) treats each tile.
template <class Real, class RunTile>
void run_adjoint(const Problem& p, const Adjoint& adjoint, int kept_steps, bool with_path, double* terms, char* memory,
                 RunTile&& run_tile) {
  Arena arena(memory);
  const Network<Real> net(p, arena, true);
  const int partitions = partition_count<Real>(p);
  PartitionResult<Real>* results = arena.take<PartitionResult<Real>>(partitions);
  Arena counted(nullptr);
  AdjointSpace<Real>(p, net, kept_steps, with_path, counted);
  const Reduction<Real> reduction(p, adjoint, net, results, partitions);
  run_threads(partitions, [&](int thread, int threads) {
    [[maybe_unused]] const TileSession tiles;
    net.prepare(p, thread, threads, wait_for_threads);
    for (int i = thread; i < partitions; i += threads) {
      Arena own(memory + arena.used() + counted.used() * i);
      AdjointSpace<Real> space(p, net, kept_steps, with_path, own);
      space.backward.clear();
      results[i] = {space.backward, {}};
      for_each_tile<Real>(p, i, partitions, [&](auto vectors, int64_t first, int samples) {
        const auto run = [&](auto keep) { run_tile(net, space, results[i].terms, vectors, keep, first, samples); };
        if (keep_for_adjoint(net.activation) == Keep::kValues) {
          run(Constant<static_cast<int>(Keep::kValues)>{});
        } else {
          run(Constant<static_cast<int>(Keep::kJets)>{});
        }
      });
    }
    wait_for_threads();
    if (adjoint.weight[0] != nullptr) reduction.run(thread, threads);
  });
  for (int k = 0; terms != nullptr && k < 3; ++k) {
    double sum = 0;
    for (int i = 0; i < partitions; ++i) sum += results[i].terms[k];
    terms[k] = sum / static_cast<double>(p.batch);
  }
}

template <class Real>
size_t backward_bytes(const Problem& p) {
  return adjoint_bytes<Real>(p, 1, false);
}

template <class Real>
void backward(const Problem& p, const Adjoint& adjoint, char* memory) {
  run_adjoint<Real>(p, adjoint, 1, false, nullptr, memory,
                    [&](const Network<Real>& net, AdjointSpace<Real>& space, double*, auto vectors, auto keep,
                        int64_t first, int samples) {
                      constexpr Keep kKeep = static_cast<Keep>(decltype(keep)::value);
                      backward_tile<Real, decltype(vectors)::value, kKeep>(p, adjoint, net, space.forward,
                                                                           space.backward, first, samples);
                    });
}

// Steps whose stages the loss keeps: all, unless that takes more than 64 MiB a thread; memory traffic is cheaper than
// the third of the work that recomputing costs, even beyond the caches.
template <class Real>
int kept_steps(const Problem& p) {
  Arena network(nullptr), one(nullptr), two(nullptr);
  const Network<Real> net(p, network, true);
  const Keep keep = keep_for_adjoint(net.activation);
  ForwardSpace<Real>(net, p.tableau.stages, 1, keep, one);
  ForwardSpace<Real>(net, p.tableau.stages, 2, keep, two);
  return (two.used() - one.used()) * p.num_steps <= (size_t{64} << 20) ? p.num_steps : 1;
}

template <class Real>
size_t jko_loss_bytes(const Problem& p) {
  return adjoint_bytes<Real>(p, kept_steps<Real>(p), true);
}

template <class Real>
void jko_loss(const Problem& p, const JkoLoss& loss, const Adjoint& adjoint, char* memory) {
  const int kept = kept_steps<Real>(p);
  run_adjoint<Real>(p, adjoint, kept, true, loss.terms, memory,
                    [&](const Network<Real>& net, AdjointSpace<Real>& space, double* terms, auto vectors, auto keep,
                        int64_t first, int samples) {
                      constexpr Keep kKeep = static_cast<Keep>(decltype(keep)::value);
                      jko_loss_tile<Real, decltype(vectors)::value, kKeep>(p, loss, adjoint, net, space.forward,
                                                                           space.backward, kept, space.path, terms,
                                                                           first, samples);
                    });
}

#define JKOFLOW_TEXT_(x) #x
#define JKOFLOW_TEXT(x) JKOFLOW_TEXT_(x)

}  // namespace

extern const CpuKernels kKernels;
const CpuKernels kKernels = {
    JKOFLOW_TEXT(JKOFLOW_ISA),
    [](const Problem& p) { return p.float64 ? forward_bytes<double>(p) : forward_bytes<float>(p); },
    [](const Problem& p) { return p.float64 ? backward_bytes<double>(p) : backward_bytes<float>(p); },
    [](const Problem& p) { return p.float64 ? jko_loss_bytes<double>(p) : jko_loss_bytes<float>(p); },
    [](const Problem& p, char* memory) { p.float64 ? forward<double>(p, memory) : forward<float>(p, memory); },
    [](const Problem& p, const Adjoint& adjoint, char* memory) {
      p.float64 ? backward<double>(p, adjoint, memory) : backward<float>(p, adjoint, memory);
    },
    [](const Problem& p, const JkoLoss& loss, const Adjoint& adjoint, char* memory) {
      p.float64 ? jko_loss<double>(p, loss, adjoint, memory) : jko_loss<float>(p, loss, adjoint, memory);
    },
};

}  // namespace jkoflow::JKOFLOW_ISA
