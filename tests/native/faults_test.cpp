// The sanitizers see what they should: each deliberate fault, in a process of its own, is reported.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <exception>
#include <functional>

#include "call.h"
#include "check.h"
#include "cpu/arena.h"
#include "cpu/threads.h"
#include "oracle.h"

// Reports need no line numbers here, and looking them up takes most of the time.
#define JKOFLOW_EXPORT extern "C" __attribute__((visibility("default")))
JKOFLOW_EXPORT const char* __asan_default_options() { return "symbolize=0"; }
JKOFLOW_EXPORT const char* __ubsan_default_options() { return "symbolize=0"; }
JKOFLOW_EXPORT const char* __tsan_default_options() { return "symbolize=0:halt_on_error=1"; }

namespace jkoflow::test {
namespace {

constexpr int kNoSuchFault = 3;

// What a process that runs `action` prints, and whether it ended well.
struct Outcome {
  int status;
  std::string text;
};

Outcome run_apart(const std::function<void()>& action) {
  int ends[2];
  if (pipe(ends) != 0) std::abort();
  std::fflush(stdout);
  const pid_t child = fork();
  if (child < 0) std::abort();
  if (child == 0) {
    dup2(ends[1], STDERR_FILENO);
    close(ends[0]);
    close(ends[1]);
    try {
      action();
    } catch (const std::exception& error) {
      std::fprintf(stderr, "%s\n", error.what());
      _exit(1);
    }
    _exit(0);
  }
  close(ends[1]);
  Outcome outcome = {};
  char part[4096];
  for (ssize_t got; (got = read(ends[0], part, sizeof part)) > 0;) outcome.text.append(part, static_cast<size_t>(got));
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  outcome.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return outcome;
}

// False if the process ended with kNoSuchFault.
bool expect_report(const std::string& what, const std::string& report, const std::function<void()>& action) {
  const Outcome outcome = run_apart(action);
  if (outcome.status == kNoSuchFault) return false;
  ++comparisons;
  if (outcome.status == 0 || outcome.text.find(report) == std::string::npos) {
    fail(what + ": expected the report '" + report + "', got status " + std::to_string(outcome.status) + " and '" +
         outcome.text.substr(0, 1000) + "'");
  }
  return true;
}

void expect_none(const std::string& what, const std::function<void()>& action) {
  ++comparisons;
  const Outcome outcome = run_apart(action);
  if (outcome.status != 0) fail(what + ": expected no report, got '" + outcome.text.substr(0, 1000) + "'");
}

// One of the entry points on one case.
struct Entry {
  std::string name;
  std::vector<std::string> read, written;  // its tensors
  std::function<void(const Options&)> run;
};

std::vector<Entry> entries(const CpuKernels* kernels, const Case& c) {
  Case rows = c;  // with steps of their own
  rows.method = "bosh3";
  rows.output_times = {0.3, 0.6};
  Tensors<double> in = random_inputs(rows);
  in["path"] = integrate(c, in).at("path");
  for (double& value : in["path"]) value = static_cast<float>(value);
  Tensors<double> recorded = in;
  Case lone = rows;
  lone.threads = 1;  // a process with OpenMP's threads cannot be forked
  for (const auto& [name, values] : adaptive(kernels, lone, in, {})) recorded[name] = values;
  // A step of the same network at both stages: none of these reads t, or has a linear term.
  Case own = c;
  own.time = own.linear = false;
  Tensors<double> stages = random_inputs(own);
  for (auto& [name, values] : stages) {
    if (name.rfind("weight", 0) != 0 && name.rfind("bias", 0) != 0) continue;
    const std::vector<double> once = values;
    values.insert(values.end(), once.begin(), once.end());
  }
  for (const char* name : {"x_rest", "x"}) stages[name] = random_inputs(own).at("x");
  for (const char* name : {"start logdet", "logdet_rest"}) stages[name] = stages.at("bar logdet");
  std::vector<std::string> networks, gradients_of_networks = {"grad x"};
  if (c.divergence == Divergence::kHutchinson) networks.emplace_back("noise");
  for (const std::string& name : differentiable(own)) {
    if (name != "x") networks.push_back(name);
    if (name != "x" && name != "context") gradients_of_networks.push_back("grad " + name);
  }
  const auto and_networks = [&](std::vector<std::string> names) {
    names.insert(names.end(), networks.begin(), networks.end());
    return names;
  };
  std::vector<std::string> parameters, gradients, gradients_of_evaluation = {"grad times"};
  if (c.divergence == Divergence::kHutchinson) parameters.emplace_back("noise");
  for (const std::string& name : differentiable(c)) {
    if (name != "x") parameters.push_back(name);
    gradients.push_back("grad " + name);
    gradients_of_evaluation.push_back("grad " + name);
  }
  const auto with = [&](std::vector<std::string> names) {
    names.insert(names.end(), parameters.begin(), parameters.end());
    return names;
  };
  // The adjoint does not read the path's last row.
  return {
      {"forward", with({"x"}), {"x_end", "logdet", "path"}, [=](const Options& o) { forward(kernels, c, in, o); }},
      {"backward", with({"bar x_end", "bar logdet", "bar path"}), gradients,
       [=](const Options& o) { backward(kernels, c, in, o); }},
      {"loss", with({"x"}), gradients, [=](const Options& o) { jko_loss(kernels, c, in, 0.5, o); }},
      {"evaluation", with({"x", "times"}), {"x_end", "logdet"}, [=](const Options& o) { evaluate(kernels, c, in, o); }},
      {"adjoint of the evaluation", with({"x", "times", "bar x_end", "bar logdet"}), gradients_of_evaluation,
       [=](const Options& o) { evaluate_backward(kernels, c, in, o); }},
      {"steps",
       with({"x", "output_times"}),
       {"x_end", "logdet", "x_outputs", "logdet_outputs", "evaluations", "last_step", "log"},
       [=](const Options& o) { adaptive(kernels, rows, in, o); }},
      {"adjoint of the steps",
       with({"last_step", "records", "output_times", "bar x_end", "bar logdet", "bar x_outputs", "bar logdet_outputs"}),
       gradients, [=](const Options& o) { adaptive_backward(kernels, rows, recorded, o); }},
      {"step by stages",
       and_networks({"x", "x_rest", "start logdet", "logdet_rest"}),
       {"x_end", "x_end_rest", "logdet", "logdet_end_rest", "velocity", "divergence"},
       [=](const Options& o) { stagewise(kernels, own, stages, {2, false}, o); }},
      {"adjoint of the step by stages", and_networks({"x", "bar x_end", "bar logdet"}), gradients_of_networks,
       [=](const Options& o) { stagewise_backward(kernels, own, stages, {2, false}, o); }}};
}

// All that the kernels can read and write. The three ways of the divergence have memory of their own.
std::vector<Case> everything() {
  Case c;
  c.float64 = false;
  c.batch = 41;  // one of two threads fills more than half of its tile, whatever the instruction set
  c.context_dim = 2;
  c.linear = true;
  c.dim = 9;  // more than the kernels for few columns take
  c.method = "midpoint";
  c.seed = 2;
  Case deep = c, probe = c;
  deep.hidden = {9, 17, 5};
  probe.hidden = {10, 7, 12, 8};
  probe.divergence = Divergence::kHutchinson;
  probe.activation = ActivationKind::kSilu;
  return {c, deep, probe};
}

#ifdef JKOFLOW_ADDRESS_SANITIZER
void faults_of_memory(const CpuKernels* kernels, const Case& c) {
  for (const Entry& entry : entries(kernels, c)) {
    const std::string what = entry.name + " of " + c.text();
    expect_none(what, [&] { entry.run({}); });
    for (const auto* names : {&entry.read, &entry.written}) {
      for (const std::string& name : *names) {
        Options options;
        options.shortened = name;
        // the room that a log has left is poisoned
        const char* report = name == "log" ? "use-after-poison" : "heap-buffer-overflow";
        expect_report(what + ", short " + name, report, [&] { entry.run(options); });
      }
    }
    for (const std::string& name : entry.read) {
      Options options;
      options.misaligned = name;
      expect_report(what + ", misaligned " + name, "misaligned address", [&] { entry.run(options); });
    }
    Options small;
    small.shortened = "memory";
    expect_report(what + ", small memory", "wrote beyond their memory", [&] { entry.run(small); });
  }
}

// Halves each piece of the arenas in turn.
void faults_of_pieces(const CpuKernels* kernels, const Case& c) {
  for (const Entry& entry : entries(kernels, c)) {
    for (int piece = 0, absent = 0; absent < 10; ++piece) {  // some pieces are empty
      const std::string what = entry.name + " of " + c.text() + ", half of piece " + std::to_string(piece);
      const bool exists = expect_report(what, "AddressSanitizer", [&] {
        cpu::shortened_piece = piece;
        entry.run({});
        if (cpu::shortened_pieces == 0) _exit(kNoSuchFault);
      });
      absent = exists ? 0 : absent + 1;
    }
  }
}
#endif

#ifdef JKOFLOW_THREAD_SANITIZER
// Leaves out each barrier in turn. The report is of a data race, or of a crash on what another thread has not set yet.
void faults_of_barriers(const CpuKernels* kernels, Case c) {
  c.batch = 100;
  c.threads = 3;
  for (const Entry& entry : entries(kernels, c)) {
    const std::string what = entry.name + " of " + c.text();
    expect_none(what, [&] { entry.run({}); });
    for (int barrier = 0, exists = true; exists; ++barrier) {
      exists = expect_report(what + ", no barrier " + std::to_string(barrier), "ThreadSanitizer", [&] {
        cpu::skipped_barrier = barrier;
        entry.run({});
        if (cpu::barriers_of_last_call <= barrier) _exit(kNoSuchFault);
      });
    }
  }
}
#endif

}  // namespace
}  // namespace jkoflow::test

int main() {
  using namespace jkoflow::test;
  const jkoflow::CpuKernels* kernels = jkoflow::cpu::available_kernels().front();
  for (const Case& c : everything()) {
#ifdef JKOFLOW_ADDRESS_SANITIZER
    faults_of_memory(kernels, c);
    faults_of_pieces(kernels, c);
#endif
#ifdef JKOFLOW_THREAD_SANITIZER
    faults_of_barriers(kernels, c);
#endif
  }
  std::printf("%s faults: %ld, %d failures\n", kernels->isa, comparisons, failures);
  return failures == 0 && comparisons > 0 ? 0 : 1;
}
