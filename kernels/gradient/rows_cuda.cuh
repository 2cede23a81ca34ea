// Row-wise operations of GradientOps on the GPU, contracts in gradient_ops.h. What goes forward
// only is in kernels/norm. Asynchronous on the stream.
#pragma once

#include "kernels/base/cuda.cuh"
#include "kernels/gradient/gradient_ops.h"

namespace headwater::cuda {

void rms_norm_backward(
    Matrix x, const float* weight, float eps, Matrix dy, Matrix dx, const Stream& stream);
void silu_mul_backward(Matrix gate_up, Matrix d_out, Matrix d_gate_up, const Stream& stream);
void rotate(const RopeSpec& rope,
            const HeadShape& heads,
            GradientOps::Turn turn,
            Matrix qkv,
            const Stream& stream);
// x = high + low but for the 22nd bit, both of TF32's 11 significant ones.
// high, low: [rows, cols], rows one behind another; high may be x.
void split_tf32(Matrix x, float* high, float* low, const Stream& stream);

}  // namespace headwater::cuda
