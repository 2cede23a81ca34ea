#include "kernels/linear/cublas.cuh"

#include <cublas_v2.h>
#include <dlfcn.h>

#include <string>

#include "kernels/base/status.h"

namespace headwater::cuda {
namespace {

constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;  // what cuBLAS itself takes on Hopper

void check_blas(cublasStatus_t status, const char* call) {
  if (status != CUBLAS_STATUS_SUCCESS)
    throw CudaError(std::string(call) + " failed with status " + std::to_string(status));
}

void* open_library() {
  const std::string name = "libcublas.so." + std::to_string(CUBLAS_VER_MAJOR);
  // Where the loader looks, then where the toolkit of the build was.
  for (const std::string& path : {name, std::string(HW_CUDA_LIBRARY_DIR "/") + name})
    if (void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL)) return library;
  throw ConfigError("device cuda needs cuBLAS: " + std::string(dlerror()) + "; install CUDA " +
                    std::to_string(CUBLAS_VER_MAJOR) +
                    "'s libcublas or name its folder in LD_LIBRARY_PATH");
}

}  // namespace

// cublasGemmEx, which the header overloads.
using Gemm = cublasStatus_t(cublasHandle_t,
                            cublasOperation_t,
                            cublasOperation_t,
                            int,
                            int,
                            int,
                            const void*,
                            const void*,
                            cudaDataType,
                            int,
                            const void*,
                            cudaDataType,
                            int,
                            const void*,
                            void*,
                            cudaDataType,
                            int,
                            cublasComputeType_t,
                            cublasGemmAlgo_t);

// cublasGemmStridedBatchedEx, likewise.
using GemmBatch = cublasStatus_t(cublasHandle_t,
                                 cublasOperation_t,
                                 cublasOperation_t,
                                 int,
                                 int,
                                 int,
                                 const void*,
                                 const void*,
                                 cudaDataType,
                                 int,
                                 long long int,
                                 const void*,
                                 cudaDataType,
                                 int,
                                 long long int,
                                 const void*,
                                 void*,
                                 cudaDataType,
                                 int,
                                 long long int,
                                 int,
                                 cublasComputeType_t,
                                 cublasGemmAlgo_t);

struct Cublas::Api {
  void* library = open_library();  // stays open
  template <typename Function>
  Function* find(const char* name) const {
    if (void* symbol = dlsym(library, name)) return reinterpret_cast<Function*>(symbol);
    throw ConfigError(std::string("device cuda: cuBLAS has no ") + name);
  }
#define HW_BLAS(member, name) decltype(name)* member = find<decltype(name)>(#name)
  HW_BLAS(create, cublasCreate_v2);
  HW_BLAS(destroy, cublasDestroy_v2);
  HW_BLAS(set_stream, cublasSetStream_v2);
  HW_BLAS(set_workspace, cublasSetWorkspace_v2);
  HW_BLAS(set_math_mode, cublasSetMathMode);
  HW_BLAS(sgemm, cublasSgemm_v2);
#undef HW_BLAS
  Gemm* gemm = find<Gemm>("cublasGemmEx");
  GemmBatch* gemm_batch = find<GemmBatch>("cublasGemmStridedBatchedEx");
  cublasHandle_t handle = nullptr;
};

Cublas::Cublas(const Stream& stream)
    : api_(std::make_unique<Api>()), workspace_(allocate_device(kWorkspaceBytes, stream)) {
  check_blas(api_->create(&api_->handle), "cublasCreate");
  check_blas(api_->set_stream(api_->handle, stream.get()), "cublasSetStream");
  check_blas(api_->set_workspace(api_->handle, workspace_.data(), kWorkspaceBytes),
             "cublasSetWorkspace");
  check_blas(api_->set_math_mode(api_->handle, CUBLAS_TF32_TENSOR_OP_MATH), "cublasSetMathMode");
}

Cublas::~Cublas() {
  if (api_->handle != nullptr) (void)api_->destroy(api_->handle);
}

// cuBLAS counts columns first: its out^T [n, m] = w^T^T [n, k] * x^T [k, m].
void Cublas::multiply(Matrix x, const float* w, int64_t w_stride, Matrix out, bool add) const {
  const float one = 1.0f;
  const float keep = add ? 1.0f : 0.0f;
  check_blas(api_->sgemm(api_->handle,
                         CUBLAS_OP_T,
                         CUBLAS_OP_N,
                         static_cast<int>(out.cols),
                         static_cast<int>(x.rows),
                         static_cast<int>(x.cols),
                         &one,
                         w,
                         static_cast<int>(w_stride),
                         x.f32_row(0),
                         static_cast<int>(x.stride),
                         &keep,
                         out.f32_row(0),
                         static_cast<int>(out.stride)),
             "cublasSgemm");
}

void Cublas::multiply_half(Matrix x, const void* w, int64_t w_stride, Matrix out, bool add) const {
  const float one = 1.0f;
  const float keep = add ? 1.0f : 0.0f;
  check_blas(api_->gemm(api_->handle,
                        CUBLAS_OP_T,
                        CUBLAS_OP_N,
                        static_cast<int>(out.cols),
                        static_cast<int>(out.rows),
                        static_cast<int>(x.cols),
                        &one,
                        w,
                        CUDA_R_16F,
                        static_cast<int>(w_stride),
                        x.data,
                        CUDA_R_16F,
                        static_cast<int>(x.stride),
                        &keep,
                        out.data,
                        out.dtype == DType::kF16 ? CUDA_R_16F : CUDA_R_32F,
                        static_cast<int>(out.stride),
                        CUBLAS_COMPUTE_32F,
                        CUBLAS_GEMM_DEFAULT),
             "cublasGemmEx");
}

void Cublas::multiply_batch(const Factor& a,
                            const Factor& b,
                            int64_t depth,
                            Matrix out,
                            int64_t out_batch_stride,
                            int64_t num_products,
                            bool add,
                            Arithmetic arithmetic) const {
  const float one = 1.0f;
  const float keep = add ? 1.0f : 0.0f;
  const auto operation = [](const Factor& factor) {
    return factor.layout == Factor::Layout::kTransposed ? CUBLAS_OP_T : CUBLAS_OP_N;
  };
  check_blas(api_->gemm_batch(api_->handle,
                              operation(b),
                              operation(a),
                              static_cast<int>(out.cols),
                              static_cast<int>(out.rows),
                              static_cast<int>(depth),
                              &one,
                              b.data,
                              CUDA_R_32F,
                              static_cast<int>(b.stride),
                              b.batch_stride,
                              a.data,
                              CUDA_R_32F,
                              static_cast<int>(a.stride),
                              a.batch_stride,
                              &keep,
                              out.data,
                              CUDA_R_32F,
                              static_cast<int>(out.stride),
                              out_batch_stride,
                              static_cast<int>(num_products),
                              arithmetic == Arithmetic::kTf32 ? CUBLAS_COMPUTE_32F_FAST_TF32
                                                              : CUBLAS_COMPUTE_32F_PEDANTIC,
                              CUBLAS_GEMM_DEFAULT),
             "cublasGemmStridedBatchedEx");
}

}  // namespace headwater::cuda
