#include "emulator.h"

#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cmath>
#include <cstring>
#include <stdexcept>
#include <vector>

#ifdef EMULATOR_WITH_TSAN
#include <sanitizer/tsan_interface.h>
#define TSAN 1
#else
#define TSAN 0
#endif
#define SEPARATE __attribute__((noinline))  // looks up the running thread, which a switch of fibers changes

namespace emulator {
namespace {

constexpr size_t kStack = 256 << 10;
constexpr size_t kPage = 4096;
constexpr int kWarp = 32;

enum class State : uint8_t { kRunnable, kInWarp, kInBlock, kDone };
enum class Collective : uint8_t { kSync, kShuffle, kMma };

struct Warp {
  float values[kWarp][4], results[kWarp][4];
  uint32_t factors[kWarp][6];
  int masks[kWarp];
  int waiting = 0;
  Collective collective = Collective::kSync;
  char order = 0;  // stands for the warp barrier to ThreadSanitizer
};

struct Fiber {
  int thread = 0;
  State state = State::kRunnable;
  bool started = false;
  ucontext_t context;
  void* jump[5];
  void* sanitizer = nullptr;
};

struct Machine {
  int block = 0, blocks = 0, threads = 0;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  float* shared = nullptr;
  const std::function<void()>* body = nullptr;
  Fiber* current = nullptr;
  int waiting = 0, done = 0, which = 0, phase = 0;
  std::string failure;
  void* main_jump[5];
  void* main_sanitizer = nullptr;
  char *guard = nullptr, *guard_end = nullptr;
  // Start, end and the two phases of the barrier: each its own object, or one would order what another should.
  char start = 0, finish = 0, barrier[2] = {0, 0};
  uint64_t random = 88172645463325252ull;
};

Machine* machine = nullptr;
// ThreadSanitizer's fibers, the same in every launch, since making one is slow. Start and end of a block order them.
std::vector<void*> sanitizer_fibers;
Settings current_settings;
Counts current_counts;
int current_races = 0;

SEPARATE void release(void* object) {
#if TSAN
  __tsan_release(object);
#else
  (void)object;
#endif
}
SEPARATE void acquire(void* object) {
#if TSAN
  __tsan_acquire(object);
#else
  (void)object;
#endif
}

SEPARATE uint32_t random_number() {
  uint64_t& r = machine->random;
  r ^= r << 13;
  r ^= r >> 7;
  r ^= r << 17;
  return static_cast<uint32_t>(r >> 11);
}

void enter();

SEPARATE void jump_to(Fiber* to) {
  if (to == nullptr) __builtin_longjmp(machine->main_jump, 1);
  if (to->started) __builtin_longjmp(to->jump, 1);
  to->started = true;
  setcontext(&to->context);
}

// Leaves the running fiber (or, null, the scheduler's caller) for another. The compiler's own setjmp: the library's
// asks the kernel about signals or is watched by ThreadSanitizer, and this is called millions of times.
SEPARATE void switch_to(Fiber* from, Fiber* to) {
  machine->current = to;
#if TSAN
  __tsan_switch_to_fiber(to != nullptr ? to->sanitizer : machine->main_sanitizer, __tsan_switch_to_fiber_no_sync);
#endif
  if (__builtin_setjmp(from != nullptr ? from->jump : machine->main_jump) != 0) return;
  jump_to(to);
}

// The next runnable thread, those of the same warp first.
SEPARATE Fiber* runnable() {
  Machine& m = *machine;
  const int warps = m.threads / kWarp, direction = current_settings.order == Order::kDescending ? -1 : 1;
  int warp = m.current != nullptr ? m.current->thread / kWarp : 0;
  const int lane = m.current != nullptr ? m.current->thread % kWarp : 0;
  if (current_settings.order == Order::kRandom && random_number() % 16 == 0) {
    warp = static_cast<int>(random_number() % warps);
  }
  for (int i = 0; i < warps; ++i) {
    const int w = (warp + direction * i + warps) % warps;
    for (int j = 1; j <= kWarp; ++j) {
      Fiber& fiber = m.fibers[w * kWarp + (lane + direction * j + 2 * kWarp) % kWarp];
      if (fiber.state == State::kRunnable) return &fiber;
    }
  }
  return nullptr;
}

// The current thread cannot go on.
SEPARATE void wait() {
  Machine& m = *machine;
  Fiber *from = m.current, *to = runnable();
  if (to == nullptr && m.done != m.threads) {
    fail("deadlock: threads wait in a barrier or collective that others never reach");
  }
  if (to != from) switch_to(from, to);
}

SEPARATE void finish() {
  Machine& m = *machine;
  release(&m.finish);
  m.current->state = State::kDone;
  ++m.done;
  if (m.waiting > 0 || m.warps[m.current->thread / kWarp].waiting > 0) {
    fail("a thread ended while others wait for it in a barrier or collective");
  }
  wait();
}

void enter() {
  acquire(&machine->start);
  (*machine->body)();
  finish();
}

SEPARATE float tf32(uint32_t bits) {
  bits &= 0xffffe000u;
  float v;
  std::memcpy(&v, &bits, sizeof v);
  return v;
}

SEPARATE void multiply(Warp& w) {
  float a[16][8], b[8][8], c[16][8];
  for (int lane = 0; lane < kWarp; ++lane) {
    const int g = lane / 4, t = lane % 4;
    const uint32_t* f = w.factors[lane];
    a[g][t] = tf32(f[0]);
    a[g + 8][t] = tf32(f[1]);
    a[g][t + 4] = tf32(f[2]);
    a[g + 8][t + 4] = tf32(f[3]);
    b[t][g] = tf32(f[4]);
    b[t + 4][g] = tf32(f[5]);
    for (int j = 0; j < 4; ++j) c[g + 8 * (j / 2)][2 * t + j % 2] = w.values[lane][j];
  }
  for (int i = 0; i < 16; ++i) {
    if (!current_settings.truncate) {
      for (int k = 0; k < 8; ++k) {
        for (int j = 0; j < 8; ++j) c[i][j] += a[i][k] * b[k][j];
      }
      continue;
    }
    for (int j = 0; j < 8; ++j) {
      double sum = c[i][j];
      for (int k = 0; k < 8; ++k) sum += static_cast<double>(a[i][k]) * b[k][j];
      float rounded = static_cast<float>(sum);
      if (std::fabs(static_cast<double>(rounded)) > std::fabs(sum)) rounded = std::nextafterf(rounded, 0.0f);
      c[i][j] = rounded;
    }
  }
  for (int lane = 0; lane < kWarp; ++lane) {
    for (int j = 0; j < 4; ++j) w.results[lane][j] = c[lane / 4 + 8 * (j / 2)][2 * (lane % 4) + j % 2];
  }
}

SEPARATE void collective(Collective which) {
  Machine& m = *machine;
  Warp& w = m.warps[m.current->thread / kWarp];
  if (w.waiting == 0) {
    w.collective = which;
  } else if (w.collective != which) {
    fail("lanes of a warp met in different collectives");
  }
  if (++w.waiting < kWarp) {
    m.current->state = State::kInWarp;
    wait();
    return;
  }
  if (which == Collective::kShuffle) {
    ++current_counts.shuffles;
    for (int lane = 0; lane < kWarp; ++lane) w.results[lane][0] = w.values[(lane ^ w.masks[lane]) % kWarp][0];
  } else if (which == Collective::kMma) {
    ++current_counts.tensor_products;
    multiply(w);
  } else {
    ++current_counts.warp_barriers;
  }
  w.waiting = 0;
  Fiber* first = &m.fibers[m.current->thread / kWarp * kWarp];
  for (int lane = 0; lane < kWarp; ++lane) first[lane].state = State::kRunnable;
}

// ---- Accesses beyond shared memory

struct sigaction previous_action;

void on_fault(int signal, siginfo_t* info, void*) {
  char* address = static_cast<char*>(info->si_addr);
  if (machine != nullptr && machine->current != nullptr && address >= machine->guard && address < machine->guard_end) {
    fail("access beyond shared memory");
  }
  sigaction(signal, &previous_action, nullptr);  // not ours: the instruction faults again for whoever is next
}

class FaultHandler {
 public:
  FaultHandler() {
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;  // left by a jump
    sigaction(SIGSEGV, &action, &previous_action);
  }
  ~FaultHandler() { sigaction(SIGSEGV, &previous_action, nullptr); }
};

class Pages {
 public:
  explicit Pages(size_t bytes) : bytes_(bytes) {
    memory_ = static_cast<char*>(
        mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (memory_ == MAP_FAILED) throw std::bad_alloc();
  }
  ~Pages() { munmap(memory_, bytes_); }
  Pages(const Pages&) = delete;
  char* get() const { return memory_; }

 private:
  char* memory_;
  size_t bytes_;
};

SEPARATE void run_block(Machine& m, char* stacks, size_t shared_bytes) {
  m.done = m.waiting = 0;
  std::memset(m.shared, 0xff, shared_bytes);
  for (Warp& w : m.warps) w.waiting = 0;
  for (int i = 0; i < m.threads; ++i) {
    Fiber& fiber = m.fibers[i];
    fiber.thread = i;
    fiber.state = State::kRunnable;
    fiber.started = false;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = stacks + kStack * i;
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, enter, 0);
  }
#if TSAN
  m.main_sanitizer = __tsan_get_current_fiber();
  while (sanitizer_fibers.size() < m.fibers.size()) sanitizer_fibers.push_back(__tsan_create_fiber(0));
  for (int i = 0; i < m.threads; ++i) m.fibers[i].sanitizer = sanitizer_fibers[i];
#endif
  release(&m.start);
  m.current = nullptr;
  switch_to(nullptr, &m.fibers[current_settings.order == Order::kDescending ? m.threads - 1 : 0]);
#if TSAN
  // After a failure threads are abandoned where they are: what they did must not look like a race with what follows.
  for (int i = 0; i < m.threads && !m.failure.empty(); ++i) {
    __tsan_switch_to_fiber(m.fibers[i].sanitizer, __tsan_switch_to_fiber_no_sync);
    release(&m.finish);
    __tsan_switch_to_fiber(m.main_sanitizer, __tsan_switch_to_fiber_no_sync);
  }
#endif
  acquire(&m.finish);
}

}  // namespace

int races() { return current_races; }
void forget_races() { current_races = 0; }

Settings& settings() { return current_settings; }

float approximate(float v, double relative) {
  if (!current_settings.approximate || !std::isfinite(v)) return v;
  uint32_t bits;
  std::memcpy(&bits, &v, sizeof bits);
  bits = (bits ^ (bits >> 15)) * 0x9e3779b1u;
  const double draw = (bits >> 8) * 0x1p-23 - 1.0;  // in [-1, 1)
  return static_cast<float>(v * (1.0 + relative * draw));
}
Counts& counts() { return current_counts; }

void launch(int blocks, int threads, size_t shared_bytes, const std::function<void()>& body) {
  if (blocks < 1) throw std::runtime_error("emulated launch of " + std::to_string(blocks) + " blocks");
  if (threads < 1 || threads > 1024 || threads % kWarp != 0) {
    throw std::runtime_error("a block must have a multiple of 32 threads, up to 1024, got " + std::to_string(threads));
  }
  // Never freed: a new address for each launch keeps what ThreadSanitizer knows of the last one apart.
  machine = new Machine;
  Machine& m = *machine;
  m.blocks = blocks;
  m.threads = threads;
  m.fibers.resize(threads);
  m.warps.resize(threads / kWarp);
  m.body = &body;
  shared_bytes = (shared_bytes + 127) / 128 * 128;
  const size_t pages = (shared_bytes + kPage - 1) / kPage * kPage;
  const Pages memory(pages + 64 * kPage), stacks(kStack * threads);
  m.guard = memory.get() + pages;
  m.guard_end = m.guard + 64 * kPage;
  mprotect(m.guard, m.guard_end - m.guard, PROT_NONE);
  m.shared = reinterpret_cast<float*>(m.guard - shared_bytes);
  const FaultHandler handler;
  for (m.block = 0; m.block < blocks && m.failure.empty(); ++m.block) run_block(m, stacks.get(), shared_bytes);
  const std::string failure = m.failure;
  m.fibers.clear();
  m.fibers.shrink_to_fit();
  machine = nullptr;
  if (!failure.empty()) throw std::runtime_error(failure);
}

SEPARATE int thread() { return machine->current->thread; }
SEPARATE int block() { return machine->block; }
SEPARATE int blocks() { return machine->blocks; }
SEPARATE int block_threads() { return machine->threads; }
SEPARATE float* shared() { return machine->shared; }

SEPARATE void fail(const std::string& what) {
  Machine& m = *machine;
  m.failure = what + " (block " + std::to_string(m.block) + ", thread " + std::to_string(m.current->thread) + ")";
  switch_to(m.current, nullptr);
  __builtin_unreachable();
}

SEPARATE void sync_block(int which) {
  if (current_settings.stop_at_race && current_races > 0) fail("race");
  if (which == current_settings.missing_barrier) return;
  Machine& m = *machine;
  const int phase = m.phase & 1;
  release(&m.barrier[phase]);
  if (m.waiting == 0) {
    m.which = which;
  } else if (m.which != which) {
    fail("threads of a block met in different barriers");
  }
  if (++m.waiting == m.threads) {
    ++current_counts.block_barriers;
    m.waiting = 0;
    ++m.phase;
    for (Fiber& fiber : m.fibers) fiber.state = State::kRunnable;
    if (current_settings.order != Order::kAscending) {
      Fiber* to =
          &m.fibers[current_settings.order == Order::kDescending ? m.threads - 1
                                                                 : static_cast<int>(random_number() % m.threads)];
      if (to != m.current) switch_to(m.current, to);
    }
  } else {
    m.current->state = State::kInBlock;
    wait();
  }
  acquire(&machine->barrier[phase]);
}

SEPARATE void sync_warp() {
  Warp* w = &machine->warps[machine->current->thread / kWarp];
  release(&w->order);
  collective(Collective::kSync);
  acquire(&w->order);
}

SEPARATE float shuffle_xor(float v, int mask) {
  const int thread = machine->current->thread;
  Warp& w = machine->warps[thread / kWarp];
  w.values[thread % kWarp][0] = v;
  w.masks[thread % kWarp] = mask;
  collective(Collective::kShuffle);
  return w.results[thread % kWarp][0];
}

SEPARATE void mma_tf32(float* c, const uint32_t* a, uint32_t b0, uint32_t b1) {
  const int thread = machine->current->thread;
  Warp& w = machine->warps[thread / kWarp];
  const int lane = thread % kWarp;
  std::memcpy(w.values[lane], c, sizeof w.values[lane]);
  std::memcpy(w.factors[lane], a, 4 * sizeof *a);
  w.factors[lane][4] = b0;
  w.factors[lane][5] = b1;
  collective(Collective::kMma);
  std::memcpy(c, w.results[lane], sizeof w.results[lane]);
}

}  // namespace emulator

#if TSAN
// Called by ThreadSanitizer for every report, with its locks held: what is instrumented must not run here.
extern "C" __attribute__((visibility("default"))) void __tsan_on_report(void*) { ++emulator::current_races; }
#endif
