#include "pool.hpp"

#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

namespace hpdval {
namespace {

class Pool {
public:
    void run(size_t threads, const std::function<void(size_t)>& job) {
        std::unique_lock<std::mutex> alone(busy_, std::try_to_lock);
        if (!alone.owns_lock()) return job(0);
        grow(threads - 1);
        {
            std::lock_guard<std::mutex> lock(mutex_);
            job_ = &job;
            wanted_ = running_ = std::min(threads - 1, count_);
            ++round_;
        }
        start_.notify_all();
        job(0);
        std::unique_lock<std::mutex> lock(mutex_);
        done_.wait(lock, [this] { return running_ == 0; });
    }

private:
    void grow(size_t count) {
        for (; count_ < count; ++count_) try {
                std::thread(&Pool::work, this, count_, round_).detach();
            } catch (const std::system_error&) {
                return;
            }
    }

    void work(size_t index, size_t seen) {
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            start_.wait(lock, [&] { return round_ != seen; });
            seen = round_;
            if (index >= wanted_) continue;
            const std::function<void(size_t)>& job = *job_;
            lock.unlock();
            job(index + 1);
            lock.lock();
            if (--running_ == 0) done_.notify_one();
        }
    }

    std::mutex busy_;   // held by the caller that uses the threads
    std::mutex mutex_;  // guards what follows
    std::condition_variable start_, done_;
    const std::function<void(size_t)>* job_ = nullptr;
    size_t round_ = 0, wanted_ = 0, running_ = 0;
    size_t count_ = 0;  // threads started; guarded by busy_
};

// Never destroyed: its threads may wait in it while the process ends. The threads of a parent do not exist in its child.
Pool& pool() {
    static std::mutex mutex;
    static Pool* current = nullptr;
    static pid_t owner = 0;
    std::lock_guard<std::mutex> lock(mutex);
    if (owner != getpid()) {
        current = new Pool;
        owner = getpid();
    }
    return *current;
}

}  // namespace

void run_parallel(size_t threads, const std::function<void(size_t)>& job) {
    if (threads <= 1) return job(0);
    pool().run(threads, job);
}

}  // namespace hpdval
