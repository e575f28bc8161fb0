// The few names of the C++ library that generated kernels use: NVRTC compiles without headers.
#pragma once

#ifdef __CUDACC_RTC__
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;

namespace std {
template <class T>
struct numeric_limits;
template <>
struct numeric_limits<float> {
  static constexpr float infinity() { return __builtin_bit_cast(float, 0x7f800000u); }
  static constexpr float quiet_NaN() { return __builtin_bit_cast(float, 0x7fc00000u); }
};
template <>
struct numeric_limits<double> {
  static constexpr double infinity() { return __builtin_bit_cast(double, 0x7ff0000000000000ull); }
  static constexpr double quiet_NaN() { return __builtin_bit_cast(double, 0x7ff8000000000000ull); }
};
template <>
struct numeric_limits<int64_t> {
  static constexpr int64_t min() { return int64_t(1) << 63; }
};
}  // namespace std
#endif

namespace echoc {

struct bf16_t {
  uint16_t bits;
};
struct f16_t {
  uint16_t bits;
};
struct i8_t {
  int8_t bits;
};
struct f8_t {  // e4m3
  uint8_t bits;
};

}  // namespace echoc
