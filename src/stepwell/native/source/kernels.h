// What one instruction set offers: the same functions, compiled once for each.

#pragma once

#include "stepwell.h"

namespace stepwell {

struct Kernels {
    const char *name;
    int64_t (*workspace_bytes)(const stepwell_model *, int32_t rows, int32_t threads);
    void (*run)(const stepwell_model *, const stepwell_step *, int32_t threads);
    void (*uniform)(const uint32_t *addresses, int32_t rows, int32_t tokens, float *out, int32_t threads);
};

namespace baseline { extern const Kernels kernels; }
#ifdef STEPWELL_HAS_AVX2
namespace avx2 { extern const Kernels kernels; }
#endif
#ifdef STEPWELL_HAS_AVX512
namespace avx512 { extern const Kernels kernels; }
#endif

}  // namespace stepwell
