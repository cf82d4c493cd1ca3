// The CUDA part of the Python module _C: plans, which need no GPU and are in every build, and calls.
#include "../bindings.h"

#include <tuple>

#include "plan.h"
#include "share.h"
#ifdef JKOFLOW_HAVE_CUDA
#include "launch.h"
#endif

namespace jkoflow::bindings {
namespace {

using namespace py::literals;
using Unlocked = py::call_guard<py::gil_scoped_release>;

const char* name_of(cuda::Precision precision) {
  return precision == cuda::Precision::kFp32 ? "fp32" : precision == cuda::Precision::kTf32 ? "tf32" : "tf32x3";
}
const char* name_of(cuda::Where where) {
  return where == cuda::Where::kShared ? "shared" : where == cuda::Where::kScratch ? "scratch" : "gradient";
}

cuda::Call call_of(const std::string& name) {
  if (name == "forward") return cuda::Call::kForward;
  if (name == "backward") return cuda::Call::kBackward;
  if (name == "jko_loss") return cuda::Call::kJkoLoss;
  if (name == "evaluate") return cuda::Call::kEvaluate;
  if (name == "evaluate_backward") return cuda::Call::kEvaluateBackward;
  if (name == "adaptive") return cuda::Call::kAdaptive;
  if (name == "adaptive_backward") return cuda::Call::kAdaptiveBackward;
  throw py::value_error(
      "call must be 'forward', 'backward', 'jko_loss', 'evaluate', 'evaluate_backward', 'adaptive' or "
      "'adaptive_backward', got '" +
      name + "'");
}

py::dict as_dict(const cuda::Plan& plan) {
  const cuda::Choice& choice = plan.choice;
  py::list buffers, launches;
  for (int i = 0; i < choice.buffer_count; ++i) {
    const cuda::Buffer& buffer = choice.buffers[i];
    buffers.append(
        py::dict("name"_a = buffer.name, "bytes"_a = buffer.floats * sizeof(float), "where"_a = name_of(buffer.where)));
  }
  const auto launch = [&launches](const char* kernel, int blocks, int threads, size_t shared_bytes) {
    if (blocks == 0) return;
    launches.append(py::dict("kernel"_a = kernel, "thread_blocks"_a = blocks, "threads"_a = threads,
                             "shared_bytes"_a = shared_bytes));
  };
  launch("prepare", plan.prepare_blocks, cuda::kSmallThreads, 0);
  const char* const names[] = {"forward", "backward", "adaptive_forward", "adaptive_backward"};
  launch(names[static_cast<int>(choice.kind.task)], plan.blocks, choice.threads(), choice.shared_bytes());
  launch("reduce", plan.reduce_blocks, cuda::kSmallThreads, cuda::kSmallShared);
  launch("finish", plan.finish_blocks, cuda::kSmallThreads, cuda::kSmallShared);
  return py::dict("H"_a = choice.kind.H, "tangents"_a = choice.kind.tangents,
                  "precision"_a = name_of(choice.kind.precision), "warp_groups"_a = choice.warp_groups,
                  "threads"_a = choice.threads(), "tile"_a = choice.tile(), "small_tile"_a = choice.small_tile(),
                  "resident"_a = plan.resident, "thread_blocks"_a = plan.blocks, "share"_a = plan.params.share,
                  "large_tiles"_a = plan.params.large_tiles, "small_tiles"_a = plan.params.small_tiles,
                  "shared_bytes"_a = choice.shared_bytes(),
                  "scratch_bytes"_a = plan.params.scratch_stride * sizeof(float), "workspace_bytes"_a = plan.bytes,
                  "buffers"_a = buffers, "launches"_a = launches);
}

void bind_plans(py::module_& m) {
  py::enum_<cuda::Precision>(m, "Precision")
      .value("fp32", cuda::Precision::kFp32)
      .value("tf32x3", cuda::Precision::kTf32x3)
      .value("tf32", cuda::Precision::kTf32);
  py::class_<cuda::Gpu>(m, "CudaGpu", "A GPU to plan for; an H100 (SXM) unless told otherwise")
      .def(py::init<>())
      .def_readwrite("architecture", &cuda::Gpu::architecture)
      .def_readwrite("multiprocessors", &cuda::Gpu::multiprocessors)
      .def_readwrite("shared_per_block", &cuda::Gpu::shared_per_block)
      .def_readwrite("shared_per_multiprocessor", &cuda::Gpu::shared_per_multiprocessor);
  py::class_<cuda::RowBuffers> rows(m, "CudaRowBuffers");
  rows.def(py::init<>()).def_readwrite("record_count", &cuda::RowBuffers::record_count);
  address(rows, "divergence", &cuda::RowBuffers::divergence);
  address(rows, "output_times", &cuda::RowBuffers::output_times);
  address(rows, "record_begin", &cuda::RowBuffers::record_begin);
  address(rows, "records", &cuda::RowBuffers::records);
  address(rows, "outcome", &cuda::RowBuffers::outcome);
  m.def("cuda_unsupported", &cuda::unsupported, Unlocked(), "Completes 'the CUDA kernels ...'; empty if they can");
  m.def(
      "cuda_plan",
      [](const Problem& problem, const std::string& name, cuda::Precision precision, const cuda::Gpu& gpu) {
        const cuda::Call call = call_of(name);
        if (gpu.multiprocessors < 1) throw py::value_error("a GPU has at least one multiprocessor");
        const cuda::Choice choice = cuda::choose(problem, precision, cuda::task_of(call), gpu);
        return as_dict(cuda::make_plan(problem, call, choice, gpu, cuda::estimated_blocks(choice, gpu)));
      },
      "problem"_a, "call"_a, "precision"_a = cuda::Precision::kTf32x3, "gpu"_a = cuda::Gpu(),
      "How a call that wants every gradient would run on a GPU that need not be there; how many thread blocks a "
      "multiprocessor holds is estimated");
  m.def(
      "cuda_share_out",
      [](long long batch, long long slots, int tile, int small_tile) {
        if (batch < 1 || slots < 1 || small_tile < 1 || tile < small_tile) {
          throw py::value_error("batch, slots and small_tile must be at least 1, and tile at least small_tile");
        }
        const cuda::Shares shares = cuda::share_out(batch, slots, tile, small_tile);
        return std::make_tuple(shares.blocks, shares.samples, shares.large_tiles, shares.small_tiles);
      },
      "batch"_a, "slots"_a, "tile"_a, "small_tile"_a,
      "Thread blocks that a batch takes, and of each one: samples, large tiles, small tiles");
}

#ifdef JKOFLOW_HAVE_CUDA
void bind_calls(py::module_& m) {
  py::class_<cuda::Launch> launch(m, "CudaLaunch");
  launch.def(py::init<>())
      .def(py::init<const cuda::Launch&>())
      .def_readwrite("device", &cuda::Launch::device)
      .def_readwrite("precision", &cuda::Launch::precision);
  address(launch, "stream", &cuda::Launch::stream);
  address(launch, "workspace", &cuda::Launch::workspace);

  m.def("cuda_gpu", &cuda::device_gpu, Unlocked(), "device"_a, "What plans have to know of a device, without using it");
  m.def("cuda_device_problem", &cuda::device_problem, Unlocked(), "Why no CUDA device can be used; empty if one can");
  m.def(
      "cuda_plan",
      [](const Problem& problem, const std::string& name, const cuda::Launch& launch) {
        return as_dict(cuda::plan(problem, call_of(name), launch));
      },
      "problem"_a, "call"_a, "launch"_a, "How a call that wants every gradient runs on the launch's device");
  m.def(
      "cuda_bytes",
      [](const Problem& problem, const std::string& name, const cuda::Launch& launch) {
        return cuda::workspace_bytes(problem, call_of(name), launch);
      },
      "problem"_a, "call"_a, "launch"_a, "Bytes of workspace that a call needs");
  m.def("cuda_forward", &cuda::forward, Unlocked());
  m.def("cuda_backward", &cuda::backward, Unlocked());
  m.def("cuda_jko_loss", &cuda::jko_loss, Unlocked());
  m.def("cuda_evaluate", &cuda::evaluate, Unlocked());
  m.def("cuda_evaluate_backward", &cuda::evaluate_backward, Unlocked());
  m.def("cuda_adaptive", &cuda::adaptive, Unlocked());
  m.def("cuda_adaptive_backward", &cuda::adaptive_backward, Unlocked());
}
#endif

}  // namespace

void bind_cuda(py::module_& m) {
  bind_plans(m);
#ifdef JKOFLOW_HAVE_CUDA
  m.attr("has_cuda") = true;
  m.attr("cuda_architectures") = JKOFLOW_CUDA_ARCHITECTURES;
  bind_calls(m);
#else
  m.attr("has_cuda") = false;
#endif
}

}  // namespace jkoflow::bindings
