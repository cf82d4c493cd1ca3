// Under ThreadSanitizer: no kernel of the CUDA backend has a race, and without any one of its block barriers it has.
//
//   races              every family of kernels; exits with 1 if there was a report
//   races mutate       leaves out each barrier in turn; exits with 1 if one was not missed
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <stdexcept>
#include <vector>

#include "barriers.h"
#include "emulated_runtime.h"
#include "emulator.h"
#include "launch.h"

namespace {

using namespace jkoflow;

// One family of kernels at a small size: odd sizes leave padding, and the one block has several tiles, a small one
// last.
struct Case {
  const char* name;
  cuda::Precision precision;
  std::vector<int> hidden;
  Divergence divergence;
  int dim;
};

const std::vector<Case> kCases = {
    {"closed form, 2 layers", cuda::Precision::kTf32x3, {50, 64}, Divergence::kExact, 3},
    {"closed form, 1 layer", cuda::Precision::kTf32, {40}, Divergence::kExact, 3},
    {"none, 2 layers", cuda::Precision::kTf32, {64, 33}, Divergence::kNone, 17},
    {"FMA, 2 layers", cuda::Precision::kFp32, {64, 64}, Divergence::kExact, 3},
    {"FMA, 1 layer", cuda::Precision::kFp32, {64}, Divergence::kExact, 2},
    {"FMA, many features", cuda::Precision::kFp32, {64}, Divergence::kExact, 17},
    {"tangents, 3 layers", cuda::Precision::kTf32, {64, 40, 64}, Divergence::kExact, 2},
    {"FMA tangents, 3 layers", cuda::Precision::kFp32, {64, 40, 64}, Divergence::kExact, 3},
    {"Hutchinson, 1 layer", cuda::Precision::kFp32, {64}, Divergence::kHutchinson, 3},
    {"Hutchinson, 2 layers", cuda::Precision::kFp32, {64, 64}, Divergence::kHutchinson, 3},
    {"Hutchinson, 3 layers", cuda::Precision::kFp32, {64, 64, 64}, Divergence::kHutchinson, 3},
    {"Hutchinson, 2 layers, tensor cores", cuda::Precision::kTf32, {64, 64}, Divergence::kHutchinson, 3},
    {"none, 3 layers", cuda::Precision::kFp32, {64, 64, 64}, Divergence::kNone, 2},
    {"closed form, sums in memory", cuda::Precision::kFp32, {256, 256}, Divergence::kExact, 2},
    {"tangents, sums in memory", cuda::Precision::kFp32, {256, 256, 256}, Divergence::kHutchinson, 2},
};

enum class Task { kForward, kBackward, kLoss, kEvaluation, kAdaptive };  // the last two with their adjoint

class Example {
 public:
  explicit Example(const Case& c) : precision_(c.precision) {
    problem_.batch = c.hidden[0] > 128 ? 17 : 42;
    problem_.dim = c.dim;
    problem_.context_dim = 1;
    problem_.time = true;
    problem_.divergence = c.divergence;
    problem_.num_steps = 2;
    problem_.tableau.stages = 2;  // Heun's method
    problem_.tableau.a[1][0] = 1.0;
    problem_.tableau.b[0] = problem_.tableau.b[1] = 0.5;
    problem_.tableau.c[1] = 1.0;
    problem_.hidden_layers = static_cast<int>(c.hidden.size());
    int inputs = problem_.input_columns();
    for (int l = 0; l <= problem_.hidden_layers; ++l) {
      const int outputs = l < problem_.hidden_layers ? c.hidden[l] : c.dim;
      if (l < problem_.hidden_layers) problem_.width[l] = outputs;
      problem_.weight[l] = numbers(outputs * inputs, 1.0f / inputs);
      problem_.bias[l] = numbers(outputs, 0.1f);
      adjoint_.weight[l] = numbers(outputs * inputs);
      adjoint_.bias[l] = numbers(outputs);
      inputs = outputs;
    }
    const int rows = static_cast<int>(problem_.batch) * c.dim;
    problem_.x = numbers(rows);
    problem_.context = numbers(problem_.batch);
    problem_.noise = c.divergence == Divergence::kHutchinson ? numbers(rows) : nullptr;
    problem_.linear = numbers(c.dim * c.dim, 0.1f);
    problem_.x_end = numbers(rows);
    problem_.logdet = numbers(problem_.batch);
    problem_.path = numbers(rows * (problem_.num_steps + 1));
    adjoint_.x_end = numbers(rows);
    adjoint_.logdet = numbers(problem_.batch);
    adjoint_.path = numbers(rows * (problem_.num_steps + 1));
    adjoint_.x = numbers(rows);
    adjoint_.context = numbers(problem_.batch);
    adjoint_.linear = numbers(c.dim * c.dim);
  }

  void run(Task task) {
    static double terms[3];
    const JkoLoss loss{0.5, terms};
    switch (task) {
      case Task::kForward:
        return cuda::forward(problem_, launch_for(problem_, cuda::Call::kForward));
      case Task::kBackward:
        return cuda::backward(problem_, adjoint_, launch_for(problem_, cuda::Call::kBackward));
      case Task::kLoss:
        return cuda::jko_loss(problem_, loss, adjoint_, launch_for(problem_, cuda::Call::kJkoLoss));
      case Task::kEvaluation:
        return evaluate();
      case Task::kAdaptive:
        return adapt();
    }
  }

 private:
  cuda::Launch launch_for(const Problem& problem, cuda::Call call) {
    cuda::Launch launch;
    launch.precision = precision_;
    launch.workspace = numbers(static_cast<int>(cuda::workspace_bytes(problem, call, launch) / sizeof(float)));
    return launch;
  }

  void evaluate() {
    Problem p = problem_;
    p.num_steps = p.tableau.stages = 1;
    p.tableau.b[0] = 1.0;
    p.row_times = true;
    p.times = numbers(p.batch);
    adjoint_.times = numbers(p.batch);
    cuda::evaluate(p, launch_for(p, cuda::Call::kEvaluate));
    cuda::evaluate_backward(p, adjoint_, launch_for(p, cuda::Call::kEvaluateBackward));
  }

  // Steps by Heun's and Euler's method, a few for each row, with outputs within.
  void adapt() {
    constexpr int kRoom = 40;
    Problem p = problem_;
    p.row_times = true;
    p.num_steps = 1;
    p.tableau.stages = 3;
    p.tableau.a[2][0] = p.tableau.a[2][1] = 0.5;
    p.tableau.c[2] = 1.0;
    Adaptive control;
    control.rtol = control.atol = 0.05;
    control.max_steps = kRoom;
    control.order = 2;
    control.error[0] = -0.5;
    control.error[1] = 0.5;
    control.dense[0][0] = 1.0;
    control.dense[0][1] = -0.5;
    control.dense[1][1] = 0.5;
    control.outputs = 2;
    control.x_outputs = numbers(2 * p.batch * p.dim);
    control.logdet_outputs = numbers(2 * p.batch);
    std::vector<double> times = {0.3, 0.7}, outcome(4 * p.batch);
    std::vector<int64_t> evaluations(p.batch), last_step(p.batch), begin(p.batch + 1);
    for (int64_t row = 0; row <= p.batch; ++row) begin[row] = kRoom * row;
    std::vector<double> records(begin.back() * StepRecord::bytes(p) / sizeof(double));
    control.evaluations = evaluations.data();
    control.last_step = last_step.data();
    cuda::RowBuffers rows;
    rows.output_times = times.data();
    rows.record_begin = begin.data();
    rows.records = reinterpret_cast<char*>(records.data());
    rows.record_count = begin.back();
    rows.outcome = outcome.data();
    cuda::adaptive(p, control, rows, launch_for(p, cuda::Call::kAdaptive));
    cuda::adaptive_backward(p, control, rows, adjoint_, launch_for(p, cuda::Call::kAdaptiveBackward));
    for (int64_t row = 0; row < p.batch; ++row) {
      if (outcome[4 * row] != 0.0) throw std::runtime_error("a row has not arrived");
    }
  }

  float* numbers(int64_t count, float scale = 1.0f) {
    auto* values = new std::vector<float>(count);  // never freed: addresses stay apart for the sanitizer
    std::normal_distribution<float> normal;
    for (float& v : *values) v = scale * normal(random_);
    return values->data();
  }

  std::mt19937 random_{1};
  cuda::Precision precision_;
  Problem problem_;
  Adjoint adjoint_;
};

const char* name_of(Task task) {
  constexpr const char* kNames[] = {"forward", "backward", "loss", "evaluation", "adaptive"};
  return kNames[static_cast<int>(task)];
}

bool has_race(const Case& c, Task task) {
  emulator::forget_races();
  try {
    Example(c).run(task);
  } catch (const std::runtime_error&) {
    if (emulator::races() == 0) throw;
  }
  return emulator::races() > 0;
}

constexpr Task kTasks[] = {Task::kForward, Task::kBackward, Task::kLoss, Task::kEvaluation, Task::kAdaptive};

int check_all() {
  int racy = 0;
  for (const Case& c : kCases) {
    for (const Task task : kTasks) {
      const bool found = has_race(c, task);
      racy += found;
      std::printf("%-36s %-10s %s\n", c.name, name_of(task), found ? "RACE" : "no race");
      std::fflush(stdout);
    }
  }
  return racy;
}

// Races without `barrier`, and none with it.
bool needs(const Case& c, Task task, int barrier) {
  emulator::settings().missing_barrier = barrier;
  const bool racy = has_race(c, task);
  emulator::settings().missing_barrier = -1;
  return racy && !has_race(c, task);
}

int mutate_all() {
  int unnoticed = 0;
  for (int barrier = 0; barrier < static_cast<int>(cuda::Barrier::kCount); ++barrier) {
    const char *seen = nullptr, *seen_task = nullptr;
    // The cheap kernels first; every barrier is in one of them.
    for (size_t i = 0; i < kCases.size() && seen == nullptr; ++i) {
      if (kCases[i].precision != cuda::Precision::kFp32) continue;
      for (const Task task : kTasks) {
        if (seen == nullptr && needs(kCases[i], task, barrier)) {
          seen = kCases[i].name;
          seen_task = name_of(task);
        }
      }
    }
    unnoticed += seen == nullptr;
    std::printf("without barrier %2d: %s%s%s%s\n", barrier, seen != nullptr ? "race seen in " : "NOT NOTICED",
                seen != nullptr ? seen : "", seen != nullptr ? ", " : "", seen != nullptr ? seen_task : "");
    std::fflush(stdout);
  }
  return unnoticed;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) const char* __tsan_default_options() {
  // Every report counts, also those like earlier ones. The text would be of fibers and tell little.
  return "suppress_equal_stacks=0:suppress_equal_addresses=0:halt_on_error=0:exitcode=0:history_size=0:"
         "log_path=/dev/null:symbolize=0:report_signal_unsafe=0";
}

int main(int argc, char** argv) {
  cuda::runtime::configure(1, 227 * 1024);
  emulator::settings().stop_at_race = true;
  const bool mutate = argc > 1 && std::strcmp(argv[1], "mutate") == 0;
  const int wrong = mutate ? mutate_all() : check_all();
  return wrong == 0 ? 0 : 1;
}
