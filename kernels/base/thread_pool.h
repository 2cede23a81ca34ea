// ThreadPool: the CPU's workers. One caller at a time (the engine thread); workers sleep when idle.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

namespace headwater {

class ThreadPool {
 public:
  // num_threads counts the caller: 1 means no extra thread. 0 means usable_cpus().
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const;
  // Calls body(task, thread) for every task in [0, num_tasks), each once, in no stated order;
  // returns when all are done. thread is in [0, num_threads()): an index for scratch memory.
  // The body must not throw and must not depend on which thread runs it.
  void parallel_for(int64_t num_tasks, const std::function<void(int64_t task, int thread)>& body);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace headwater
