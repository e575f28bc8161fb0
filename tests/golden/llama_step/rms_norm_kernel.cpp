// %in0 : f32[128, 64]
// %in1 : i32[T]
// %0 = take(%in0, %in1) {axis=0} : f32[T, 64]
// %1 = mul(%0, %0) : f32[T, 64]
// %2 = sum(%1) {axes=[1]} : f32[T]
// %3 = div(%2 as [T, 1], 64.0) : f32[T, 1]
// %4 = add(%3, 1e-05) : f32[T, 1]
// %5 = rsqrt(%4) : f32[T, 1]
// %6 = mul(%0, %5) : f32[T, 64]
// %in2 : f32[64]
// %7 = mul(%6, %in2) : f32[T, 64]
// %in3 : i32[T]
// %8 = cast(%in3) {dtype="f32"} : f32[T]
// %in4 : f32[8]
// %9 = mul(%8 as [T, 1, 1], %in4) : f32[T, 1, 8]
// %10 = cos(%9) : f32[T, 1, 8]
// %11 = sin(%9) : f32[T, 1, 8]

#include "kernels/cpu/ops.h"
#include "kernels/cpu/tiles.h"

ECHOC_EXPORT void rows(const echoc::Call* call) {
  float* __restrict a0 = static_cast<float* __restrict>(call->args[0]);
  const int32_t* __restrict a1 = static_cast<const int32_t* __restrict>(call->args[1]);
  const float* __restrict a2 = static_cast<const float* __restrict>(call->args[2]);
  const float* __restrict a3 = static_cast<const float* __restrict>(call->args[3]);
  const int32_t* __restrict a4 = static_cast<const int32_t* __restrict>(call->args[4]);
  float* __restrict a5 = static_cast<float* __restrict>(call->args[5]);
  const float* __restrict a6 = static_cast<const float* __restrict>(call->args[6]);
  float* __restrict a7 = static_cast<float* __restrict>(call->args[7]);
  std::byte* __restrict a8 = static_cast<std::byte* __restrict>(call->args[8]);
  [[maybe_unused]] const int64_t T = call->dims[0];
  [[maybe_unused]] const int64_t B = call->dims[1];
  [[maybe_unused]] const int64_t M = call->dims[2];

  const echoc::Range rows = echoc::share((T), call->tid, call->nthreads);
  for (int64_t t = rows.begin; t < rows.end; ++t) {
    float* __restrict a0_row = a0 + t * 64;
    #pragma GCC ivdep
    for (int64_t j1 = 0; j1 < 64; ++j1) {
      const int32_t v2 = a1[t];
      const int64_t i3 = echoc::op::clamp_index(v2, 128);
      const float v4 = a2[i3 * 64 + j1];
      a0_row[j1] = v4;
    }
    float s5;
    {
      float acc6 = echoc::op::start_sum<float>();
      acc6 = echoc::op::combine_sum(acc6, echoc::op::reduce_sum<float>(0, 64, [&](int64_t k7) { const float v8 = a0_row[k7]; const float v9 = (v8 * v8); return float(v9); }));
      s5 = acc6;
    }
    float s10;
    {
      const float v11 = float(64.0);
      const float v12 = (s5 / v11);
      const float v13 = float(1e-05);
      const float v14 = (v12 + v13);
      const float v15 = echoc::op::rsqrt(v14);
      s10 = v15;
    }
    float* __restrict r16 = reinterpret_cast<float*>(call->scratch + 0);
    #pragma GCC ivdep
    for (int64_t j17 = 0; j17 < 64; ++j17) {
      const float v18 = a0_row[j17];
      const float v19 = (v18 * s10);
      const float v20 = a3[j17];
      const float v21 = (v19 * v20);
      r16[j17] = v21;
    }
    float s22;
    {
      const int32_t v23 = a4[t];
      const float v24 = float(v23);
      s22 = v24;
    }
    float* __restrict a5_row = a5 + t * 8;
    #pragma GCC ivdep
    for (int64_t j25 = 0; j25 < 8; ++j25) {
      const float v26 = a6[j25];
      const float v27 = (s22 * v26);
      const float v28 = echoc::op::cos(v27);
      a5_row[j25] = v28;
    }
    float* __restrict a7_row = a7 + t * 8;
    #pragma GCC ivdep
    for (int64_t j29 = 0; j29 < 8; ++j29) {
      const float v30 = a6[j29];
      const float v31 = (s22 * v30);
      const float v32 = echoc::op::sin(v31);
      a7_row[j29] = v32;
    }
    echoc::Weight<8, 32>::prepare(r16, 64, a8 + t * echoc::Weight<8, 32>::row_bytes(64));
  }
}
