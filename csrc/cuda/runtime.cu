// The CUDA runtime behind runtime.h, and the device queries of launch.h.
#include "runtime.h"

#include <cuda_runtime.h>

#include <map>
#include <mutex>
#include <stdexcept>
#include <tuple>

#include "launch.h"

namespace jkoflow::cuda {
namespace runtime {
namespace {

void check(cudaError_t error, const std::string& what) {
  if (error == cudaSuccess) return;
  (void)cudaGetLastError();  // not left for whoever asks next
  throw std::runtime_error("CUDA error while " + what + ": " + cudaGetErrorString(error) + " (" +
                           cudaGetErrorName(error) + ")");
}

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, device), "reading an attribute of device " + std::to_string(device));
  return value;
}

int current_device() {
  int device = 0;
  check(cudaGetDevice(&device), "asking for the current device");
  return device;
}

// Answers that do not change, kept because they are asked for on every call.
std::mutex cache_mutex;
std::map<int, Gpu> gpu_cache;
std::map<std::tuple<int, const void*, size_t>, int> occupancy_cache;

template <class Parameters>
const void* address(const KernelOf<Parameters>& kernel) {
  return reinterpret_cast<const void*>(kernel.run);
}

// CUDA loads a kernel when it is first asked about. A thread that captures a graph may do so in relaxed mode only,
// since CUDA cannot know that loading need not be part of the graph.
template <class Parameters>
cudaFuncAttributes load(const KernelOf<Parameters>& kernel) {
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  check(cudaThreadExchangeStreamCaptureMode(&mode), "leaving the mode of capture");
  cudaFuncAttributes attributes{};
  const cudaError_t error = cudaFuncGetAttributes(&attributes, address(kernel));
  check(cudaThreadExchangeStreamCaptureMode(&mode), "returning to the mode of capture");
  check(error, std::string("loading the ") + kernel.name + " kernel");
  return attributes;
}

}  // namespace

Current::Current(int device) : previous_(current_device()), device_(device) {
  if (previous_ != device_) check(cudaSetDevice(device_), "selecting device " + std::to_string(device_));
}
Current::~Current() {
  if (previous_ != device_) (void)cudaSetDevice(previous_);
}

Gpu gpu_of(int device) {
  const auto get = [device](cudaDeviceAttr which) { return static_cast<size_t>(attribute(which, device)); };
  return {
      10 * attribute(cudaDevAttrComputeCapabilityMajor, device) + attribute(cudaDevAttrComputeCapabilityMinor, device),
      attribute(cudaDevAttrMultiProcessorCount, device), get(cudaDevAttrMaxSharedMemoryPerBlockOptin),
      get(cudaDevAttrMaxSharedMemoryPerMultiprocessor)};
}

Gpu gpu() {
  const int device = current_device();
  const std::lock_guard<std::mutex> lock(cache_mutex);
  const auto found = gpu_cache.find(device);
  if (found != gpu_cache.end()) return found->second;
  Gpu gpu = gpu_of(device);
  load(kReduceKernel);
  load(kFinishKernel);
  load(kPrepareKernel);
  gpu.architecture = architecture_told_by(load(kArchitectureKernel).maxThreadsPerBlock);
  gpu_cache[device] = gpu;
  return gpu;
}

int blocks_per_multiprocessor(const Kernel& kernel, size_t shared_bytes) {
  const int device = current_device();
  const size_t most = gpu().shared_per_block;
  const std::lock_guard<std::mutex> lock(cache_mutex);
  const auto key = std::make_tuple(device, address(kernel), shared_bytes);
  const auto found = occupancy_cache.find(key);
  if (found != occupancy_cache.end()) return found->second;
  const std::string what = std::string("preparing the ") + kernel.name + " kernel";
  load(kernel);
  check(cudaFuncSetAttribute(address(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(most)),
        what);
  int blocks = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, address(kernel), kernel.threads, shared_bytes), what);
  if (blocks < 1) {
    throw std::runtime_error(std::string("the ") + kernel.name + " kernel needs " + std::to_string(shared_bytes) +
                             " bytes of shared memory and " + std::to_string(kernel.threads) +
                             " threads a thread block, more than this GPU has");
  }
  occupancy_cache[key] = blocks;
  return blocks;
}

template <class Parameters>
void start(const KernelOf<Parameters>& kernel, int blocks, size_t shared_bytes, void* stream,
           const Parameters& parameters) {
  void* arguments[] = {const_cast<Parameters*>(&parameters)};
  check(cudaLaunchKernel(address(kernel), dim3(static_cast<unsigned>(blocks)),
                         dim3(static_cast<unsigned>(kernel.threads)), arguments, shared_bytes,
                         static_cast<cudaStream_t>(stream)),
        std::string("starting the ") + kernel.name + " kernel");
}

template void start(const KernelOf<Params>&, int, size_t, void*, const Params&);
template void start(const KernelOf<PrepareParams>&, int, size_t, void*, const PrepareParams&);
template void start(const KernelOf<ReduceParams>&, int, size_t, void*, const ReduceParams&);
template void start(const KernelOf<FinishParams>&, int, size_t, void*, const FinishParams&);

}  // namespace runtime

std::string device_problem() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaSuccess && count > 0) return "";
  (void)cudaGetLastError();
  if (error == cudaSuccess || error == cudaErrorNoDevice) return "no CUDA device";
  if (error == cudaErrorInsufficientDriver) {
    int driver = 0, runtime = 0;
    (void)cudaDriverGetVersion(&driver);
    (void)cudaRuntimeGetVersion(&runtime);
    if (driver == 0) return "no CUDA device (there is no CUDA driver)";
    const auto text = [](int version) {
      return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
    };
    return "the CUDA driver is too old: it supports CUDA " + text(driver) + ", this build needs " + text(runtime);
  }
  return std::string("no usable CUDA device: ") + cudaGetErrorString(error);
}

}  // namespace jkoflow::cuda
