// %in0 : f32[T, 4, 16]
// %in1 : pages<bf16[2, 16]>
// %in2 : pages<bf16[2, 16]>
// %in3 : i32[T]
// %in4 : i32[T]
// %in5 : i32[B, M]
// %0 = attend(%in0, %in1, %in2, %in3, %in4, %in5) {body=false, causal=true, scale=0.25, sinks=false, softcap=0.0, window=0} : f32[T, 4, 16]

#include "kernels/cpu/attend.h"
#include "kernels/cpu/ops.h"

ECHOC_EXPORT void attend(const echoc::Call* call) {
  const float* __restrict a0 = static_cast<const float* __restrict>(call->args[0]);
  float* __restrict a1 = static_cast<float* __restrict>(call->args[1]);
  const std::byte* __restrict a2 = static_cast<const std::byte* __restrict>(call->args[2]);
  const std::byte* __restrict a3 = static_cast<const std::byte* __restrict>(call->args[3]);
  const int32_t* __restrict a4 = static_cast<const int32_t* __restrict>(call->args[4]);
  const int32_t* __restrict a5 = static_cast<const int32_t* __restrict>(call->args[5]);
  const int32_t* __restrict a6 = static_cast<const int32_t* __restrict>(call->args[6]);
  std::byte* __restrict a7 = static_cast<std::byte* __restrict>(call->args[7]);
  [[maybe_unused]] const int64_t T = call->dims[0];
  [[maybe_unused]] const int64_t B = call->dims[1];
  [[maybe_unused]] const int64_t M = call->dims[2];

  const echoc::AttendShape shape{4, 2, 16, 16, float(0.25), float(0.0), 0, true};
  echoc::attend<echoc::bf16_t>(*call, shape, a0, 4 * 16, a1, a2, a3, nullptr, (T),
                a5, a6, a4, (M), false,
                echoc::PlainScore{},
                echoc::AttendWorkspace{a7, 884800});
}
