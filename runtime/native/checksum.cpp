// CRC-32 of large members (the checksum every zip carries), fast enough to check weights at every load.
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#include <nanobind/ndarray.h>

#include "runtime/native/bindings.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace nb = nanobind;

namespace echoc {
namespace {

constexpr uint32_t kPolynomial = 0xEDB88320;  // CRC-32 of ISO 3309 and PKZIP, bits reversed

/// a * b modulo the polynomial; bit 31 is x^0.
constexpr uint32_t multiply(uint32_t a, uint32_t b) {
  uint32_t product = 0;
  for (uint32_t bit = 1u << 31; bit != 0; bit >>= 1) {
    if (a & bit) product ^= b;
    b = (b & 1) ? (b >> 1) ^ kPolynomial : b >> 1;
  }
  return product;
}

/// x^n modulo the polynomial, by squaring.
constexpr uint32_t power_of_x(uint64_t n) {
  uint32_t result = 1u << 31, square = 1u << 30;
  for (; n != 0; n >>= 1) {
    if (n & 1) result = multiply(result, square);
    square = multiply(square, square);
  }
  return result;
}

constexpr auto kTables = [] {
  std::array<std::array<uint32_t, 256>, 8> tables{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = (crc & 1) ? (crc >> 1) ^ kPolynomial : crc >> 1;
    tables[0][i] = crc;
  }
  for (size_t t = 1; t < 8; ++t) {
    for (size_t i = 0; i < 256; ++i) tables[t][i] = (tables[t - 1][i] >> 8) ^ tables[0][tables[t - 1][i] & 255];
  }
  return tables;
}();

/// Advances a raw (not inverted) CRC over bytes, eight at a time through tables.
uint32_t advance_by_tables(uint32_t crc, const uint8_t* data, size_t size) {
  for (; size >= 8; data += 8, size -= 8) {
    uint64_t word;
    std::memcpy(&word, data, 8);
    word ^= crc;
    crc = 0;
    for (size_t i = 0; i < 8; ++i) crc ^= kTables[7 - i][(word >> (8 * i)) & 255];
  }
  for (; size > 0; ++data, --size) crc = (crc >> 8) ^ kTables[0][(crc ^ *data) & 255];
  return crc;
}

#if defined(__x86_64__)
/// x^n as a factor of a carry-less product of reversed halves, which comes out one bit low.
constexpr int64_t fold_constant(uint64_t n) { return static_cast<int64_t>(static_cast<uint64_t>(power_of_x(n)) << 1); }

__attribute__((target("pclmul,sse4.1"))) inline __m128i fold(__m128i value, __m128i constants, __m128i next) {
  const __m128i low = _mm_clmulepi64_si128(value, constants, 0x00);
  const __m128i high = _mm_clmulepi64_si128(value, constants, 0x11);
  return _mm_xor_si128(_mm_xor_si128(low, high), next);
}

/// Folds 64 bytes at a time (Gopal et al., "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ", Intel 2009);
/// what is left is congruent to all that was read, and the tables finish it.
__attribute__((target("pclmul,sse4.1"))) uint32_t advance_by_folding(uint32_t crc, const uint8_t* data, size_t size) {
  if (size < 128) return advance_by_tables(crc, data, size);
  const __m128i constants = _mm_set_epi64x(fold_constant(512 - 32), fold_constant(512 + 32));
  const auto load = [&](size_t i) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(data) + i); };
  __m128i lanes[4] = {load(0), load(1), load(2), load(3)};
  lanes[0] = _mm_xor_si128(lanes[0], _mm_cvtsi32_si128(static_cast<int>(crc)));
  for (data += 64, size -= 64; size >= 64; data += 64, size -= 64) {
    for (size_t i = 0; i < 4; ++i) lanes[i] = fold(lanes[i], constants, load(i));
  }
  alignas(16) uint8_t rest[64];
  for (size_t i = 0; i < 4; ++i) _mm_store_si128(reinterpret_cast<__m128i*>(rest) + i, lanes[i]);
  return advance_by_tables(advance_by_tables(0, rest, sizeof rest), data, size);
}
#endif

uint32_t advance(uint32_t crc, const uint8_t* data, size_t size) {
#if defined(__x86_64__)
  static const bool can_fold = __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1");
  if (can_fold) return advance_by_folding(crc, data, size);
#endif
  return advance_by_tables(crc, data, size);
}

uint32_t crc32_of(const uint8_t* data, size_t size, int num_threads) {
  constexpr size_t kMinChunk = size_t{1} << 20;
  const size_t chunks = std::max<size_t>(1, std::min<size_t>(static_cast<size_t>(num_threads), size / kMinChunk));
  std::vector<uint32_t> parts(chunks);
  const auto work = [&](size_t i) {
    const size_t begin = size * i / chunks, end = size * (i + 1) / chunks;
    parts[i] = advance(i == 0 ? ~0u : 0u, data + begin, end - begin);
  };
  std::vector<std::thread> helpers;
  for (size_t i = 1; i < chunks; ++i) helpers.emplace_back(work, i);
  work(0);
  for (auto& helper : helpers) helper.join();
  uint32_t crc = parts[0];
  for (size_t i = 1; i < chunks; ++i) {
    const uint64_t length = size * (i + 1) / chunks - size * i / chunks;
    crc = multiply(crc, power_of_x(8 * length)) ^ parts[i];
  }
  return ~crc;
}

}  // namespace

void bind_checksum(nb::module_& m) {
  m.def(
      "crc32",
      [](nb::ndarray<nb::ro, uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu> data, int num_threads) {
        nb::gil_scoped_release release;
        return crc32_of(data.data(), data.size(), num_threads);
      },
      nb::arg("data"), nb::arg("num_threads") = 1, "CRC-32 as in zip and zlib, of a u8 array, on several threads.");
}

}  // namespace echoc
