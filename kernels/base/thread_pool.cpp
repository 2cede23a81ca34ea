#include "kernels/base/thread_pool.h"

#include <atomic>
#include <chrono>
#include <limits>
#include <thread>
#include <vector>

#include "kernels/base/check.h"
#include "kernels/base/usable_cpus.h"

namespace headwater {
namespace {

// Long enough to bridge the serial code between two operations of a layer, short enough that an
// idle server burns nothing.
constexpr std::chrono::microseconds kSpin{50};
constexpr int kPausesPerClockRead = 16;

void cpu_pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Spins until ready() or until kSpin has passed; says whether ready() held.
template <typename Ready>
bool spin_until(const Ready& ready) {
  if (ready()) return true;
  const auto deadline = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < kPausesPerClockRead; ++i) {
      cpu_pause();
      if (ready()) return true;
    }
  } while (std::chrono::steady_clock::now() < deadline);
  return false;
}

}  // namespace

// A task is claimed by decrementing unclaimed. The body is read after the claim only, and its job
// cannot end before the claimed task has, so a worker that comes late (from an earlier job, from
// sleep) either claims a task of the job now running or nothing.
struct ThreadPool::Impl {
  using Body = std::function<void(int64_t task, int thread)>;

  const Body* body = nullptr;
  int32_t num_tasks = 0;
  alignas(64) std::atomic<int32_t> unclaimed{0};
  alignas(64) std::atomic<int32_t> unfinished{0};
  alignas(64) std::atomic<int32_t> wake{0};  // changes with every job
  std::atomic<int32_t> sleepers{0};
  std::atomic<bool> stopping{false};
  std::vector<std::thread> workers;

  void run_tasks(int thread) {
    int32_t left = unclaimed.load(std::memory_order_acquire);
    while (left > 0) {
      if (!unclaimed.compare_exchange_weak(left, left - 1, std::memory_order_acq_rel)) continue;
      (*body)(num_tasks - left, thread);
      if (unfinished.fetch_sub(1, std::memory_order_acq_rel) == 1) unfinished.notify_one();
      left = unclaimed.load(std::memory_order_acquire);
    }
  }

  void worker_loop(int thread) {
    while (true) {
      const auto has_work = [&] { return unclaimed.load() > 0 || stopping.load(); };
      if (!spin_until(has_work)) {
        const int32_t seen = wake.load();
        sleepers.fetch_add(1);
        if (!has_work()) wake.wait(seen);
        sleepers.fetch_sub(1);
      }
      if (stopping.load()) return;
      run_tasks(thread);
    }
  }

  void wake_workers() {
    wake.fetch_add(1);
    if (sleepers.load() > 0) wake.notify_all();
  }
};

ThreadPool::ThreadPool(int num_threads) : impl_(std::make_unique<Impl>()) {
  HW_CHECK(num_threads >= 0, "num_threads", num_threads);
  const int total = num_threads == 0 ? usable_cpus() : num_threads;
  impl_->workers.reserve(total - 1);
  for (int thread = 1; thread < total; ++thread) {
    impl_->workers.emplace_back([this, thread] { impl_->worker_loop(thread); });
  }
}

ThreadPool::~ThreadPool() {
  impl_->stopping.store(true);
  impl_->wake_workers();
  for (std::thread& worker : impl_->workers) worker.join();
}

int ThreadPool::num_threads() const { return static_cast<int>(impl_->workers.size()) + 1; }

void ThreadPool::parallel_for(int64_t num_tasks,
                              const std::function<void(int64_t task, int thread)>& body) {
  HW_CHECK(num_tasks <= std::numeric_limits<int32_t>::max(), "num_tasks", num_tasks);
  if (num_tasks <= 1 || impl_->workers.empty()) {
    for (int64_t task = 0; task < num_tasks; ++task) body(task, 0);
    return;
  }
  impl_->body = &body;
  impl_->num_tasks = static_cast<int32_t>(num_tasks);
  impl_->unfinished.store(impl_->num_tasks);
  impl_->unclaimed.store(impl_->num_tasks);
  impl_->wake_workers();
  impl_->run_tasks(0);

  std::atomic<int32_t>& unfinished = impl_->unfinished;
  spin_until([&] { return unfinished.load(std::memory_order_acquire) == 0; });
  for (int32_t left; (left = unfinished.load(std::memory_order_acquire)) != 0;) {
    unfinished.wait(left);
  }
}

}  // namespace headwater
