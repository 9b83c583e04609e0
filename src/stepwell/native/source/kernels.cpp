// One step through all layers, compiled for one instruction set.
//
//     ids -> embedding -> layers -> final norm -> head -> logits, and the highest of them
//
// The threads of a team walk through the same phases, with a barrier after each. In a phase they take
// chunks of outputs (or rows) until none is left; what they produce for others is float32 in shared
// buffers, and each thread prepares the inputs of its own products, which costs less than a barrier.

#include "kernels.h"

#include "attention.h"
#include "elementwise.h"
#include "hooks.h"
#include "int8.h"
#include "linear.h"
#include "noise.h"
#include "threads.h"

namespace stepwell {
namespace STEPWELL_ISA {

namespace {

// A buffer handed out from the front of the workspace, aligned to cache lines.
template <class Value>
Value *carve(char *&at, int64_t count) {
    Value *start = reinterpret_cast<Value *>(at);
    at += round_up(count * (int64_t)sizeof(Value), 64);
    return start;
}

// What one thread works in, and nobody else reads (but `best`, at the end).
struct Private {
    Operand operand;
    float *normed;               // [rows, width]
    float *strip, *gate;         // [rows, strip]
    Scores attention;
    int32_t *best;               // [rows]
    float *best_logit;           // [rows]

    Private(const stepwell_model &model, int64_t rows, int64_t length, char *&at) {
        const int64_t inner = model.mlp_width > model.num_heads * model.head_dim ? model.mlp_width
                                                                                 : model.num_heads * model.head_dim;
        const int64_t inputs = round_up(inner > model.width ? inner : model.width, GROUP);
        const int64_t queries = tile_positions(model) * (model.num_heads / model.num_kv_heads);
        operand = {carve<float>(at, rows * inputs), carve<float>(at, rows * inputs / GROUP),
                   carve<int32_t>(at, rows * inputs / GROUP * LANES), 0};
        normed = carve<float>(at, rows * model.width);
        strip = carve<float>(at, rows * strip_width(model));
        gate = carve<float>(at, rows * strip_width(model));
        attention.queries = {carve<float>(at, queries * round_up(model.head_dim, 64)), nullptr, nullptr, 0};
        attention.stride = round_up(length + LANES, LANES);
        attention.scores = carve<float>(at, queries * attention.stride);
        attention.mixtures = carve<float>(at, queries * model.head_dim);
        attention.totals = carve<float>(at, queries);
        best = carve<int32_t>(at, rows);
        best_logit = carve<float>(at, rows);
    }

    // Positions of a sequence whose attention is computed together.
    static int32_t tile_positions(const stepwell_model &model) {
        const int32_t group = model.num_heads / model.num_kv_heads;
        return group < QUERIES ? QUERIES / group : 1;
    }

    static int64_t strip_width(const stepwell_model &model) {
        return round_up(model.head_dim > STRIP ? model.head_dim : STRIP, LANES);
    }
};

// What the whole team works in.
struct Shared {
    float *x;          // [rows, width]: the residual stream
    float *q, *heads;  // [rows, num_heads * head_dim]
    float *inner;      // [rows, mlp_width]
    int32_t *tiles;    // [rows + 1]: where each tile of neighbouring positions begins, and the end
    int32_t *num_tiles;

    Shared(const stepwell_model &model, int64_t rows, char *&at)
        : x(carve<float>(at, rows * model.width)),
          q(carve<float>(at, rows * model.num_heads * model.head_dim)),
          heads(carve<float>(at, rows * model.num_heads * model.head_dim)),
          inner(carve<float>(at, rows * model.mlp_width)),
          tiles(carve<int32_t>(at, rows + 1)),
          num_tiles(carve<int32_t>(at, 1)) {}
};

constexpr int32_t ROWS = 256;   // that go through all layers together; further ones come after them

int64_t workspace_bytes(const stepwell_model *model, int32_t most, int32_t threads) {
    const int32_t rows = most < ROWS ? most : ROWS;
    char *start = nullptr, *at = start;
    Shared(*model, rows, at);
    for (int32_t thread = 0; thread < threads; ++thread) Private(*model, rows, model->positions, at);
    return at - start + 64;
}

void prepare(const stepwell_linear &layer, const float *x, int64_t stride, int32_t rows, Operand &to) {
    switch (layer.format) {
        case STEPWELL_F32: return convert<F32>(x, stride, rows, layer.inputs, to);
        case STEPWELL_BF16: return convert<BF16>(x, stride, rows, layer.inputs, to);
        default: return convert_int8(x, stride, rows, layer.inputs, to);
    }
}

// out[r][i] = output first + i of row r, with bias.
void apply(const stepwell_linear &layer, int32_t first, int32_t count, const Operand &x, int32_t rows, float *out,
           int64_t stride) {
    switch (layer.format) {
        case STEPWELL_F32: multiply<F32>(layer, first, count, x, rows, out, stride); break;
        case STEPWELL_BF16: multiply<BF16>(layer, first, count, x, rows, out, stride); break;
        default: multiply<INT8>(layer, first, count, x, rows, out, stride);
    }
    if (layer.bias == nullptr) return;
    for (int32_t row = 0; row < rows; ++row)
        for (int32_t i = 0; i < count; ++i) out[row * stride + i] += layer.bias[first + i];
}

// One thread on its way through one step.
class Worker {
public:
    Worker(const stepwell_model &model, const stepwell_step &step, Member &member, const Shared &shared,
           const Private &own)
        : model(model), step(step), member(member), shared(shared), own(own), stride(Private::strip_width(model)),
          group(model.num_heads / model.num_kv_heads), queries(model.num_heads * model.head_dim) {}

    void run() {
        embed();
        for (int32_t layer = 0; layer < model.num_layers; ++layer) {
            const stepwell_layer &weights = model.layers[layer];
            project(weights, layer);
            attention(weights, layer);
            add(weights.o, shared.heads, queries, at(layer, STEPWELL_ATTENTION_OUTPUT), none, none);
            feed_forward(weights);
            const bool last = layer + 1 == model.num_layers;
            add(weights.down, shared.inner, model.mlp_width, at(layer, STEPWELL_MLP_OUTPUT),
                at(layer, STEPWELL_RESIDUAL_AFTER), last ? none : at(layer + 1, STEPWELL_RESIDUAL_BEFORE));
        }
        head();
    }

private:
    static constexpr Hooks none = {nullptr, nullptr};

    // What happens at a point of a layer; the logits are point 0 behind the last layer.
    Hooks at(int32_t layer, int32_t point) const {
        if (step.hook_starts == nullptr) return none;
        const int32_t *starts = step.hook_starts + layer * STEPWELL_POINTS + point;
        return {step.hooks + starts[0], step.hooks + starts[1]};
    }

    // How many outputs a thread takes at a time: half of its share, in whole tiles.
    int32_t strip_of(int32_t outputs) const {
        const int64_t share = round_up(outputs / (2 * member.team->size) + 1, 8);
        return (int32_t)(share < STRIP ? share : STRIP);
    }

    // Calls do_strip(first, count) for every strip of outputs that this thread takes; then waits.
    template <class Do>
    void strips(int32_t outputs, Do do_strip) {
        const int32_t width = strip_of(outputs);
        for (int32_t first; (first = take(member) * width) < outputs;)
            do_strip(first, outputs - first < width ? outputs - first : width);
        barrier(member);
    }

    void embed() {
        for (int32_t row; (row = take(member)) < step.rows;) {
            if (row == 0) find_tiles();
            float *x = shared.x + (int64_t)row * model.width;
            copy(model.embedding, step.ids[row], x);
            if (model.position_embedding != nullptr) {
                copy(model.position_embedding, step.positions[row], own.normed);
                for (int32_t k = 0; k < model.width; ++k) x[k] += own.normed[k];
            }
            at(0, STEPWELL_RESIDUAL_BEFORE).touch(step.first_row + row, 0, 0, model.width, x);
        }
        barrier(member);
    }

    // Rows next to each other that stand at neighbouring positions of one sequence are a tile.
    void find_tiles() {
        const int32_t most = Private::tile_positions(model);
        int32_t count = 0;
        for (int32_t row = 0; row < step.rows; ++row)
            if (row == 0 || row - shared.tiles[count - 1] == most || !follows(row)) shared.tiles[count++] = row;
        shared.tiles[count] = step.rows;
        *shared.num_tiles = count;
    }

    // Whether a row stands behind the one before it.
    bool follows(int32_t row) const {
        const int32_t *table = step.tables + (int64_t)row * step.table_width;
        const size_t seen = step.positions[row - 1] / BLOCK + 1;
        return step.positions[row] == step.positions[row - 1] + 1 &&
               memcmp(table, table - step.table_width, seen * sizeof *table) == 0;
    }

    void copy(const void *table, int64_t entry, float *to) const {
        const int64_t start = entry * model.width;
        if (model.float_format == STEPWELL_BF16) {
            for (int32_t k = 0; k < model.width; ++k) to[k] = to_float(static_cast<const bf16 *>(table)[start + k]);
        } else {
            memcpy(to, static_cast<const float *>(table) + start, model.width * sizeof(float));
        }
    }

    // Normalises all rows, as inputs of a layer.
    void normalized(const stepwell_norm &norm, const stepwell_linear &layer) {
        for (int32_t row = 0; row < step.rows; ++row)
            normalize(norm, shared.x + (int64_t)row * model.width, model.width, own.normed + (int64_t)row * model.width);
        prepare(layer, own.normed, model.width, step.rows, own.operand);
    }

    // Queries, keys and values, a head at a time; keys and values go to the cache.
    void project(const stepwell_layer &weights, int32_t layer) {
        normalized(weights.attention_norm, weights.q);
        const int32_t total = model.num_heads + 2 * model.num_kv_heads;
        for (int32_t head; (head = take(member)) < total;) {
            const int32_t kv = head - model.num_heads;
            if (kv < 0) project_head(weights.q, weights.q_norm, head, true);
            else if (kv < model.num_kv_heads) project_head(weights.k, weights.k_norm, kv, true);
            else project_head(weights.v, {nullptr, nullptr, 0, 0}, kv - model.num_kv_heads, false);
            for (int32_t row = 0; row < step.rows; ++row) {
                const float *from = own.strip + row * stride;
                if (kv < 0) memcpy(shared.q + row * queries + head * model.head_dim, from, model.head_dim * sizeof(float));
                else if (model.float_format == STEPWELL_BF16) keep<bf16>(layer, kv, row, from);
                else keep<float>(layer, kv, row, from);
            }
        }
        barrier(member);
    }

    void project_head(const stepwell_linear &linear, const stepwell_norm &norm, int32_t head, bool turns) {
        apply(linear, head * model.head_dim, model.head_dim, own.operand, step.rows, own.strip, stride);
        for (int32_t row = 0; row < step.rows; ++row) {
            float *value = own.strip + row * stride;
            if (norm.weight != nullptr) normalize(norm, value, model.head_dim, value);
            if (!turns || model.cosines == nullptr) continue;
            const int64_t at = (int64_t)step.positions[row] * model.head_dim;
            rotate(value, model.cosines + at, model.sines + at, model.head_dim);
        }
    }

    // The past of a row, as seen by one key head of one layer.
    template <class Value>
    Past<Value> past(int32_t layer, int32_t head, int32_t row) const {
        const int64_t one = (int64_t)BLOCK * model.head_dim, half = model.num_kv_heads * one;
        return {static_cast<Value *>(step.cache) + 2 * layer * half + head * one, 2 * model.num_layers * half, half,
                step.tables + (int64_t)row * step.table_width, model.head_dim};
    }

    // Writes a key (or, from num_kv_heads on, a value) to the cache.
    template <class Value>
    void keep(int32_t layer, int32_t head, int32_t row, const float *from) const {
        const bool is_value = head >= model.num_kv_heads;
        const Past<Value> cells = past<Value>(layer, is_value ? head - model.num_kv_heads : head, row);
        Value *to = is_value ? cells.values(step.positions[row]) : cells.keys(step.positions[row]);
        if constexpr (sizeof(Value) == 2) {
            for (int32_t d = 0; d < model.head_dim; ++d) to[d] = to_bf16(from[d]);
        } else {
            memcpy(to, from, model.head_dim * sizeof(float));
        }
    }

    void attention(const stepwell_layer &weights, int32_t layer) {
        const int32_t tiles = *shared.num_tiles;
        for (int32_t task; (task = take(member)) < tiles * model.num_kv_heads;) {
            const int32_t head = task / tiles, row = shared.tiles[task % tiles];
            const int32_t count = shared.tiles[task % tiles + 1] - row;
            if (model.float_format == STEPWELL_BF16) attend_rows<BF16>(weights, layer, row, count, head);
            else attend_rows<F32>(weights, layer, row, count, head);
        }
        barrier(member);
    }

    template <class Format>
    void attend_rows(const stepwell_layer &weights, int32_t layer, int32_t row, int32_t count, int32_t head) {
        const int64_t start = row * queries + (int64_t)head * group * model.head_dim;
        const Patterns patterns = {at(layer, STEPWELL_PATTERN), step.first_row + row, head * group};
        attend<Format>(past<typename Format::Weight>(layer, head, row + count - 1), shared.q + start, queries, count, group,
                       step.positions[row], weights.score_scale, weights.window, patterns, own.attention,
                       shared.heads + start);
        const Hooks hooks = at(layer, STEPWELL_HEADS);
        for (int32_t i = 0; hooks.any() && i < count * group; ++i)
            hooks.touch(patterns.row + i / group, patterns.head + i % group, 0, model.head_dim,
                        shared.heads + start + i / group * queries + i % group * model.head_dim);
    }

    // Adds a linear layer's outputs to the residual stream. Hooks: of the outputs, then of the stream.
    void add(const stepwell_linear &layer, const float *inputs, int64_t input_stride, Hooks outputs, Hooks after,
             Hooks before) {
        prepare(layer, inputs, input_stride, step.rows, own.operand);
        strips(layer.outputs, [&](int32_t first, int32_t count) {
            apply(layer, first, count, own.operand, step.rows, own.strip, stride);
            for (int32_t row = 0; row < step.rows; ++row) {
                float *x = shared.x + (int64_t)row * model.width + first, *output = own.strip + row * stride;
                outputs.touch(step.first_row + row, 0, first, count, output);
                for (int32_t i = 0; i < count; ++i) x[i] += output[i];
                after.touch(step.first_row + row, 0, first, count, x);
                before.touch(step.first_row + row, 0, first, count, x);
            }
        });
    }

    void feed_forward(const stepwell_layer &weights) {
        normalized(weights.mlp_norm, weights.up);
        const bool gated = weights.gate.weight != nullptr;
        strips(model.mlp_width, [&](int32_t first, int32_t count) {
            if (gated) apply(weights.gate, first, count, own.operand, step.rows, own.gate, stride);
            apply(weights.up, first, count, own.operand, step.rows, own.strip, stride);
            for (int32_t row = 0; row < step.rows; ++row)
                activate_row(gated ? own.gate + row * stride : nullptr, own.strip + row * stride, count,
                             model.activation, shared.inner + (int64_t)row * model.mlp_width + first);
        });
    }

    // Logits of the rows that are wanted, and the highest of each.
    void head() {
        int32_t wanted = 0;
        for (int32_t row = 0; row < step.rows; ++row) {
            if (!step.wanted[row]) continue;
            normalize(model.final_norm, shared.x + (int64_t)row * model.width, model.width,
                      own.normed + (int64_t)wanted++ * model.width);
        }
        prepare(model.head, own.normed, model.width, wanted, own.operand);
        for (int32_t row = 0; row < wanted; ++row) own.best[row] = -1;
        strips(wanted > 0 ? model.vocab_size : 0, [&](int32_t first, int32_t count) {
            apply(model.head, first, count, own.operand, wanted, own.strip, stride);
            for (int32_t row = 0, out = 0; row < step.rows; ++row) {
                if (!step.wanted[row]) continue;
                float *logits = own.strip + out * stride;
                at(model.num_layers, 0).touch(step.first_row + row, 0, first, count, logits);
                memcpy(step.logits + (int64_t)out * model.vocab_size + first, logits, count * sizeof(float));
                if (may_win(logits, count, own.best[out] < 0 ? -__builtin_inff() : own.best_logit[out]))
                    for (int32_t i = 0; i < count; ++i) prefer(own, out, first + i, logits[i]);
                ++out;
            }
        });
    }

    // Whether one of the logits is NaN or at least `held`: most strips hold neither.
    static bool may_win(const float *logits, int32_t count, float held) {
        Ints wins = {};
        int32_t i = 0;
        for (; i + LANES <= count; i += LANES) wins |= ~(load(logits + i) < held);
        bool any = false;
        for (int32_t lane = 0; lane < LANES; ++lane) any |= wins[lane] != 0;
        for (; i < count; ++i) any |= !(logits[i] < held);
        return any;
    }

public:
    // Keeps the higher of two logits, the lower id where they are equal, and NaN whatever comes.
    static void prefer(const Private &to, int32_t row, int32_t id, float logit) {
        const float held = to.best_logit[row];
        const bool first = to.best[row] < 0;
        if (first || logit > held || logit != logit || (logit == held && id < to.best[row])) {
            if (!first && held != held) return;
            to.best[row] = id;
            to.best_logit[row] = logit;
        }
    }

private:
    const stepwell_model &model;
    const stepwell_step &step;
    Member &member;
    const Shared &shared;
    Private own;
    const int64_t stride;
    const int32_t group;
    const int64_t queries;
};

int32_t count_wanted(const stepwell_step &step) {
    int32_t count = 0;
    for (int32_t row = 0; row < step.rows; ++row) count += step.wanted[row] != 0;
    return count;
}

struct Call {
    const stepwell_model *model;
    const stepwell_step *step;
    int32_t threads;
};

void work(Member &member, void *argument) {
    const Call &call = *static_cast<Call *>(argument);
    const stepwell_model &model = *call.model;
    const stepwell_step &step = *call.step;
    char *at = reinterpret_cast<char *>(round_up(reinterpret_cast<intptr_t>(step.workspace), 64));
    const Shared shared(model, step.rows, at);
    Private own(model, step.rows, model.positions, at), first = own;
    for (int32_t thread = 1; thread <= member.index; ++thread) own = Private(model, step.rows, model.positions, at);
#if defined(__x86_64__)
    // Subnormal numbers are flushed in every thread alike: bfloat16 products always do.
    const unsigned control = __builtin_ia32_stmxcsr();
    __builtin_ia32_ldmxcsr(control | 0x8040);
#endif
    Worker(model, step, member, shared, own).run();
    for (int32_t row = 0, wanted = 0; row < step.rows && member.index == 0; ++row) {
        if (!step.wanted[row]) continue;
        char *next = at;
        for (int32_t thread = 1; thread < member.team->size; ++thread) {
            const Private other(model, step.rows, model.positions, next);
            if (other.best[wanted] >= 0) Worker::prefer(first, wanted, other.best[wanted], other.best_logit[wanted]);
        }
        step.best[wanted] = first.best[wanted];
        step.best_logit[wanted] = first.best_logit[wanted];
        ++wanted;
    }
#if defined(__x86_64__)
    __builtin_ia32_ldmxcsr(control);
#endif
}

void run(const stepwell_model *model, const stepwell_step *step, int32_t threads) {
    stepwell_step part = *step;
    Call call{model, &part, threads};
    for (int32_t rest = step->rows; rest > 0; rest -= part.rows) {
        part.rows = rest < ROWS ? rest : ROWS;
        run_team(work, &call, threads);
        const int32_t wanted = count_wanted(part);
        part.first_row += part.rows;
        part.ids += part.rows;
        part.positions += part.rows;
        part.tables += (int64_t)part.rows * part.table_width;
        part.wanted += part.rows;
        part.logits += (int64_t)wanted * model->vocab_size;
        part.best += wanted;
        part.best_logit += wanted;
    }
}

}  // namespace

extern const Kernels kernels;
#define STEPWELL_TEXT_(name) #name
#define STEPWELL_TEXT(name) STEPWELL_TEXT_(name)
const Kernels kernels{STEPWELL_TEXT(STEPWELL_ISA), workspace_bytes, run, uniform};

}  // namespace STEPWELL_ISA
}  // namespace stepwell
