// A device made of threads of the host, for kernels in C++ (kernels/gpu/device.h): included in front of their source.
// RUN(kernel, Parameter) makes what gpu_fake_driver.cpp starts of a kernel with one parameter.
#pragma once

#include <barrier>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#define ECHOC_DEVICE 1
#define ECHOC_KERNEL(threads) static

#include "kernels/gpu/device.h"

namespace echoc::device {

struct Grid {
  std::barrier<> all;
  std::vector<std::unique_ptr<std::barrier<>>> blocks;
};

inline thread_local uint32_t this_thread = 0, this_block = 0;
inline thread_local Grid* this_grid = nullptr;

inline uint32_t thread() { return this_thread; }
inline uint32_t block() { return this_block; }
inline void meet_block() { this_grid->blocks[this_block]->arrive_and_wait(); }
inline void meet_grid(Meeting&, uint32_t) { this_grid->all.arrive_and_wait(); }

template <class F>
int run_grid(uint32_t blocks, uint32_t threads, F&& f) {
  Grid grid{std::barrier<>(blocks * threads), {}};
  for (uint32_t b = 0; b < blocks; ++b) grid.blocks.push_back(std::make_unique<std::barrier<>>(threads));
  std::vector<std::thread> all;
  for (uint32_t i = 0; i < blocks * threads; ++i) {
    all.emplace_back([&, i] {
      this_block = i / threads;
      this_thread = i % threads;
      this_grid = &grid;
      f();
    });
  }
  for (std::thread& t : all) t.join();
  return 0;
}

}  // namespace echoc::device

#define RUN(kernel, Parameter)                                                                         \
  extern "C" int run_##kernel(void** parameters, const unsigned* grid, unsigned threads) asm(#kernel); \
  extern "C" int run_##kernel(void** parameters, const unsigned* grid, unsigned threads) {             \
    auto* parameter = *static_cast<Parameter**>(parameters[0]);                                        \
    return echoc::device::run_grid(grid[0], threads, [&] { kernel(parameter); });                      \
  }                                                                                                    \
  extern "C" {                                                                                         \
  extern const int kernel##_sizes[];                                                                   \
  const int kernel##_sizes[] = {8, 0};                                                                 \
  }
