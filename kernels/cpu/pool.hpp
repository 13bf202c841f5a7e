// Threads that wait for work, shared by all callers of this process.
#pragma once

#include <stddef.h>

#include <functional>

namespace hpdval {

// Calls job(0) here and job(1) ... job(threads - 1) on other threads, side by side, and returns when all have returned.
// While another caller uses the threads, or where none can be started, only job(0) runs: a job must therefore take its
// share from a common counter. `job` must not throw. A forked child starts threads of its own.
void run_parallel(size_t threads, const std::function<void(size_t)>& job);

}  // namespace hpdval
