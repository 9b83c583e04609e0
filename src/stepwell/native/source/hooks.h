// Reading and changing values on their way: what is declared for the rows of one point of one layer.
//
// A value is touched by the thread that has just computed it, so that nobody waits. A row that no hook
// names keeps its bits.

#pragma once

#include "stepwell.h"
#include "simd.h"

namespace stepwell {
namespace STEPWELL_ISA {

struct Hooks {
    const stepwell_hook *begin, *end;

    bool any() const { return begin != end; }

    // Touches the values first .. first + count of a row, or of one of its heads.
    void touch(int32_t row, int32_t head, int32_t first, int32_t count, float *values) const {
        for (const stepwell_hook *hook = begin; hook != end; ++hook)
            if (const int64_t slot = slot_of(*hook, row, head); slot >= 0) {
                if (hook->action == STEPWELL_KEEP) keep(*hook, row, slot, first, count, values, 1.0f);
                else change(*hook, row, slot, first, count, values);
            }
    }

    // The same for a query's weights that are yet to be divided by their total; that is 1 where they were.
    void touch_pattern(int32_t row, int32_t head, int32_t first, int32_t count, float *weights, float &total) const {
        for (const stepwell_hook *hook = begin; hook != end; ++hook)
            if (const int64_t slot = slot_of(*hook, row, head); slot >= 0) {
                if (hook->action == STEPWELL_KEEP) {
                    keep(*hook, row, slot, first, count, weights, total);
                    continue;
                }
                if (total != 1.0f)
                    for (int32_t i = 0; i < count; ++i) weights[i] /= total;
                total = 1.0f;
                change(*hook, row, slot, first, count, weights);
            }
    }

private:
    // Where the hook has the values of a head; -1 where it does not name the row or the head.
    static int64_t slot_of(const stepwell_hook &hook, int32_t row, int32_t head) {
        if (row < hook.first_row || row >= hook.first_row + hook.rows) return -1;
        return hook.slots == nullptr ? head : hook.slots[head];
    }

    static void change(const stepwell_hook &hook, int32_t row, int64_t slot, int32_t first, int32_t count,
                       float *values) {
        const float *given = hook.values;
        if (given != nullptr) given += (row - hook.first_row) * hook.row_stride + slot * hook.slot_stride + first;
        for (int32_t i = 0; i < count; ++i) switch (hook.action) {
            case STEPWELL_SCALE: values[i] *= hook.number; break;
            case STEPWELL_ADD: values[i] += given[i]; break;
            default: values[i] = given == nullptr ? hook.number : given[i];
        }
    }

    static void keep(const stepwell_hook &hook, int32_t row, int64_t slot, int32_t first, int32_t count,
                     const float *values, float total) {
        float *to = hook.to + (row - hook.first_row) * hook.row_stride + slot * hook.slot_stride + first;
        for (int32_t i = 0; i < count; ++i) to[i] = values[i] / total;
    }
};

}  // namespace STEPWELL_ISA
}  // namespace stepwell
