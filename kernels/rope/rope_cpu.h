// Rotary embedding and the append of K and V to their pages, for CpuOps.
#pragma once

#include "kernels/base/thread_pool.h"
#include "kernels/ops.h"

namespace headwater::cpu {

void rope_angles(const RopeSpec& rope, const StepView& step, Matrix out, ThreadPool& pool);
void rope_append_kv(int32_t layer,
                    const HeadShape& heads,
                    const RopeSpec& rope,
                    const StepView& step,
                    Matrix angles,
                    Matrix q,
                    Matrix k,
                    Matrix v,
                    ThreadPool& pool);

}  // namespace headwater::cpu
