// fold_kv of CpuOps: the records of the heads that compensate. Once per block and head, so plain
// scalar code; sums in the order of the positions.
#pragma once

#include "kernels/base/thread_pool.h"
#include "kernels/ops.h"

namespace headwater::cpu {

void fold_kv(int32_t layer, const HeadShape& heads, const StepView& step, ThreadPool& pool);

}  // namespace headwater::cpu
