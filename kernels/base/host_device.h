// Marks functions that nvcc compiles for both sides and that other compilers just compile.
#pragma once

#ifdef __CUDACC__
#define HW_HOST_DEVICE __host__ __device__
#else
#define HW_HOST_DEVICE
#endif
