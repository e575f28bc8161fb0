// Elements in memory and the values kernels compute with: bf16 and f16 are 16 bits in memory, f32 in registers.
#pragma once

#include "ptx.cuh"

namespace echoc {

inline float to_float(float x) { return x; }
inline float to_float(bf16_t x) { return bits_to_float(static_cast<uint32_t>(x.bits) << 16); }
inline bf16_t to_bf16(float x) { return bf16_t{static_cast<uint16_t>(pack_bf16x2(x, 0.0f))}; }
inline float to_f32(float x) { return x; }

template <class T>
struct alignas(sizeof(T) * 4) Four {
  T at[4];
};

// Memory that other launches write: every read goes past the first-level cache.
template <class T>
struct Fresh {
  const T* at;
  T operator[](int64_t i) const { return load_fresh(at + i); }
  Four<T> four(int64_t i) const { return load_fresh(reinterpret_cast<const Four<T>*>(at + i)); }
};

// Memory that nothing writes while the program runs.
template <class T>
struct Constant {
  const T* __restrict at;
  T operator[](int64_t i) const { return at[i]; }
  Four<T> four(int64_t i) const { return *reinterpret_cast<const Four<T>*>(at + i); }
};

// Four neighbours as floats; `i` is a multiple of four.
template <class Memory>
inline void load_four(float (&out)[4], const Memory& memory, int64_t i) {
  const auto four = memory.four(i);
#pragma unroll
  for (int j = 0; j < 4; ++j) out[j] = to_float(four.at[j]);
}

}  // namespace echoc
