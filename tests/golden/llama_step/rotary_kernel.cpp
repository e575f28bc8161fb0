// %in0 : f32[T, 64]
// %0 = slice(%in0 as [T, 4, 16]) {starts=[0, 0, 0], steps=[1, 1, 1], stops=[<T>, 4, 8]} : f32[T, 4, 8]
// %in1 : f32[T, 1, 8]
// %1 = mul(%0, %in1) : f32[T, 4, 8]
// %2 = slice(%in0 as [T, 4, 16]) {starts=[0, 0, 8], steps=[1, 1, 1], stops=[<T>, 4, 16]} : f32[T, 4, 8]
// %in2 : f32[T, 1, 8]
// %3 = mul(%2, %in2) : f32[T, 4, 8]
// %4 = sub(%1, %3) : f32[T, 4, 8]
// %5 = mul(%2, %in1) : f32[T, 4, 8]
// %6 = mul(%0, %in2) : f32[T, 4, 8]
// %7 = add(%5, %6) : f32[T, 4, 8]
// %8 = concat(%4, %7) {axis=2} : f32[T, 4, 16]
// %in3 : f32[T, 32]
// %9 = slice(%in3 as [T, 2, 16]) {starts=[0, 0, 0], steps=[1, 1, 1], stops=[<T>, 2, 8]} : f32[T, 2, 8]
// %10 = mul(%9, %in1) : f32[T, 2, 8]
// %11 = slice(%in3 as [T, 2, 16]) {starts=[0, 0, 8], steps=[1, 1, 1], stops=[<T>, 2, 16]} : f32[T, 2, 8]
// %12 = mul(%11, %in2) : f32[T, 2, 8]
// %13 = sub(%10, %12) : f32[T, 2, 8]
// %14 = mul(%11, %in1) : f32[T, 2, 8]
// %15 = mul(%9, %in2) : f32[T, 2, 8]
// %16 = add(%14, %15) : f32[T, 2, 8]
// %17 = concat(%13, %16) {axis=2} : f32[T, 2, 16]

#include "kernels/cpu/ops.h"
#include "kernels/cpu/tiles.h"

ECHOC_EXPORT void rows(const echoc::Call* call) {
  float* __restrict a0 = static_cast<float* __restrict>(call->args[0]);
  const float* __restrict a1 = static_cast<const float* __restrict>(call->args[1]);
  const float* __restrict a2 = static_cast<const float* __restrict>(call->args[2]);
  const float* __restrict a3 = static_cast<const float* __restrict>(call->args[3]);
  float* __restrict a4 = static_cast<float* __restrict>(call->args[4]);
  const float* __restrict a5 = static_cast<const float* __restrict>(call->args[5]);
  [[maybe_unused]] const int64_t T = call->dims[0];
  [[maybe_unused]] const int64_t B = call->dims[1];
  [[maybe_unused]] const int64_t M = call->dims[2];

  const echoc::Range rows = echoc::share((T), call->tid, call->nthreads);
  for (int64_t t = rows.begin; t < rows.end; ++t) {
    float* __restrict a0_row = a0 + t * 64;
    for (int64_t j1 = 0; j1 < 4; ++j1) {
      #pragma GCC ivdep
      for (int64_t j2 = 0; j2 < 8; ++j2) {
        const float v3 = a1[t * 64 + j1 * 16 + j2];
        const float v4 = a2[t * 8 + j2];
        const float v5 = (v3 * v4);
        const float v6 = a1[t * 64 + j1 * 16 + j2 + 8];
        const float v7 = a3[t * 8 + j2];
        const float v8 = (v6 * v7);
        const float v9 = (v5 - v8);
        a0_row[j1 * 16 + j2] = v9;
      }
    }
    for (int64_t j1 = 0; j1 < 4; ++j1) {
      #pragma GCC ivdep
      for (int64_t j2 = 8; j2 < 16; ++j2) {
        const float v10 = a1[t * 64 + j1 * 16 + j2];
        const float v11 = a2[t * 8 + j2 - 8];
        const float v12 = (v10 * v11);
        const float v13 = a1[t * 64 + j1 * 16 + j2 - 8];
        const float v14 = a3[t * 8 + j2 - 8];
        const float v15 = (v13 * v14);
        const float v16 = (v12 + v15);
        a0_row[j1 * 16 + j2] = v16;
      }
    }
    float* __restrict a4_row = a4 + t * 32;
    for (int64_t j17 = 0; j17 < 2; ++j17) {
      #pragma GCC ivdep
      for (int64_t j18 = 0; j18 < 8; ++j18) {
        const float v19 = a5[t * 32 + j17 * 16 + j18];
        const float v20 = a2[t * 8 + j18];
        const float v21 = (v19 * v20);
        const float v22 = a5[t * 32 + j17 * 16 + j18 + 8];
        const float v23 = a3[t * 8 + j18];
        const float v24 = (v22 * v23);
        const float v25 = (v21 - v24);
        a4_row[j17 * 16 + j18] = v25;
      }
    }
    for (int64_t j17 = 0; j17 < 2; ++j17) {
      #pragma GCC ivdep
      for (int64_t j18 = 8; j18 < 16; ++j18) {
        const float v26 = a5[t * 32 + j17 * 16 + j18];
        const float v27 = a2[t * 8 + j18 - 8];
        const float v28 = (v26 * v27);
        const float v29 = a5[t * 32 + j17 * 16 + j18 - 8];
        const float v30 = a3[t * 8 + j18 - 8];
        const float v31 = (v29 * v30);
        const float v32 = (v28 + v31);
        a4_row[j17 * 16 + j18] = v32;
      }
    }
  }
}
