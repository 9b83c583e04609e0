// The C interface of the decode kernels: what Python hands over, and nothing of PyTorch.
//
// A step runs the tokens of any number of positions through all layers in one call. Every position is
// a row: it writes its key and value to the cache, then attends to all positions of its sequence up to
// itself. Several rows may belong to one sequence (a prompt, or drafted tokens to be verified), the
// earlier positions first. What a row computes has the same bits whatever rows stand beside it, and
// whatever the number of threads.
//
// All pointers stay owned by the caller and must outlive the call. Matrices are stored row after row.

#pragma once

#include <stdint.h>

#define STEPWELL_ABI 3
#define STEPWELL_BLOCK 64     // positions of a cache block
#define STEPWELL_GROUP 128    // int8: weights that share a scale

#ifdef __cplusplus
extern "C" {
#endif

enum stepwell_format { STEPWELL_F32 = 0, STEPWELL_BF16 = 1, STEPWELL_INT8 = 2 };
enum stepwell_activation { STEPWELL_SILU = 0, STEPWELL_GELU = 1, STEPWELL_GELU_TANH = 2, STEPWELL_RELU = 3 };

// y = W x + bias, W [outputs, inputs]. int8 holds q + 128 in unsigned bytes, each row padded with 128
// to whole groups, and w = scale * q with scale [outputs, groups].
typedef struct {
    const void *weight;
    const float *scale;
    const float *bias;        // [outputs] or null
    int32_t outputs, inputs;
    int32_t format;           // stepwell_format
} stepwell_linear;

// RMSNorm where bias is null and `centred` is 0, else LayerNorm. No weight: no normalisation.
typedef struct {
    const float *weight;
    const float *bias;
    int32_t centred;
    float eps;
} stepwell_norm;

typedef struct {
    stepwell_norm attention_norm, mlp_norm, q_norm, k_norm;
    stepwell_linear q, k, v, o, gate, up, down;   // gate.weight is null where the MLP is not gated
    float score_scale;
    int32_t window;                               // keys that a query looks back on; 0: all
} stepwell_layer;

typedef struct {
    int32_t width, num_heads, num_kv_heads, head_dim, mlp_width, num_layers, vocab_size;
    int32_t activation;                           // stepwell_activation
    int32_t float_format;                         // of embeddings and cache: F32 or BF16
    int32_t positions;                            // the most positions of a sequence
    const void *embedding;                        // [vocab_size, width]
    const void *position_embedding;               // [positions, width] or null
    const float *cosines, *sines;                 // [positions, head_dim] or null
    stepwell_norm final_norm;
    stepwell_linear head;
    const stepwell_layer *layers;
} stepwell_model;

// Where a step can be read or changed: the points of each layer, and behind the last layer the logits.
enum stepwell_point {
    STEPWELL_RESIDUAL_BEFORE = 0, STEPWELL_PATTERN = 1, STEPWELL_HEADS = 2, STEPWELL_ATTENTION_OUTPUT = 3,
    STEPWELL_MLP_OUTPUT = 4, STEPWELL_RESIDUAL_AFTER = 5, STEPWELL_POINTS = 6
};
enum stepwell_action { STEPWELL_SCALE = 0, STEPWELL_ADD = 1, STEPWELL_SET = 2, STEPWELL_KEEP = 3 };

// What happens at one point of one layer to some neighbouring rows: values are multiplied by `number`,
// replaced or added to by `values` (SET without them: by `number`), or kept at `to`. A pattern is that of
// a query, from key 0 on. What a query may not see stays zero.
typedef struct {
    const int32_t *slots;                         // [num_heads]: of which head's values, -1: stays; null: all
    const float *values;                          // of the first row, or null
    float *to;                                    // KEEP: where the first row's go
    int64_t row_stride, slot_stride;              // of `values` or `to`
    int32_t first_row, rows;
    int32_t action;                               // stepwell_action
    float number;
} stepwell_hook;

typedef struct {
    int32_t rows;
    int32_t table_width;
    int32_t first_row;                            // the number that hooks give to row 0
    const int32_t *ids;                           // [rows]
    const int32_t *positions;                     // [rows]
    const int32_t *tables;                        // [rows, table_width]: blocks of each row's sequence
    const uint8_t *wanted;                        // [rows]: whether its logits are asked for
    void *cache;                                  // [blocks, layers, 2, kv_heads, BLOCK, head_dim]
    float *logits;                                // [wanted rows, vocab_size]
    int32_t *best;                                // [wanted rows]: lowest id of the highest logit
    float *best_logit;                            // [wanted rows]: that logit; NaN where any logit is
    void *workspace;                              // stepwell_workspace_bytes(), any content
    const stepwell_hook *hooks;                   // sorted by layer and point, in the order of their effect
    const int32_t *hook_starts;                   // [layers * POINTS + 2]: each one's first; null without any
} stepwell_step;

#define STEPWELL_EXPORT __attribute__((visibility("default")))

STEPWELL_EXPORT int stepwell_abi(void);

// Selects an instruction set by name, "" for the best one. 0, or -1 where CPU or build lack it.
STEPWELL_EXPORT int stepwell_select(const char *name);
STEPWELL_EXPORT const char *stepwell_instruction_set(void);

// Shares the OpenMP runtime that is loaded already: addresses of GOMP_parallel, omp_get_thread_num and
// omp_get_num_threads. Without it all work is done by the calling thread.
STEPWELL_EXPORT void stepwell_use_openmp(void *parallel, void *thread_num, void *num_threads);

STEPWELL_EXPORT int64_t stepwell_workspace_bytes(const stepwell_model *model, int32_t rows, int32_t threads);
STEPWELL_EXPORT void stepwell_run(const stepwell_model *model, const stepwell_step *step, int32_t threads);

// Uniform noise, out [rows, tokens]; addresses [rows, 5]: two words of the key, three of the counter.
STEPWELL_EXPORT void stepwell_uniform(const uint32_t *addresses, int32_t rows, int32_t tokens, float *out,
                                      int32_t threads);

#ifdef __cplusplus
}
#endif
