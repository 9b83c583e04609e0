#include "threads.h"

#include "stepwell.h"

namespace {

using Parallel = void (*)(void (*)(void *), void *, unsigned, unsigned);
using Query = int (*)();

Parallel parallel = nullptr;
Query thread_num = nullptr;
Query num_threads = nullptr;

struct Call {
    stepwell::Work work;
    void *argument;
    stepwell::Team team;
};

void enter(void *data) {
    Call &call = *static_cast<Call *>(data);
    // The runtime may start fewer threads than were asked for; all of them say the same number.
    __atomic_store_n(&call.team.size, num_threads(), __ATOMIC_RELAXED);
    stepwell::Member member{&call.team, thread_num(), 0};
    call.work(member, call.argument);
}

}  // namespace

namespace stepwell {

void run_team(Work work, void *argument, int32_t threads) {
    Call call{work, argument, {1, 0, 0, {0, 0}}};
    if (threads > 1 && parallel != nullptr) {
        parallel(enter, &call, static_cast<unsigned>(threads), 0);
        return;
    }
    Member member{&call.team, 0, 0};
    work(member, argument);
}

}  // namespace stepwell

void stepwell_use_openmp(void *address, void *thread_num_address, void *num_threads_address) {
    parallel = reinterpret_cast<Parallel>(address);
    thread_num = reinterpret_cast<Query>(thread_num_address);
    num_threads = reinterpret_cast<Query>(num_threads_address);
}
