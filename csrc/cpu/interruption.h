// A long call ends early when whoever waits for it has to, such as Python after Ctrl-C. Declared here and defined where
// no wide instruction set is: the kernels ask by a plain call.
#pragma once

#include <cstdint>

#include "../problem.h"

namespace jkoflow::cpu {

struct Interruption;

// Asks whether a call is to end, now and then and in the thread that has made it.
using Ask = bool (*)();
void ask_by(Ask ask);

// Thrown, after all threads have ended, by calls that were told to end. What they have written counts for nothing.
struct Interrupted {};

// A copy of a problem whose call may be interrupted, from the thread that makes it.
class InterruptibleProblem {
 public:
  explicit InterruptibleProblem(const Problem& problem);
  ~InterruptibleProblem();
  InterruptibleProblem(const InterruptibleProblem&) = delete;
  InterruptibleProblem& operator=(const InterruptibleProblem&) = delete;
  const Problem& problem() const { return problem_; }
  void throw_if_interrupted() const;

 private:
  Problem problem_;
  Interruption* interruption_;
};

// Whether the call is to end. The thread of the caller asks, the others see what it was told.
bool is_interrupted(const Problem& problem);

}  // namespace jkoflow::cpu
