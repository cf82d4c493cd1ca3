// Whole integrations on one instruction set: tiles over threads, Runge-Kutta steps over tiles, and the exact adjoint.
#include "block.h"
#include "kernels.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace jkoflow::JKOFLOW_ISA {
namespace {

template <class Function>
void run_threads(int threads, Function&& function) {
#ifdef _OPENMP
#pragma omp parallel num_threads(threads)
  function(omp_get_thread_num(), omp_get_num_threads());
#else
  (void)threads;
  function(0, 1);
#endif
}

inline void wait_for_threads() {
#ifdef _OPENMP
#pragma omp barrier
#endif
}

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
  Real t0, dt;
  explicit Grid(const Problem& p)
      : t0(static_cast<Real>(p.t0)), dt(static_cast<Real>((p.t1 - p.t0) / p.num_steps)) {}
  Real time(const Problem& p, int step, int stage) const {
    return static_cast<Real>(p.t0 + (step + p.tableau.c[stage]) * ((p.t1 - p.t0) / p.num_steps));
  }
};

// Writes x + dt sum_j a_ij k_j into the stage's input rows.
template <class Real, int Vectors>
void set_stage_input(const Problem& p, const ForwardSpace<Real>& space, Real dt, int stage) {
  Real weight[kMaxStages];
  for (int j = 0; j < stage; ++j) weight[j] = dt * static_cast<Real>(p.tableau.a[stage][j]);
  for_each_vector<Real, Vectors>(p.dim, [&](int at) {
    Vector<Real> v = load(space.x + at);
    for (int j = 0; j < stage; ++j) {
      if (weight[j] != 0) v += weight[j] * load(space.velocity[j] + at);
    }
    store<Real>(space.stage[stage].input + at, v);
  });
}

// All stages of one step from space.x, without moving it. Adds the weighted divergences to logdet.
template <class Real, int Vectors, bool Keep>
void evaluate_stages(const Problem& p, const Network<Real>& net, const ForwardSpace<Real>& space, const Grid<Real>& grid,
                     int step, Vector<Real> (&logdet)[Vectors]) {
  for (int s = 0; s < p.tableau.stages; ++s) {
    set_stage_input<Real, Vectors>(p, space, grid.dt, s);
    Vector<Real> divergence[Vectors];
    forward_stage<Real, Vectors, Keep>(net, grid.time(p, step, s), space.stage[s], space.bias, space.velocity[s],
                                       divergence);
    const Real weight = grid.dt * static_cast<Real>(p.tableau.b[s]);
    for (int j = 0; j < Vectors; ++j) logdet[j] += weight * divergence[j];
  }
}

// The context rows of every stage's input.
template <class Real, int Vectors>
void load_context(const Problem& p, const ForwardSpace<Real>& space, int64_t first, int samples) {
  for (int s = 0; s < p.tableau.stages; ++s) {
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
  load_context<Real, Vectors>(p, space, first, samples);
  Vector<Real> logdet[Vectors] = {};
  for (int step = 0; step < p.num_steps; ++step) {
    if (p.path != nullptr) store_tile<Real>(path_at<Real>(p, step), first, samples, p.dim, space.x);
    evaluate_stages<Real, Vectors, false>(p, net, space, grid, step, logdet);
    for_each_vector<Real, Vectors>(p.dim, [&](int at) {
      Vector<Real> v = load(space.x + at);
      for (int s = 0; s < p.tableau.stages; ++s) {
        v += (grid.dt * static_cast<Real>(p.tableau.b[s])) * load(space.velocity[s] + at);
      }
      store<Real>(space.x + at, v);
    });
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

// The adjoint of one step whose stages are kept in space.stage: x_bar at the step's end becomes x_bar at its start.
template <class Real, int Vectors>
void backward_step(const Problem& p, const Network<Real>& net, const ForwardSpace<Real>& space,
                   BackwardSpace<Real>& work, const Grid<Real>& grid, int step,
                   const Vector<Real> (&logdet_bar)[Vectors], bool parameters) {
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
    Vector<Real> divergence_bar[Vectors];
    for (int j = 0; j < Vectors; ++j) divergence_bar[j] = weight * logdet_bar[j];
    backward_stage<Real, Vectors>(net, grid.time(p, step, s), space.stage[s], work, s, divergence_bar, parameters);
  }
  for (int s = 0; s < tableau.stages; ++s) {
    for_each_vector<Real, Vectors>(p.dim, [&](int at) { add_to<Real>(work.x_bar + at, load(work.input_bar[s] + at)); });
    for_each_vector<Real, Vectors>(p.context_dim, [&](int at) {
      add_to<Real>(work.context_bar + at, load(work.input_bar[s] + p.dim * kTile<Real> + at));
    });
  }
  if (parameters) accumulate_weights<Real>(net, space.stage, work, Vectors * kLanes<Real>);
}

template <class Real, int Vectors>
void backward_tile(const Problem& p, const Adjoint& adjoint, const Network<Real>& net, const ForwardSpace<Real>& space,
                   BackwardSpace<Real>& work, int64_t first, int samples) {
  const Grid<Real> grid(p);
  const bool parameters = adjoint.weight[0] != nullptr;
  load_tile<Real, Vectors>(adjoint.x_end, first, samples, p.dim, work.x_bar);
  load_tile<Real, Vectors>(nullptr, first, samples, p.context_dim, work.context_bar);
  load_context<Real, Vectors>(p, space, first, samples);
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
    evaluate_stages<Real, Vectors, true>(p, net, space, grid, step, unused);
    backward_step<Real, Vectors>(p, net, space, work, grid, step, logdet_bar, parameters);
    add_cotangent<Real>(path_bar(step), first, samples, p.dim, work.x_bar);
  }
  store_tile<Real>(adjoint.x, first, samples, p.dim, work.x_bar);
  if (adjoint.context != nullptr) store_tile<Real>(adjoint.context, first, samples, p.context_dim, work.context_bar);
}

// ---- Gradients of all partitions into the output tensors, in a fixed order; rows are shared among the threads.

template <class Real>
class Reduction {
 public:
  Reduction(const Problem& p, const Adjoint& adjoint, const Network<Real>& net, const BackwardSpace<Real>* work,
            int partitions)
      : p_(p), adjoint_(adjoint), net_(net), work_(work), partitions_(partitions) {}

  void run(int part, int parts) const {
    const int top = net_.hidden - 1, stride = p_.dim + (p_.time ? 1 : 0) + p_.context_dim;
    const GradientSums<Real>& sums = work_[0].sums;
    for (int i = part; i < net_.width[0]; i += parts) {
      Real* row = out(adjoint_.weight[0]) + static_cast<ptrdiff_t>(i) * stride;
      for (int k = 0; k < net_.inputs; ++k) {
        row[k < p_.dim || !p_.time ? k : k + 1] = total(sums.first + static_cast<ptrdiff_t>(i) * sums.first_columns + k);
      }
      if (p_.time) row[p_.dim] = total_lanes(sums.time + i * kLanes<Real>);
      if (net_.exact && net_.hidden == 1) out(adjoint_.coupling)[i] = total_lanes(sums.coupling + i * kLanes<Real>);
    }
    for (int l = 0; l < net_.hidden; ++l) {
      for (int i = part; i < net_.width[l]; i += parts) {
        out(adjoint_.bias[l])[i] = total_lanes(sums.bias[l] + i * kLanes<Real>);
      }
    }
    if (net_.hidden == 2) {
      copy(sums.middle, net_.width[1], net_.width[0], net_.padded[0], out(adjoint_.weight[1]), part, parts);
      if (net_.exact) copy(sums.coupling, net_.width[1], net_.width[0], net_.padded[0], out(adjoint_.coupling), part, parts);
    }
    if (net_.has_linear) copy(sums.linear, net_.dim, net_.dim, sums.first_columns, out(adjoint_.linear), part, parts);
    for (int i = part; i < net_.dim; i += parts) {
      for (int k = 0; k < net_.width[top]; ++k) {
        out(adjoint_.weight[net_.hidden])[static_cast<ptrdiff_t>(i) * net_.width[top] + k] =
            total(sums.last + static_cast<ptrdiff_t>(k) * sums.last_columns + i);
      }
      out(adjoint_.bias[net_.hidden])[i] = total_lanes(sums.bias_last + i * kLanes<Real>);
    }
  }

 private:
  static Real* out(void* tensor) { return static_cast<Real*>(tensor); }

  // The element's sum over partitions, whose sums all lie at the same offset.
  Real total(const Real* element) const {
    const ptrdiff_t offset = element - work_[0].sums.begin;
    Real sum = *element;
    for (int i = 1; i < partitions_; ++i) sum += work_[i].sums.begin[offset];
    return sum;
  }
  Real total_lanes(const Real* lanes) const {
    Real sum = 0;
    for (int i = 0; i < kLanes<Real>; ++i) sum += total(lanes + i);
    return sum;
  }
  void copy(const Real* source, int rows, int columns, int stride, Real* target, int part, int parts) const {
    for (int i = part; i < rows; i += parts) {
      for (int k = 0; k < columns; ++k) {
        target[static_cast<ptrdiff_t>(i) * columns + k] = total(source + static_cast<ptrdiff_t>(i) * stride + k);
      }
    }
  }

  const Problem& p_;
  const Adjoint& adjoint_;
  const Network<Real>& net_;
  const BackwardSpace<Real>* work_;
  int partitions_;
};

// ---- Entry points. Memory: the packed network, then one workspace for each partition.

template <class Real>
size_t forward_bytes(const Problem& p) {
  Arena network(nullptr), space(nullptr);
  const Network<Real> net(p, network, false);
  ForwardSpace<Real>(net, p.tableau.stages, space, false);
  return network.used() + space.used() * partition_count<Real>(p);
}

template <class Real>
void forward(const Problem& p, char* memory) {
  Arena arena(memory);
  const Network<Real> net(p, arena, false);
  const int partitions = partition_count<Real>(p);
  Arena counted(nullptr);
  ForwardSpace<Real>(net, p.tableau.stages, counted, false);
  run_threads(partitions, [&](int thread, int threads) {
    net.pack_weights(p, false, thread, threads);
    wait_for_threads();
    for (int i = thread; i < partitions; i += threads) {
      Arena own(memory + arena.used() + counted.used() * i);
      const ForwardSpace<Real> space(net, p.tableau.stages, own, false);
      for_each_tile<Real>(p, i, partitions, [&](auto vectors, int64_t first, int samples) {
        forward_tile<Real, decltype(vectors)::value>(p, net, space, first, samples);
      });
    }
  });
}

// Both workspaces of one partition of the adjoint.
template <class Real>
struct AdjointSpace {
  ForwardSpace<Real> forward;
  BackwardSpace<Real> backward;
  AdjointSpace(const Network<Real>& net, int stages, Arena& arena)
      : forward(net, stages, arena, true), backward(net, stages, arena) {}
};

template <class Real>
size_t backward_bytes(const Problem& p) {
  Arena network(nullptr), space(nullptr);
  const Network<Real> net(p, network, true);
  AdjointSpace<Real>(net, p.tableau.stages, space);
  const size_t partitions = partition_count<Real>(p);
  network.take<BackwardSpace<Real>>(partitions);
  return network.used() + space.used() * partitions;
}

template <class Real>
void backward(const Problem& p, const Adjoint& adjoint, char* memory) {
  Arena arena(memory);
  const Network<Real> net(p, arena, true);
  const int partitions = partition_count<Real>(p);
  BackwardSpace<Real>* work = arena.take<BackwardSpace<Real>>(partitions);
  Arena counted(nullptr);
  AdjointSpace<Real>(net, p.tableau.stages, counted);
  const Reduction<Real> reduction(p, adjoint, net, work, partitions);
  run_threads(partitions, [&](int thread, int threads) {
    net.pack_weights(p, true, thread, threads);
    wait_for_threads();
    for (int i = thread; i < partitions; i += threads) {
      Arena own(memory + arena.used() + counted.used() * i);
      AdjointSpace<Real> space(net, p.tableau.stages, own);
      std::memset(space.backward.sums.begin, 0, sizeof(Real) * space.backward.sums.count);
      work[i] = space.backward;
      for_each_tile<Real>(p, i, partitions, [&](auto vectors, int64_t first, int samples) {
        backward_tile<Real, decltype(vectors)::value>(p, adjoint, net, space.forward, space.backward, first, samples);
      });
    }
    wait_for_threads();
    if (adjoint.weight[0] != nullptr) reduction.run(thread, threads);
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
    [](const Problem& p, char* memory) { p.float64 ? forward<double>(p, memory) : forward<float>(p, memory); },
    [](const Problem& p, const Adjoint& adjoint, char* memory) {
      p.float64 ? backward<double>(p, adjoint, memory) : backward<float>(p, adjoint, memory);
    },
};

}  // namespace jkoflow::JKOFLOW_ISA
