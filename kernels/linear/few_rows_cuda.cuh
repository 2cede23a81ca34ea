// Products of few rows of activations, contract in linear_cuda.cuh. Engine thread.
#pragma once

#include <cstdint>

#include "kernels/linear/linear_cuda.cuh"

namespace headwater::cuda {

constexpr int kMostFewRows = 8;  // of activations

// Up to so many the rows' bits do not depend on how many there are.
int most_few_rows(QuantFormat format);
// Part::most_few_rows says how many, at most.
bool can_run_few_rows(const CudaWeight::Part& part, Matrix x);
// Whether few_rows() also normalises x.
bool can_normalise(const CudaWeight::Part& part, Matrix x, const float* norm);
// Whether few_rows() quantises the activations of more than one row into its scratch.
bool multiplies_integers(QuantFormat format);
int64_t few_rows_scratch_bytes(int64_t cols);
// out = gate(norm(x) * part^T); add: out += x * part^T. quantised: scratch already holds what an
// earlier call made of the same x and norm.
void few_rows(const CudaWeight::Part& part,
              const FusedLinear& product,
              bool add,
              bool quantised,
              uint8_t* scratch,
              int32_t num_processors,
              const Stream& stream);

}  // namespace headwater::cuda
