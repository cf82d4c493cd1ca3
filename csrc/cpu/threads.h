// The threads of one call: run_threads() starts them, wait_for_threads() is a barrier of all of them.
#pragma once

#include "sanitizers.h"

#ifdef JKOFLOW_THREAD_SANITIZER
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>
#elif defined(_OPENMP)
#include <omp.h>
#endif

#ifdef JKOFLOW_THREAD_SANITIZER

// ThreadSanitizer does not see the barriers of OpenMP's run-time library, so it watches plain threads.
namespace jkoflow::cpu {
// For tests/native: the barrier of each call that is left out, if any, and the barriers of the last call.
inline std::atomic<int> skipped_barrier{-1}, barriers_of_last_call{0};
}  // namespace jkoflow::cpu

namespace jkoflow::JKOFLOW_ISA {
namespace {

class Team {
 public:
  explicit Team(int threads) : threads_(threads) {}

  void wait(int barrier) {
    // Two gates in turn: a thread that is late to leave one must not meet, on the same mutex, one that is early at the
    // next, since ThreadSanitizer would take that for an order which the barriers do not give.
    Gate& gate = gates_[barrier % 2];
    std::unique_lock<std::mutex> lock(gate.mutex);
    if (++gate.arrived == threads_ * (barrier / 2 + 1)) gate.all_here.notify_all();
    gate.all_here.wait(lock, [&] { return gate.arrived >= threads_ * (barrier / 2 + 1); });
  }

 private:
  struct Gate {
    std::mutex mutex;
    std::condition_variable all_here;
    int arrived = 0;
  };
  int threads_;
  Gate gates_[2];
};

struct Seat {
  Team* team;
  int called, waited;  // barriers so far, with and without those left out
};
thread_local Seat seat;

template <class Function>
void run_threads(int threads, Function&& function) {
  Team team(threads);
  const auto run = [&](int thread) {
    seat = {&team, 0, 0};
    function(thread, threads);
  };
  std::vector<std::thread> others;
  for (int thread = 1; thread < threads; ++thread) others.emplace_back(run, thread);
  run(0);
  for (std::thread& other : others) other.join();
  cpu::barriers_of_last_call.store(seat.called, std::memory_order_relaxed);
}

inline void wait_for_threads() {
  if (seat.called++ != cpu::skipped_barrier.load(std::memory_order_relaxed)) seat.team->wait(seat.waited++);
}

}  // namespace
}  // namespace jkoflow::JKOFLOW_ISA

#else

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

}  // namespace
}  // namespace jkoflow::JKOFLOW_ISA

#endif
