"""The random numbers of the rewriting kernels: known answers of Philox, and the binomial generator's distribution."""

import math
import subprocess

import numpy as np
import pytest

from echoc.compiler.targets.cpu.build import FLAGS, KERNELS, find_compiler

PROGRAM = r"""
#include <cmath>
#include <cstdio>
#include <utility>
#include "kernels/cpu/random.h"
using namespace echoc::random;
int main() {
  const std::pair<Block, Block> known[] = {
      {Block{{0, 0, 0, 0}}, Block{{0, 0, 0, 0}}},
      {Block{{~0u, ~0u, ~0u, ~0u}}, Block{{~0u, ~0u, 0, 0}}},
      {Block{{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}}, Block{{0xa4093822, 0x299f31d0, 0, 0}}}};
  for (const auto& [c, k] : known) {
    const Block r = philox(c, k.word[0], k.word[1]);
    std::printf("kat %08x %08x %08x %08x\n", r.word[0], r.word[1], r.word[2], r.word[3]);
  }
  uint64_t low[kLanes], high[kLanes];
  philox_batch(77, 5, 6, 7, 8, 9, low, high);
  bool same = true;
  for (int i = 0; i < kLanes; ++i) {
    const Block r = philox({{77u + static_cast<uint32_t>(i), 5, 6, 7}}, 8, 9);
    same = same && low[i] == (uint64_t{r.word[1]} << 32 | r.word[0]);
    same = same && high[i] == (uint64_t{r.word[3]} << 32 | r.word[2]);
  }
  std::printf("batch %d\n", same);
  double worst = 0;
  Stream logs(5, 0);
  logs.at(0);
  for (int i = 0; i < 100000; ++i) {
    const double u = i < 50000 ? logs.uniform() : std::exp2(-50 * logs.uniform());
    worst = std::fmax(worst, std::fabs(log_uniform(u) / std::log(u) - 1));
  }
  std::printf("log %.3g\n", worst);
  const std::pair<int64_t, double> cases[] = CASES;
  int number = 0;
  for (auto [n, p] : cases) {
    Stream s(2024, 1);
    s.at(number);
    std::printf("binomial %d", number++);
    for (int i = 0; i < DRAWS; ++i) std::printf(" %lld", static_cast<long long>(binomial(s, n, chance(p))));
    std::printf("\n");
  }
  Stream s(7, 0);
  s.at(0);
  int seen[6] = {};
  for (int i = 0; i < 60000; ++i) ++seen[s.below(6)];
  std::printf("die %d %d %d %d %d %d\n", seen[0], seen[1], seen[2], seen[3], seen[4], seen[5]);
}
"""
CASES = [(1, 0.25), (10, 0.03), (20, 0.5), (1000, 0.004), (40, 0.3), (100, 0.97), (5000, 0.2), (64, 0.25)]
DRAWS = 20000


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    folder = tmp_path_factory.mktemp("random")
    source = folder / "random_check.cpp"
    cases = "{" + ", ".join(f"{{{n}, {p}}}" for n, p in CASES) + "}"
    source.write_text(PROGRAM.replace("CASES", cases).replace("DRAWS", str(DRAWS)))
    binary = folder / "random_check"
    flags = ["-O2", *(f for f in FLAGS if f not in ("-fPIC", "-fvisibility=hidden"))]
    command = [*find_compiler().command, *flags, "-march=native", f"-I{KERNELS.parent}", str(source), "-o", str(binary)]
    subprocess.run(command, check=True)
    out = subprocess.run([str(binary)], check=True, capture_output=True, text=True).stdout
    return [line.split() for line in out.splitlines()]


def test_philox_gives_the_known_answers(lines: list[list[str]]) -> None:
    # Random123's kat_vectors, philox4x32 with 10 rounds
    assert [line[1:] for line in lines if line[0] == "kat"] == [
        ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"],
        ["408f276d", "41c83b0e", "a20bc7c6", "6d5451fd"],
        ["d16cfe09", "94fdcceb", "5001e420", "24126ea1"],
    ]


def test_many_lanes_give_what_one_gives(lines: list[list[str]]) -> None:
    assert ["batch", "1"] in lines


def test_the_logarithm_is_accurate(lines: list[list[str]]) -> None:
    (worst,) = (float(line[1]) for line in lines if line[0] == "log")
    assert worst < 2e-15


@pytest.mark.parametrize("case", range(len(CASES)))
def test_binomials_have_their_distribution(lines: list[list[str]], case: int) -> None:
    n, p = CASES[case]
    (draws,) = (np.array(line[2:], np.int64) for line in lines if line[:2] == ["binomial", str(case)])
    assert len(draws) == DRAWS
    assert draws.min() >= 0 and draws.max() <= n
    logs = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(n + 1)]
    expected = DRAWS * np.array([math.exp(c + k * math.log(p) + (n - k) * math.log1p(-p)) for k, c in enumerate(logs)])
    seen = np.bincount(draws, minlength=n + 1)
    bins: list[tuple[float, float]] = []
    want = have = 0.0
    for e, s in zip(expected, seen, strict=True):
        want, have = want + float(e), have + float(s)
        if want >= 10:
            bins.append((want, have))
            want = have = 0.0
    bins[-1] = (bins[-1][0] + want, bins[-1][1] + have)
    chi2, freedom = sum((h - w) ** 2 / w for w, h in bins), len(bins) - 1
    # Wilson and Hilferty: the cube root of chi2 / freedom is close to normal. The seed is fixed: this never flickers.
    z = ((chi2 / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))
    assert z < 3.5


def test_a_die_is_fair(lines: list[list[str]]) -> None:
    (seen,) = (np.array(line[1:], float) for line in lines if line[0] == "die")
    assert seen.sum() == 60000
    assert ((seen - 10000) ** 2 / 10000).sum() < 20.5  # 0.999 quantile of chi-square with 5 degrees
