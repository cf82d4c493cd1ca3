#include "interruption.h"

#include <atomic>
#include <chrono>

namespace jkoflow::cpu {

using Clock = std::chrono::steady_clock;

namespace {

constexpr std::chrono::milliseconds kBetween{100};
std::atomic<Ask> asked{nullptr};
thread_local const char here = 0;  // whose address tells the threads apart

}  // namespace

struct Interruption {
  Ask ask = asked.load(std::memory_order_relaxed);
  const char* caller = &here;
  Clock::time_point last = Clock::now();
  std::atomic<bool> told{false};
};

void ask_by(Ask ask) { asked.store(ask, std::memory_order_relaxed); }

InterruptibleProblem::InterruptibleProblem(const Problem& problem)
    : problem_(problem), interruption_(asked.load(std::memory_order_relaxed) == nullptr ? nullptr : new Interruption) {
  problem_.interruption = interruption_;
}

InterruptibleProblem::~InterruptibleProblem() { delete interruption_; }

void InterruptibleProblem::throw_if_interrupted() const {
  if (interruption_ != nullptr && interruption_->told.load(std::memory_order_relaxed)) throw Interrupted{};
}

bool is_interrupted(const Problem& problem) {
  Interruption* const interruption = problem.interruption;
  if (interruption == nullptr) return false;
  if (&here == interruption->caller) {
    const Clock::time_point now = Clock::now();
    if (now - interruption->last > kBetween) {
      interruption->last = now;
      if (interruption->ask()) interruption->told.store(true, std::memory_order_relaxed);
    }
  }
  return interruption->told.load(std::memory_order_relaxed);
}

}  // namespace jkoflow::cpu
