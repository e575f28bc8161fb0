// %in0 : f32[T, 64]
// %in1 : f32[96, 64]
// %0 = contract(%in0, %in1) {spec="tk,nk->tn"} : f32[T, 96]
// %in2 : f32[96, 64]
// %1 = contract(%in0, %in2) {spec="tk,nk->tn"} : f32[T, 96]
// %2 = sigmoid(%0) : f32[T, 96]
// %3 = mul(%0, %2) : f32[T, 96]
// %4 = mul(%3, %1) : f32[T, 96]

#include "kernels/cpu/gemm.h"
#include "kernels/cpu/ops.h"

ECHOC_EXPORT void gemm(const echoc::Call* call) {
  const std::byte* __restrict a0 = static_cast<const std::byte* __restrict>(call->args[0]);
  const std::byte* __restrict a1 = static_cast<const std::byte* __restrict>(call->args[1]);
  float* __restrict a2 = static_cast<float* __restrict>(call->args[2]);
  [[maybe_unused]] const int64_t T = call->dims[0];
  [[maybe_unused]] const int64_t B = call->dims[1];
  [[maybe_unused]] const int64_t M = call->dims[2];

  echoc::gemm<echoc::Weight<8, 32>, 2>(
      *call, a0, a1, (T), 96, 64, false,
      [&](int64_t t, int64_t n0, int64_t count, const float* const* acc) {
#pragma GCC ivdep
        for (int64_t n = n0; n < n0 + count; ++n) {
          const float v1 = acc[0][n - n0];
          const float v2 = echoc::op::sigmoid(v1);
          const float v3 = (v1 * v2);
          const float v4 = acc[1][n - n0];
          const float v5 = (v3 * v4);
          a2[t * 96 + n] = v5;
        }
      });
}
