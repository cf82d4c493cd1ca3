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
  Tensors<double> forward, backward, loss, steps, steps_back, evaluation, by_stages;  // what a lone caller gets
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
      Work work;
      work.c = c;
      work.in = random_inputs(c);
      list.push_back(work);
    }
  }
  return list;
}

// Through the dispatcher: each caller has working memory of its own, which grows and shrinks from call to call.
void call(Work& work) {
  work.forward = forward(nullptr, work.c, work.in, {});
  Tensors<double> with_path = work.in;
  with_path["path"] = work.forward.at("path");
  work.backward = backward(nullptr, work.c, with_path, {});
  work.loss = jko_loss(nullptr, work.c, work.in, 0.5, {});
  Case rows = work.c;
  rows.method = "bosh3";
  work.steps = adaptive(nullptr, rows, work.in, {});
  Tensors<double> recorded = work.steps;
  recorded.insert(work.in.begin(), work.in.end());
  work.steps_back = adaptive_backward(nullptr, rows, recorded, {});
  work.evaluation = evaluate(nullptr, rows, work.in, {});
  const Tensors<double> gradients = evaluate_backward(nullptr, rows, work.in, {});
  for (const auto& [name, gradient] : gradients) work.evaluation[name] = gradient;
  Case one = work.c;  // a step of one stage, whose network reads no t
  one.method = "euler";
  one.time = one.linear = false;
  work.by_stages = stagewise(nullptr, one, random_inputs(one), {1, false}, {});
  for (const auto& [name, gradient] : stagewise_backward(nullptr, one, random_inputs(one), {1, false}, {})) {
    work.by_stages[name] = gradient;
  }
}

void expect_same_from_all(const std::string& what, const std::vector<Work>& list,
                          const std::vector<std::vector<Work>>& got) {
  for (const std::vector<Work>& of_caller : got) {
    for (size_t i = 0; i < list.size(); ++i) {
      expect_close(what + ", forward of " + list[i].c.text(), of_caller[i].forward, list[i].forward, 0);
      expect_close(what + ", backward of " + list[i].c.text(), of_caller[i].backward, list[i].backward, 0);
      expect_close(what + ", loss of " + list[i].c.text(), of_caller[i].loss, list[i].loss, 0);
      expect_close(what + ", steps of " + list[i].c.text(), of_caller[i].steps, list[i].steps, 0);
      expect_close(what + ", adjoint of steps of " + list[i].c.text(), of_caller[i].steps_back, list[i].steps_back, 0);
      expect_close(what + ", evaluation of " + list[i].c.text(), of_caller[i].evaluation, list[i].evaluation, 0);
      expect_close(what + ", step by stages of " + list[i].c.text(), of_caller[i].by_stages, list[i].by_stages, 0);
    }
  }
}

// Caller number `caller` starts at another case than the others.
void run_caller(int caller, std::vector<Work>& mine) {
  for (size_t i = 0; i < mine.size(); ++i) {
    call(mine[(i + static_cast<size_t>(caller) * 3) % mine.size()]);
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
  for (Work& work : list) call(work);
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
