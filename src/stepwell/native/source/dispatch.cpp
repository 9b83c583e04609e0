// Picks the instruction set for this process and passes calls on to it.

#include "kernels.h"

#include <string.h>

namespace {

using stepwell::Kernels;

bool cpu_has_avx2() {
#if defined(STEPWELL_HAS_AVX2)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
    return false;
#endif
}

bool cpu_has_avx512() {
#if defined(STEPWELL_HAS_AVX512)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
#else
    return false;
#endif
}

const Kernels *find(const char *name) {
    const bool best = *name == '\0';
#ifdef STEPWELL_HAS_AVX512
    if ((best || !strcmp(name, "avx512")) && cpu_has_avx512()) return &stepwell::avx512::kernels;
#endif
#ifdef STEPWELL_HAS_AVX2
    if ((best || !strcmp(name, "avx2")) && cpu_has_avx2()) return &stepwell::avx2::kernels;
#endif
    if (best || !strcmp(name, "baseline")) return &stepwell::baseline::kernels;
    return nullptr;
}

const Kernels *selected = &stepwell::baseline::kernels;

}  // namespace

int stepwell_abi(void) { return STEPWELL_ABI; }

int stepwell_select(const char *name) {
    const Kernels *found = find(name);
    if (found == nullptr) return -1;
    selected = found;
    return 0;
}

const char *stepwell_instruction_set(void) { return selected->name; }

int64_t stepwell_workspace_bytes(const stepwell_model *model, int32_t rows, int32_t threads) {
    return selected->workspace_bytes(model, rows, threads);
}

void stepwell_run(const stepwell_model *model, const stepwell_step *step, int32_t threads) {
    selected->run(model, step, threads);
}

void stepwell_uniform(const uint32_t *addresses, int32_t rows, int32_t tokens, float *out, int32_t threads) {
    selected->uniform(addresses, rows, tokens, out, threads);
}
