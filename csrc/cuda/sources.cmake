# The sources of the CUDA backend. The kernels of each padded width have their own, so that they compile in parallel.
set(JKOFLOW_CUDA_KERNEL_SOURCES
  csrc/cuda/instances/backward_256.cu
  csrc/cuda/instances/backward_128.cu
  csrc/cuda/instances/backward_64.cu
  csrc/cuda/instances/forward_256.cu
  csrc/cuda/instances/forward_128.cu
  csrc/cuda/instances/forward_64.cu
  csrc/cuda/instances/prepare_finish.cu)
set(JKOFLOW_CUDA_HOST_SOURCES csrc/cuda/plan.cpp csrc/cuda/launch.cpp)
set(JKOFLOW_CUDA_SOURCES ${JKOFLOW_CUDA_KERNEL_SOURCES} ${JKOFLOW_CUDA_HOST_SOURCES} csrc/cuda/runtime.cu)
