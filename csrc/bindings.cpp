// The Python module _C: pointers and sizes in, error text out. Neither includes nor links torch, so that one build
// serves every version of it; jkoflow/ops/native.py owns the tensors and checks the shapes.
#include "bindings.h"

#include "cpu/dispatch.h"
#include "cpu/interruption.h"
#include "problem.h"

namespace {

using jkoflow::Adaptive;
using jkoflow::Adjoint;
using jkoflow::JkoLoss;
using jkoflow::Modulation;
using jkoflow::Problem;
using jkoflow::RowFailure;
using jkoflow::bindings::address;
using jkoflow::bindings::addresses;
namespace py = jkoflow::bindings::py;

jkoflow::Tableau make_tableau(const std::vector<std::vector<double>>& a, const std::vector<double>& b,
                              const std::vector<double>& c) {
  jkoflow::Tableau t;
  if (b.size() > jkoflow::kMaxStages || a.size() != b.size() || c.size() != b.size()) {
    throw py::value_error("a tableau has up to " + std::to_string(jkoflow::kMaxStages) + " stages");
  }
  t.stages = static_cast<int>(b.size());
  for (size_t i = 0; i < b.size(); ++i) {
    if (a[i].size() != i) throw py::value_error("row i of a tableau has i entries");
    for (size_t j = 0; j < i; ++j) t.a[i][j] = a[i][j];
    t.b[i] = b[i];
    t.c[i] = c[i];
  }
  return t;
}

Adaptive make_adaptive(double rtol, double atol, int64_t max_steps, int order, const std::vector<double>& error,
                       const std::vector<std::vector<double>>& dense) {
  Adaptive a;
  if (error.size() > jkoflow::kMaxStages || dense.size() != error.size()) {
    throw py::value_error("error and dense have a row for each of up to " + std::to_string(jkoflow::kMaxStages) +
                          " stages");
  }
  a.rtol = rtol;
  a.atol = atol;
  a.max_steps = max_steps;
  a.order = order;
  for (size_t i = 0; i < error.size(); ++i) {
    if (dense[i].size() > 4) throw py::value_error("a row of dense has up to 4 entries");
    a.error[i] = error[i];
    for (size_t k = 0; k < dense[i].size(); ++k) a.dense[i][k] = dense[i][k];
  }
  return a;
}

unsigned long main_thread = 0;  // NOLINT: the type of Python's

// Lets Python act on signals, which it does in its main thread alone; true if a handler has raised an exception.
bool signal_raises() {
  if (PyThread_get_thread_ident() != main_thread) return false;
  const py::gil_scoped_acquire gil;
  return PyErr_CheckSignals() != 0;
}

void end_calls_by_signals() {
  main_thread = py::module_::import("threading").attr("main_thread")().attr("ident").cast<unsigned long>();
  jkoflow::cpu::ask_by(signal_raises);
  py::register_exception_translator([](std::exception_ptr raised) {
    try {
      if (raised) std::rethrow_exception(raised);
    } catch (const jkoflow::cpu::Interrupted&) {  // what the handler has raised is set already
      if (PyErr_Occurred() == nullptr) PyErr_SetNone(PyExc_KeyboardInterrupt);
    }
  });
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels of jkoflow";
  end_calls_by_signals();
  m.attr("max_hidden_layers") = jkoflow::kMaxHidden;
  m.attr("has_openmp") = jkoflow::cpu::has_openmp();

  py::enum_<jkoflow::ActivationKind>(m, "ActivationKind")
      .value("tanh", jkoflow::ActivationKind::kTanh)
      .value("softplus", jkoflow::ActivationKind::kSoftplus)
      .value("silu", jkoflow::ActivationKind::kSilu)
      .value("elu", jkoflow::ActivationKind::kElu)
      .value("selu", jkoflow::ActivationKind::kSelu)
      .value("gelu", jkoflow::ActivationKind::kGelu);

  py::enum_<jkoflow::GateKind>(m, "GateKind")
      .value("affine", jkoflow::GateKind::kAffine)
      .value("sigmoid", jkoflow::GateKind::kSigmoid);

  py::enum_<jkoflow::Divergence>(m, "Divergence")
      .value("none", jkoflow::Divergence::kNone)
      .value("exact", jkoflow::Divergence::kExact)
      .value("hutchinson", jkoflow::Divergence::kHutchinson);

  py::class_<jkoflow::Tableau>(m, "Tableau").def(py::init(&make_tableau), py::arg("a"), py::arg("b"), py::arg("c"));

  py::class_<Modulation> modulation(m, "Modulation");
  modulation.def(py::init<>())
      .def_readwrite("present", &Modulation::present)
      .def_readwrite("gate", &Modulation::gate)
      .def_readwrite("time", &Modulation::time)
      .def_readwrite("frequencies", &Modulation::frequencies)
      .def_readwrite("gated", &Modulation::gated)
      .def_readwrite("shifted", &Modulation::shifted);

  py::class_<Problem> problem(m, "Problem");
  problem.def(py::init<>())
      .def(py::init<const Problem&>())
      .def_readwrite("float64", &Problem::float64)
      .def_readwrite("batch", &Problem::batch)
      .def_readwrite("dim", &Problem::dim)
      .def_readwrite("context_dim", &Problem::context_dim)
      .def_readwrite("time", &Problem::time)
      .def_readwrite("divergence", &Problem::divergence)
      .def_readwrite("activation", &Problem::activation)
      .def_readwrite("beta", &Problem::beta)
      .def_readwrite("t0", &Problem::t0)
      .def_readwrite("t1", &Problem::t1)
      .def_readwrite("num_steps", &Problem::num_steps)
      .def_readwrite("row_times", &Problem::row_times)
      .def_readwrite("tableau", &Problem::tableau)
      .def_readwrite("threads", &Problem::threads)
      .def_readwrite("split", &Problem::split)
      .def_readwrite("modulation", &Problem::modulation)
      .def_readwrite("residual", &Problem::residual)
      .def_property(
          "hidden", [](const Problem& p) { return std::vector<int>(p.width, p.width + p.hidden_layers); },
          [](Problem& p, const std::vector<int>& widths) {
            if (widths.empty() || widths.size() > jkoflow::kMaxHidden) {
              throw py::value_error("hidden takes 1 to " + std::to_string(jkoflow::kMaxHidden) + " widths");
            }
            p.hidden_layers = static_cast<int>(widths.size());
            for (size_t i = 0; i < widths.size(); ++i) p.width[i] = widths[i];
          });
  address(problem, "x", &Problem::x);
  address(problem, "times", &Problem::times);
  address(problem, "context", &Problem::context);
  address(problem, "noise", &Problem::noise);
  addresses(problem, "weights", &Problem::weight);
  addresses(problem, "biases", &Problem::bias);
  address(problem, "linear", &Problem::linear);
  problem.def_property(
      "modulation_tensor", [](const Problem& p) { return reinterpret_cast<uintptr_t>(p.modulation.tensor); },
      [](Problem& p, uintptr_t value) { p.modulation.tensor = reinterpret_cast<const void*>(value); });
  address(problem, "x_end", &Problem::x_end);
  address(problem, "logdet", &Problem::logdet);
  address(problem, "path", &Problem::path);

  py::class_<Adjoint> adjoint(m, "Adjoint");
  adjoint.def(py::init<>());
  address(adjoint, "x_end", &Adjoint::x_end);
  address(adjoint, "logdet", &Adjoint::logdet);
  address(adjoint, "path", &Adjoint::path);
  address(adjoint, "x", &Adjoint::x);
  address(adjoint, "times", &Adjoint::times);
  address(adjoint, "context", &Adjoint::context);
  addresses(adjoint, "weights", &Adjoint::weight);
  addresses(adjoint, "biases", &Adjoint::bias);
  address(adjoint, "linear", &Adjoint::linear);
  address(adjoint, "modulation", &Adjoint::modulation);

  py::class_<JkoLoss> loss(m, "JkoLoss");
  loss.def(py::init<>()).def_readwrite("step_size", &JkoLoss::step_size);
  address(loss, "terms", &JkoLoss::terms);

  py::class_<Adaptive> adaptive(m, "Adaptive");
  adaptive
      .def(py::init(&make_adaptive), py::arg("rtol"), py::arg("atol"), py::arg("max_steps"), py::arg("order"),
           py::arg("error"), py::arg("dense"))
      .def(py::init<>())
      .def(py::init<const Adaptive&>())
      .def_readwrite("outputs", &Adaptive::outputs);
  address(adaptive, "output_times", &Adaptive::output_times);
  address(adaptive, "x_outputs", &Adaptive::x_outputs);
  address(adaptive, "logdet_outputs", &Adaptive::logdet_outputs);
  address(adaptive, "evaluations", &Adaptive::evaluations);
  address(adaptive, "last_step", &Adaptive::last_step);
  address(adaptive, "records", &Adaptive::records);

  using jkoflow::StagewiseStep;
  py::class_<StagewiseStep::State> state(m, "StepState");
  state.def(py::init<>());
  address(state, "x", &StagewiseStep::State::x);
  address(state, "x_rest", &StagewiseStep::State::x_rest);
  address(state, "logdet", &StagewiseStep::State::logdet);
  address(state, "logdet_rest", &StagewiseStep::State::logdet_rest);
  py::class_<StagewiseStep> step(m, "StagewiseStep");
  step.def(py::init<>())
      .def_readwrite("start", &StagewiseStep::start)
      .def_readwrite("end", &StagewiseStep::end)
      .def_readwrite("dt", &StagewiseStep::dt)
      .def_readwrite("start_known", &StagewiseStep::start_known)
      .def_property(
          "stages", [](const StagewiseStep& s) { return s.stages; },
          [](StagewiseStep& s, int stages) {
            if (stages < 1 || stages > jkoflow::kMaxStages) {
              throw py::value_error("a step has 1 to " + std::to_string(jkoflow::kMaxStages) + " stages");
            }
            s.stages = stages;
          });
  address(step, "velocity", &StagewiseStep::velocity);
  address(step, "divergence", &StagewiseStep::divergence);
  address(step, "errors", &StagewiseStep::errors);

  py::enum_<RowFailure::Reason>(m, "FailureReason")
      .value("none", RowFailure::kNone)
      .value("max_steps", RowFailure::kMaxSteps)
      .value("underflow", RowFailure::kUnderflow)
      .value("not_finite", RowFailure::kNotFinite);
  py::class_<RowFailure>(m, "RowFailure")
      .def_readonly("row", &RowFailure::row)
      .def_readonly("reason", &RowFailure::reason)
      .def_readonly("t", &RowFailure::t)
      .def_readonly("dt", &RowFailure::dt);

  using jkoflow::cpu::AdaptiveRun;
  py::class_<AdaptiveRun>(m, "AdaptiveRun")
      .def(py::init<const Problem&, const Adaptive&>(), py::call_guard<py::gil_scoped_release>())
      .def_property_readonly("failure", &AdaptiveRun::failure)
      .def_property_readonly("steps", &AdaptiveRun::steps)
      .def("write", [](const AdaptiveRun& run, uintptr_t out) { run.write(reinterpret_cast<char*>(out)); });
  m.def("step_record_bytes", &jkoflow::StepRecord::bytes, "Bytes of the record of a step");

  m.def("cpu_isas", &jkoflow::cpu::available_isas, "Instruction sets that this build and processor share, best first");
  m.def("cpu_split_problem", &jkoflow::cpu::split_problem, "Why Problem.split cannot be had, or an empty text");
  m.def("cpu_isa", [] { return jkoflow::cpu::kernels().isa; }, "The instruction set in use");
  m.def("cpu_forward", &jkoflow::cpu::forward, py::call_guard<py::gil_scoped_release>());
  m.def("cpu_backward", &jkoflow::cpu::backward, py::call_guard<py::gil_scoped_release>());
  m.def("cpu_evaluate", &jkoflow::cpu::evaluate, py::call_guard<py::gil_scoped_release>());
  m.def("cpu_evaluate_backward", &jkoflow::cpu::evaluate_backward, py::call_guard<py::gil_scoped_release>());
  m.def("cpu_adaptive_backward", &jkoflow::cpu::adaptive_backward, py::call_guard<py::gil_scoped_release>());
  m.def("cpu_stagewise", &jkoflow::cpu::stagewise, py::call_guard<py::gil_scoped_release>());
  m.def("cpu_stagewise_backward", &jkoflow::cpu::stagewise_backward, py::call_guard<py::gil_scoped_release>());
  m.def("cpu_jko_loss", &jkoflow::cpu::jko_loss, py::call_guard<py::gil_scoped_release>());

  jkoflow::bindings::bind_cuda(m);
}
