// The limit for a compiled Lotka-Volterra system: the direct method for these three reactions alone, by hand, as one
// would write it in C: X -> 2 X, X + Y -> 2 Y, Y -> nothing. Random numbers: xoshiro256+ (Blackman and Vigna 2018).
#include <cmath>
#include <cstdint>

namespace {

struct Generator {
  uint64_t s[4];

  explicit Generator(uint64_t seed) {
    for (auto& word : s) {  // splitmix64
      seed += 0x9E3779B97F4A7C15;
      uint64_t z = seed;
      z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
      z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
      word = z ^ (z >> 31);
    }
  }

  double uniform() {
    const uint64_t result = s[0] + s[3], t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = s[3] << 45 | s[3] >> 19;
    return (static_cast<double>(result >> 12) + 0.5) * 0x1p-52;
  }
};

}  // namespace

// Takes at most `events` events from x, y with the constants c[3]; returns how many. *time is advanced.
extern "C" int64_t lotka_volterra(uint64_t seed, int64_t events, const double* c, int64_t* x_out, int64_t* y_out,
                                  double* time) {
  Generator random(seed);
  int64_t x = *x_out, y = *y_out, done = 0;
  double t = *time;
  for (; done < events; ++done) {
    const double a0 = c[0] * static_cast<double>(x), a1 = c[1] * static_cast<double>(x) * static_cast<double>(y);
    const double a2 = c[2] * static_cast<double>(y), total = a0 + a1 + a2;
    if (total <= 0) break;
    t -= std::log(random.uniform()) / total;
    const double target = random.uniform() * total;
    if (target < a0) {
      ++x;
    } else if (target < a0 + a1) {
      --x;
      ++y;
    } else {
      --y;
    }
  }
  *x_out = x;
  *y_out = y;
  *time = t;
  return done;
}
