// On a GPU: a kernel that writes beyond its memory, one with a race, and one with a barrier that not all threads come
// to, to show that compute-sanitizer sees them. Their names have "jkoflow" in them, which is what scripts/gpu_check.py
// asks it to watch.
//   compute-sanitizer --tool memcheck ./faulty memory
//   compute-sanitizer --tool racecheck ./faulty race
//   compute-sanitizer --tool synccheck ./faulty sync
#include <cstdio>
#include <cstring>

namespace jkoflow {

__global__ void write_beyond(float* memory, int count) { memory[count + threadIdx.x] = 1.0f; }

__global__ void race(float* out) {
  __shared__ float shared[64];
  shared[threadIdx.x] = static_cast<float>(threadIdx.x);
  out[threadIdx.x] = shared[63 - threadIdx.x];  // without a barrier
}

// Those that do not come leave the kernel, so that without the tool it ends.
__global__ void part_of_a_barrier(float* out) {
  if (threadIdx.x < 48) {
    out[threadIdx.x] = 1.0f;
    __syncthreads();
    out[threadIdx.x] += out[47 - threadIdx.x];
  }
}

}  // namespace jkoflow

int main(int argc, char** argv) {
  float* memory = nullptr;
  if (argc != 2 || cudaMalloc(&memory, 64 * sizeof(float)) != cudaSuccess) return 1;
  if (std::strcmp(argv[1], "memory") == 0) {
    jkoflow::write_beyond<<<1, 64>>>(memory, 64);
  } else if (std::strcmp(argv[1], "race") == 0) {
    jkoflow::race<<<1, 64>>>(memory);
  } else if (std::strcmp(argv[1], "sync") == 0) {
    jkoflow::part_of_a_barrier<<<1, 64>>>(memory);
  } else {
    return 1;
  }
  std::printf("%s\n", cudaGetErrorString(cudaDeviceSynchronize()));
  return 0;
}
