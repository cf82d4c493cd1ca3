// Runs CUDA kernels on the CPU, one block after the other: a thread is a fiber that runs until it has to wait for
// others.
//
// Mistakes become std::runtime_error from launch(): lanes of a warp in different collectives, threads in different
// barriers, a thread that ends while others wait for it, an access beyond shared memory (a guard page follows it).
// Shared memory starts as NaN, so that reads of what nobody wrote show in the results. Under ThreadSanitizer every
// fiber is a thread of its own to the sanitizer, which then sees races between the threads of a block.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

namespace emulator {

enum class Order { kAscending, kDescending, kRandom };

struct Settings {
  Order order = Order::kAscending;  // in which runnable threads go on
  bool truncate = false;            // the tensor core's sums: rounded towards zero instead of to nearest
  bool approximate = false;         // exponential, logarithm and reciprocal err as much as a GPU's may
  int missing_barrier = -1;         // this block barrier is passed without waiting
  bool stop_at_race = false;        // launch() fails at the barrier after one
};
Settings& settings();

struct Counts {
  uint64_t tensor_products = 0, block_barriers = 0, warp_barriers = 0, shuffles = 0;
};
Counts& counts();
int races();  // that ThreadSanitizer has reported
void forget_races();

// Runs `body` for every thread of every block. Shared memory counts bytes.
void launch(int blocks, int threads, size_t shared_bytes, const std::function<void()>& body);

// ---- Called by the threads

int thread();
int block();
int blocks();
int block_threads();
float* shared();
void sync_block(int which);
void sync_warp();
float shuffle_xor(float v, int mask);
void mma_tf32(float* c, const uint32_t* a, uint32_t b0, uint32_t b1);
// v with an error of up to `relative` times v that depends on nothing but v, if the functions are approximate.
float approximate(float v, double relative);
[[noreturn]] void fail(const std::string& what);

}  // namespace emulator
