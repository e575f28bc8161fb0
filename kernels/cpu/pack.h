// Packs weights into the panels of layout.h, unpacks them, and fills them with random values.
//
// Work goes panel by panel through a small f32 tile [k][16] (lane = row of the panel). Loops run over the lanes, so
// that compilers vectorise them; builds for baseline x86 carry a clone per feature level and pick one at load.
#pragma once

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <thread>
#include <vector>

#include "coded.h"
#include "float8.h"
#include "half.h"
#include "layout.h"

#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__AVX2__)
#define ECHOC_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define ECHOC_CLONES
#endif

namespace echoc::packing {

struct Format {
  int bits;   // 32, 16, 12, 8 or 4
  int group;  // 32, 64 or 128 for integers of 8 and 4 bits, 0 for floats of 32, 16, 12 and 8

  bool coded() const { return bits == layout::kCodedBits; }
  bool row_scaled() const { return bits == 8 && group == 0; }
  bool valid() const {
    return ((bits == 32 || bits == 16 || coded() || bits == 8) && group == 0) ||
           ((bits == 8 || bits == 4) && (group == 32 || group == 64 || group == 128));
  }
};

enum class Element { f32, bf16, f16 };

// A dense matrix: [N, K], or [K, N] when transposed.
struct Source {
  const void* data;
  Element element;
  bool transposed;
};

inline constexpr int64_t kLanes = layout::kPanel;
inline constexpr int64_t kTileK = 256;  // k of a tile: a multiple of every block's k

namespace detail {

ECHOC_CLONES inline void widen(const void* from, Element element, int64_t first, float* out, int64_t count) {
  switch (element) {
    case Element::f32:
      std::memcpy(out, static_cast<const float*>(from) + first, count * sizeof(float));
      break;
    case Element::bf16:
      for (int64_t i = 0; i < count; ++i) out[i] = to_float(static_cast<const bf16_t*>(from)[first + i]);
      break;
    case Element::f16:
      for (int64_t i = 0; i < count; ++i) out[i] = to_float(static_cast<const f16_t*>(from)[first + i]);
      break;
  }
}

// tile[k][lane] = source[n0 + lane][k0 + k]; zero beyond N and K.
inline void gather(const Source& source, int64_t N, int64_t K, int64_t n0, int64_t k0, float* tile) {
  const int64_t lanes = std::min(kLanes, N - n0);
  const int64_t depth = std::min(kTileK, K - k0);
  if (lanes < kLanes || depth < kTileK) std::fill_n(tile, kTileK * kLanes, 0.0f);
  if (source.transposed) {
    for (int64_t k = 0; k < depth; ++k) widen(source.data, source.element, (k0 + k) * N + n0, tile + k * kLanes, lanes);
    return;
  }
  float row[kTileK];
  for (int64_t lane = 0; lane < lanes; ++lane) {
    widen(source.data, source.element, (n0 + lane) * K + k0, row, depth);
    for (int64_t k = 0; k < depth; ++k) tile[k * kLanes + lane] = row[k];
  }
}

// Sixteen lanes as the compiler's own vector type, which it maps to the registers of each clone.
using Lanes = float __attribute__((vector_size(64)));
using Words = uint32_t __attribute__((vector_size(64)));
using Ints = int32_t __attribute__((vector_size(64)));

#define ECHOC_PACK_INLINE inline __attribute__((always_inline))

ECHOC_PACK_INLINE void load(const float* from, Lanes& to) { std::memcpy(&to, from, sizeof to); }

// q = value * inverse rounded to the nearest integer (ties to even) within [low, high].
ECHOC_PACK_INLINE void quantise(const Lanes& value, const Lanes& inverse, float low, float high, Lanes& q) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23
  q = value * inverse;
  q = q < low ? low + Lanes{} : q;
  q = q > high ? high + Lanes{} : q;
  q = (q + kRound) - kRound;
}

// Rounds scales to f16 and takes their reciprocals, 0 for 0.
ECHOC_PACK_INLINE void round_scales(Lanes& scale, Lanes& inverse) {
  float lanes[kLanes];
  std::memcpy(lanes, &scale, sizeof lanes);
  for (int64_t i = 0; i < kLanes; ++i) lanes[i] = to_float(to_f16(lanes[i]));
  std::memcpy(&scale, lanes, sizeof lanes);
  inverse = scale != 0.0f ? 1.0f / scale : Lanes{};
}

// Scales of an i8 group, one a lane: amax / 127.
ECHOC_PACK_INLINE void scales_i8(const float* tile, int64_t group, Lanes& scale, Lanes& inverse) {
  Lanes most{};
  for (int64_t k = 0; k < group; ++k) {
    Lanes value;
    load(tile + k * kLanes, value);
    const Lanes size = value < 0.0f ? -value : value;
    most = size > most ? size : most;
  }
  scale = most / 127.0f;
  round_scales(scale, inverse);
}

// Scales of an i4 group: of some candidates that put the value of largest size at or beyond -8, the one with the least
// squared error, then the least-squares scale for its integers if that is better still.
ECHOC_PACK_INLINE void scales_i4(const float* tile, int64_t group, Lanes& scale, Lanes& inverse) {
  constexpr float kCandidates[] = {-7.0f, -7.5f, -8.0f, -8.5f, -9.0f, -9.7f, -10.5f};
  constexpr int kCount = sizeof kCandidates / sizeof *kCandidates;
  Lanes high{};
  Lanes low{};
  for (int64_t k = 0; k < group; ++k) {
    Lanes value;
    load(tile + k * kLanes, value);
    high = value > high ? value : high;
    low = value < low ? value : low;
  }
  const Lanes extreme = high > -low ? high : low;
  Lanes best = Lanes{} + INFINITY;
  Lanes best_dot{};
  Lanes best_square{};
  for (int c = 0; c <= kCount; ++c) {
    Lanes candidate =
        c < kCount ? extreme / kCandidates[c % kCount] : (best_square > 0.0f ? best_dot / best_square : Lanes{});
    Lanes reciprocal;
    round_scales(candidate, reciprocal);
    Lanes error{};
    Lanes dot{};
    Lanes square{};
    for (int64_t k = 0; k < group; ++k) {
      Lanes value;
      Lanes q;
      load(tile + k * kLanes, value);
      quantise(value, reciprocal, -8.0f, 7.0f, q);
      const Lanes miss = value - q * candidate;
      error += miss * miss;
      dot += value * q;
      square += q * q;
    }
    const Ints better = error < best;
    best = better ? error : best;
    scale = better ? candidate : scale;
    inverse = better ? reciprocal : inverse;
    best_dot = better ? dot : best_dot;
    best_square = better ? square : best_square;
  }
}

// Writes one group: its values at `values`, its scales at `scales`.
template <int Bits>
ECHOC_PACK_INLINE void emit_group(const float* tile, int64_t group, uint32_t* values, f16_t* scales) {
  constexpr float kLow = Bits == 8 ? -127.0f : -8.0f;
  constexpr float kHigh = Bits == 8 ? 127.0f : 7.0f;
  constexpr auto kOffset = static_cast<float>(layout::offset_of(Bits));
  constexpr int kPerWord = 32 / Bits;
  Lanes scale{};
  Lanes inverse{};
  if constexpr (Bits == 8) {
    scales_i8(tile, group, scale, inverse);
  } else {
    scales_i4(tile, group, scale, inverse);
  }
  for (int64_t i = 0; i < kLanes; ++i) scales[i] = to_f16(scale[i]);
  for (int64_t k = 0; k < group; k += kPerWord) {
    Words word{};
    for (int j = 0; j < kPerWord; ++j) {
      const int shift = Bits == 8 ? 8 * j : 8 * (j % 4) + 4 * (j / 4);
      Lanes value;
      Lanes q;
      load(tile + (k + j) * kLanes, value);
      quantise(value, inverse, kLow, kHigh, q);
      word |= reinterpret_cast<Words>(__builtin_convertvector(q + kOffset, Ints)) << shift;
    }
    std::memcpy(values + k / kPerWord * kLanes, &word, sizeof word);
  }
}

// most[lane] = the largest size in tile[0 .. depth) and before.
ECHOC_CLONES inline void largest(const float* tile, int64_t depth, float* most) {
  for (int64_t k = 0; k < depth; ++k)
    for (int64_t i = 0; i < kLanes; ++i) most[i] = std::max(most[i], std::fabs(tile[k * kLanes + i]));
}

// The scales of f8 rows with these largest sizes, and their reciprocals; rows too small for a reciprocal become zero.
inline void scales_f8(const float* most, float* scale, float* inverse) {
  for (int64_t i = 0; i < kLanes; ++i) {
    scale[i] = most[i] / kLargestF8;
    if (scale[i] < std::numeric_limits<float>::min()) scale[i] = 0.0f;
    inverse[i] = scale[i] > 0.0f ? 1.0f / scale[i] : 0.0f;
  }
}

// Writes tile[0 .. depth) in f8, rows times the reciprocals of their scales.
ECHOC_CLONES inline void emit_f8(const float* tile, const float* inverse, int64_t depth, std::byte* out) {
  auto* pairs = reinterpret_cast<uint16_t*>(out);
  for (int64_t k = 0; k < depth; k += 2) {
    for (int64_t i = 0; i < kLanes; ++i) {
      const uint32_t even = to_f8(tile[k * kLanes + i] * inverse[i]).bits;
      const uint32_t odd = to_f8(tile[(k + 1) * kLanes + i] * inverse[i]).bits;
      pairs[k / 2 * kLanes + i] = static_cast<uint16_t>(even | odd << 8);
    }
  }
}

// The exponents of a panel of bf16c, counted and then given codes.
class Codes {
 public:
  void count(const float* tile, int64_t depth) {
    for (int64_t i = 0; i < depth * kLanes; ++i) ++counts_[exponent(to_bf16(tile[i]).bits)];
  }

  // Codes for the most frequent exponents, of equal counts for the lower; returns how many values are left without.
  int64_t choose() {
    counts_[0] = 0;
    for (int code = 0; code < coded::kZeroCode; ++code) {
      const auto most = std::max_element(std::begin(counts_), std::end(counts_));
      const auto found = static_cast<uint8_t>(most - std::begin(counts_));
      exponents_[code] = *most > 0 ? found : 0;
      if (*most > 0) codes_[found] = static_cast<uint8_t>(code + 1);
      *most = 0;
    }
    int64_t left = 0;
    for (const int64_t some : counts_) left += some;
    return left;
  }

  // Writes tile[0 .. depth), whose first k is k0, to its place in the panel; lists what has no code.
  void emit(const float* tile, int64_t depth, int64_t k0, int64_t K, std::byte* panel) {
    for (int64_t k = k0; k < k0 + depth; ++k) {
      std::byte* step = panel + layout::kLine + k / coded::kStep * coded::kStepBytes;
      const int64_t half = k % coded::kStep / 4;
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        uint16_t bits = to_bf16(tile[(k - k0) * kLanes + lane]).bits;
        const uint8_t known = codes_[exponent(bits)];
        if (known == 0 && exponent(bits) != 0) {
          if (listed_ == layout::most_uncoded(K)) {
            overflow_ = true;
          } else {
            const coded::Uncoded value{static_cast<uint32_t>(k), static_cast<uint16_t>(lane), bits};
            std::memcpy(panel + layout::uncoded_at(K) + listed_++ * sizeof value, &value, sizeof value);
          }
          bits = 0;
        }
        const int64_t at = coded::place(k, lane);
        const int code = known == 0 ? coded::kZeroCode : known - 1;
        step[half * 64 + at] = static_cast<std::byte>((bits >> 8 & 0x80) | (bits & 0x7f));
        std::byte& codes = step[128 + at];
        codes = half == 0 ? static_cast<std::byte>(code) : codes | static_cast<std::byte>(code << 4);
      }
    }
  }

  // Writes the header; false where the list was too short.
  bool finish(int64_t K, std::byte* panel) {
    std::memset(panel, 0, layout::kLine);
    coded::Header header{};
    std::copy(std::begin(exponents_), std::end(exponents_), header.exponents);
    header.uncoded = static_cast<uint32_t>(listed_);
    std::memcpy(panel, &header, sizeof header);
    const int64_t used = layout::uncoded_at(K) + listed_ * static_cast<int64_t>(sizeof(coded::Uncoded));
    std::memset(panel + used, 0, layout::panel_bytes(layout::kCodedBits, 0, K) - used);
    return !overflow_;
  }

 private:
  static int exponent(uint16_t bits) { return bits >> 7 & 0xff; }

  int64_t counts_[256] = {};
  uint8_t codes_[256] = {};  // plus one; 0: none
  uint8_t exponents_[coded::kCodes] = {};
  int64_t listed_ = 0;
  bool overflow_ = false;
};

// Writes tile[0 .. depth) in the given format; depth is a whole number of steps or blocks.
ECHOC_CLONES inline void emit(Format format, const float* tile, int64_t depth, std::byte* out) {
  if (format.bits == 32) {
    std::memcpy(out, tile, depth * kLanes * sizeof(float));
  } else if (format.bits == 16) {
    auto* words = reinterpret_cast<uint32_t*>(out);
    for (int64_t k = 0; k < depth; k += 2) {
      for (int64_t i = 0; i < kLanes; ++i) {
        words[k / 2 * kLanes + i] =
            to_bf16(tile[k * kLanes + i]).bits | uint32_t{to_bf16(tile[(k + 1) * kLanes + i]).bits} << 16;
      }
    }
  } else {
    const int64_t group_bytes = layout::group_bytes(format.bits, format.group);
    const int64_t block_bytes = layout::block_bytes(format.bits, format.group);
    for (int64_t k = 0; k < depth; k += format.group) {
      const int64_t g = k / format.group;
      std::byte* block = out + g / 2 * block_bytes;
      auto* values = reinterpret_cast<uint32_t*>(block + g % 2 * group_bytes);
      auto* scales = reinterpret_cast<f16_t*>(block + 2 * group_bytes) + g % 2 * kLanes;
      if (format.bits == 8) {
        emit_group<8>(tile + k * kLanes, format.group, values, scales);
      } else {
        emit_group<4>(tile + k * kLanes, format.group, values, scales);
      }
    }
  }
}

inline int64_t tile_bytes(Format format) {
  return format.row_scaled() ? kTileK * kLanes : layout::panel_bytes(format.bits, format.group, kTileK);
}

// Calls make(which, n0, k0, tile) for every tile of every panel and packs what it makes; twice where the scales or the
// exponents of a whole panel have to be found first. False where a panel has more uncoded values than it can list.
template <class Make>
bool pack_tiles(Format format, int64_t interleave, int64_t N, int64_t K, std::byte* out, int threads, Make&& make) {
  const int64_t panels = layout::panels(N) * interleave;
  const int64_t panel_bytes = layout::panel_bytes(format.bits, format.group, K);
  const int64_t padded = layout::padded_k(format.bits, format.group, K);
  std::atomic<bool> fits{true};
  const auto work = [&](int64_t begin, int64_t end) {
    alignas(64) float tile[kTileK * kLanes];
    for (int64_t p = begin; p < end; ++p) {
      const int64_t n0 = p / interleave * kLanes;
      const auto each_tile = [&](auto&& take) {
        for (int64_t k = 0; k < padded; k += kTileK) {
          make(p % interleave, n0, k, tile);
          take(k, std::min(kTileK, padded - k));
        }
      };
      std::byte* at = out + p * panel_bytes;
      if (format.coded()) {
        Codes codes;
        each_tile([&](int64_t, int64_t depth) { codes.count(tile, depth); });
        codes.choose();
        each_tile([&](int64_t k, int64_t depth) { codes.emit(tile, depth, k, K, at); });
        if (!codes.finish(K, at)) fits = false;
        continue;
      }
      alignas(64) float inverse[kLanes];
      if (format.row_scaled()) {
        float most[kLanes] = {};
        float scale[kLanes];
        each_tile([&](int64_t, int64_t depth) { largest(tile, depth, most); });
        scales_f8(most, scale, inverse);
        std::memcpy(at + layout::panel_scales(K), scale, sizeof scale);
      }
      each_tile([&](int64_t, int64_t depth) {
        if (format.row_scaled()) {
          emit_f8(tile, inverse, depth, at);
        } else {
          emit(format, tile, depth, at);
        }
        at += tile_bytes(format);
      });
    }
  };
  std::vector<std::thread> team;
  for (int t = 1; t < threads; ++t) team.emplace_back(work, panels * t / threads, panels * (t + 1) / threads);
  work(0, panels / std::max(threads, 1));
  for (auto& thread : team) thread.join();
  return fits;
}

inline uint64_t mix(uint64_t value) {  // splitmix64, Steele et al. 2014
  value += 0x9e3779b97f4a7c15u;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
  return value ^ (value >> 31);
}

// tile[k][lane] from the hash of (key of the lane's row, k0 + k): the sum of the four bytes of a 32-bit hash, which is
// nearly normal (Irwin-Hall of four), centred and scaled to `std`.
ECHOC_CLONES inline void random_tile(const uint32_t* keys, int64_t k0, int64_t depth, float std, float* tile) {
  constexpr float kDeviation = 147.801f;  // sqrt(4 * (256^2 - 1) / 12)
  const float scale = std / kDeviation;
  for (int64_t k = 0; k < depth; ++k) {
    const uint32_t counter = static_cast<uint32_t>(k0 + k) * 0x9e3779b9u;
    for (int64_t i = 0; i < kLanes; ++i) {
      uint32_t hash = counter ^ keys[i];
      hash = (hash ^ (hash >> 16)) * 0x7feb352du;
      hash = (hash ^ (hash >> 15)) * 0x846ca68bu;
      hash ^= hash >> 16;
      const uint32_t pairs = (hash & 0x00ff00ffu) + ((hash >> 8) & 0x00ff00ffu);
      const auto sum = static_cast<int32_t>((pairs & 0xffffu) + (pairs >> 16));
      tile[k * kLanes + i] = static_cast<float>(sum - 510) * scale;
    }
  }
}

}  // namespace detail

// Bytes of `interleave` weights [N, K] packed together.
inline int64_t packed_bytes(Format format, int64_t interleave, int64_t N, int64_t K) {
  return layout::packed_bytes(format.bits, format.group, interleave, N, K);
}

// Packs sources of equal shape with interleaved panels into out (packed_bytes, 64-byte aligned or not). False where
// the values do not fit the format, which only bf16c knows: a panel has too many exponents.
inline bool pack(Format format, const std::vector<Source>& sources, int64_t N, int64_t K, std::byte* out, int threads) {
  return detail::pack_tiles(
      format, static_cast<int64_t>(sources.size()), N, K, out, threads,
      [&](int64_t which, int64_t n0, int64_t k0, float* tile) { detail::gather(sources[which], N, K, n0, k0, tile); });
}

// Whether bf16c can hold the sources: how many values of a panel have rare exponents is seen from them alone.
inline bool codable(const std::vector<Source>& sources, int64_t N, int64_t K, int threads) {
  const auto interleave = static_cast<int64_t>(sources.size());
  const int64_t panels = layout::panels(N) * interleave;
  std::atomic<bool> fits{true};
  const auto work = [&](int64_t begin, int64_t end) {
    alignas(64) float tile[kTileK * kLanes];
    for (int64_t p = begin; p < end && fits; ++p) {
      detail::Codes codes;
      for (int64_t k = 0; k < K; k += kTileK) {
        detail::gather(sources[p % interleave], N, K, p / interleave * kLanes, k, tile);
        codes.count(tile, std::min(kTileK, K - k));
      }
      if (codes.choose() > layout::most_uncoded(K)) fits = false;
    }
  };
  std::vector<std::thread> team;
  for (int t = 1; t < threads; ++t) team.emplace_back(work, panels * t / threads, panels * (t + 1) / threads);
  work(0, panels / std::max(threads, 1));
  for (auto& thread : team) thread.join();
  return fits;
}

// Random weights, nearly normal with the given standard deviation. The value of an element depends on (seed, index,
// which, n, k) alone; every format rounds the same values.
inline void fill_random(Format format, int64_t interleave, int64_t N, int64_t K, uint64_t seed, uint64_t index,
                        float std, std::byte* out, int threads) {
  detail::pack_tiles(format, interleave, N, K, out, threads, [&](int64_t which, int64_t n0, int64_t k0, float* tile) {
    uint32_t keys[kLanes];
    const uint64_t stream = detail::mix(detail::mix(detail::mix(seed) + index) + which);
    for (int64_t i = 0; i < kLanes; ++i) keys[i] = static_cast<uint32_t>(detail::mix(stream + n0 + i) >> 32);
    const int64_t depth = std::min(kTileK, K - k0);
    detail::random_tile(keys, k0, depth, std, tile);
    std::fill(tile + depth * kLanes, tile + kTileK * kLanes, 0.0f);
    for (int64_t i = std::max<int64_t>(0, N - n0); i < kLanes; ++i)
      for (int64_t k = 0; k < depth; ++k) tile[k * kLanes + i] = 0.0f;
  });
}

// The packed value of weight `which` at [n, k].
inline float packed_value(Format format, int64_t interleave, int64_t K, const std::byte* packed, int64_t which,
                          int64_t n, int64_t k) {
  const int64_t lane = n % kLanes;
  const std::byte* panel =
      packed + (n / kLanes * interleave + which) * layout::panel_bytes(format.bits, format.group, K);
  if (format.bits == 32) return reinterpret_cast<const float*>(panel)[k * kLanes + lane];
  if (format.bits == 16) return to_float(reinterpret_cast<const bf16_t*>(panel)[k / 2 * 32 + lane * 2 + k % 2]);
  if (format.coded()) {
    const coded::Header header = coded::header_of(panel);
    for (int64_t i = 0; i < header.uncoded; ++i) {
      const coded::Uncoded value = coded::uncoded_of(panel, K, i);
      if (value.k == k && value.lane == lane) return to_float(bf16_t{value.bits});
    }
    return to_float(bf16_t{coded::bits_at(panel, header, k, lane)});
  }
  if (format.row_scaled()) {
    const float scale = reinterpret_cast<const float*>(panel + layout::panel_scales(K))[lane];
    return to_float(reinterpret_cast<const f8_t*>(panel)[k / 2 * 32 + lane * 2 + k % 2]) * scale;
  }
  const int64_t group_bytes = layout::group_bytes(format.bits, format.group);
  const int64_t g = k / format.group;
  const int64_t i = k % format.group;
  const std::byte* block = panel + g / 2 * layout::block_bytes(format.bits, format.group);
  const auto* values = reinterpret_cast<const uint8_t*>(block + g % 2 * group_bytes);
  const float scale = to_float(reinterpret_cast<const f16_t*>(block + 2 * group_bytes)[g % 2 * kLanes + lane]);
  if (format.bits == 8) return static_cast<float>(values[i / 4 * 64 + lane * 4 + i % 4] - 128) * scale;
  const int nibble = values[i / 8 * 64 + lane * 4 + i % 4] >> (i % 8 / 4 * 4) & 15;
  return static_cast<float>(nibble - 8) * scale;
}

// out [interleave][N][K] f32 from packed weights.
inline void unpack(Format format, int64_t interleave, int64_t N, int64_t K, const std::byte* packed, float* out) {
  for (int64_t which = 0; which < interleave; ++which)
    for (int64_t n = 0; n < N; ++n)
      for (int64_t k = 0; k < K; ++k) *out++ = packed_value(format, interleave, K, packed, which, n, k);
}

}  // namespace echoc::packing
