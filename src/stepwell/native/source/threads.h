// A team of threads that works through a step together: barriers, and work handed out in chunks.
//
// Only plain functions and compiler builtins, no templates: this header is compiled for several
// instruction sets, and what the linker merges must not contain instructions that a CPU lacks.

#pragma once

#include <sched.h>
#include <stdint.h>

namespace stepwell {

// What the threads of one step share.
struct Team {
    int32_t size;
    alignas(64) int32_t arrived;
    alignas(64) int32_t turn;
    alignas(64) int32_t next[2];   // the next chunk of this phase, and of the one after it
};

// One thread of the team, in one step.
struct Member {
    Team *team;
    int32_t index;
    int32_t phase;
};

static inline void relax(int spins) {
    if (spins > 1 << 14) {
        sched_yield();   // more threads than cores: let the others arrive
        return;
    }
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Waits until the whole team is here; what was written before is seen after. Starts a new phase.
static inline void barrier(Member &member) {
    Team &team = *member.team;
    const int32_t turn = __atomic_load_n(&team.turn, __ATOMIC_ACQUIRE);
    if (__atomic_add_fetch(&team.arrived, 1, __ATOMIC_ACQ_REL) == team.size) {
        team.arrived = 0;
        team.next[member.phase & 1] = 0;   // of the phase that ends; used again by the one after next
        __atomic_store_n(&team.turn, turn + 1, __ATOMIC_RELEASE);
    } else {
        for (int spins = 0; __atomic_load_n(&team.turn, __ATOMIC_ACQUIRE) == turn; ++spins) relax(spins);
    }
    ++member.phase;
}

// The next chunk of this phase that nobody has taken; at or above the number of chunks: none is left.
static inline int32_t take(Member &member) {
    return __atomic_fetch_add(&member.team->next[member.phase & 1], 1, __ATOMIC_RELAXED);
}

using Work = void (*)(Member &member, void *argument);

// Runs `work` on `threads` threads of the runtime that is shared, or on this one alone.
void run_team(Work work, void *argument, int32_t threads);

}  // namespace stepwell
