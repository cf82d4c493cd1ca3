// Several callers at once, each with threads of its own, get what a lone caller gets, bit for bit.
#include <thread>

#include "call.h"
#include "check.h"

namespace jkoflow::test {
namespace {

constexpr int kCallers = 4;

struct Work {
  Case c;
  Tensors<double> in;
  Tensors<double> forward, backward, loss;  // what a lone caller gets
};

std::vector<Work> all_work() {
  std::vector<Work> list;
  for (const std::vector<int>& hidden : {std::vector<int>{20, 12}, {33}, {9, 17, 5}, {64, 48}, {5}}) {
    for (const bool float64 : {false, true}) {
      Case c;
      c.float64 = float64;
      c.hidden = hidden;
      c.batch = 40 + 70 * static_cast<int64_t>(list.size() % 3);
      c.threads = 1 + static_cast<int>(list.size() % 4);
      c.linear = float64;
      c.num_steps = 1;
      c.seed = list.size();
      Work work = {c, random_inputs(c), {}, {}, {}};
      list.push_back(work);
    }
  }
  return list;
}

// Through the dispatcher: each caller has working memory of its own, which grows and shrinks from call to call.
void call(const Work& work, Tensors<double>& ends, Tensors<double>& gradients, Tensors<double>& loss) {
  ends = forward(nullptr, work.c, work.in, {});
  Tensors<double> with_path = work.in;
  with_path["path"] = ends.at("path");
  gradients = backward(nullptr, work.c, with_path, {});
  loss = jko_loss(nullptr, work.c, work.in, 0.5, {});
}

void expect_same_from_all(const std::string& what, const std::vector<Work>& list,
                          const std::vector<std::vector<Work>>& got) {
  for (const std::vector<Work>& of_caller : got) {
    for (size_t i = 0; i < list.size(); ++i) {
      expect_close(what + ", forward of " + list[i].c.text(), of_caller[i].forward, list[i].forward, 0);
      expect_close(what + ", backward of " + list[i].c.text(), of_caller[i].backward, list[i].backward, 0);
      expect_close(what + ", loss of " + list[i].c.text(), of_caller[i].loss, list[i].loss, 0);
    }
  }
}

// Caller number `caller` starts at another case than the others.
void run_caller(int caller, std::vector<Work>& mine) {
  for (size_t i = 0; i < mine.size(); ++i) {
    Work& work = mine[(i + static_cast<size_t>(caller) * 3) % mine.size()];
    call(work, work.forward, work.backward, work.loss);
  }
}

}  // namespace
}  // namespace jkoflow::test

int main() {
  using namespace jkoflow::test;
  std::vector<Work> list = all_work();
  std::vector<std::vector<Work>> got(kCallers, list);
  {
    // First, so that the callers also meet in the choice of the instruction set.
    std::vector<std::thread> callers;
    for (int caller = 0; caller < kCallers; ++caller) callers.emplace_back(run_caller, caller, std::ref(got[caller]));
    for (std::thread& caller : callers) caller.join();
  }
  for (Work& work : list) call(work, work.forward, work.backward, work.loss);
  expect_same_from_all("callers at once", list, got);

#if defined(_OPENMP) && !defined(__SANITIZE_THREAD__)
  // OpenMP gives callers inside a parallel region one thread, whatever they ask for.
  got.assign(kCallers, list);
#pragma omp parallel for num_threads(kCallers)
  for (int caller = 0; caller < kCallers; ++caller) run_caller(caller, got[caller]);
  expect_same_from_all("callers of a parallel region", list, got);
#endif
  std::printf("threads: %ld comparisons, %d failures\n", comparisons, failures);
  return failures == 0 ? 0 : 1;
}
