// MLA attention for Hopper: one persistent CTA an SM, a producer and two math warpgroups.
// docs/kernels/hopper-dense-decode.md is the guide; csrc/README.md the launch contract.
//
// One core for all of it. What differs is a type, Keys (sm90/keys/), that says where K comes from:
//
//   kProducerRegisters   registers of a producer thread; the math groups get the rest
//   kHeldTiles           column tiles of Q that the math groups keep in registers
//   kByThreads           K is written by threads (cp.async, st.shared): the math groups fence before
//                        they read, and what does not count was written as zeros
//   full_arrivals(half)  arrivals that make a half of a buffer full
//   produce(smem, maps, p, tile)   the producer warpgroup, all of its threads
//
// and FMH_LISTS, which says what a request is and which entries count (core/entries.h).
#pragma once
#include "sm90/core/math.h"
#include "sm90/core/producer.h"
#include "sm90/ptx/pdl.h"
#include "sm90/ptx/registers.h"

namespace fmh {

// 168 registers for each thread at entry, moved between the warpgroups.
template <typename Keys>
constexpr int kMathRegisters = (3 * 168 - Keys::kProducerRegisters) / 2;

template <typename Keys>
FMH_DEVICE void init_barriers() {
#pragma unroll
  for (int half = 0; half < 4; half++) {
    barrier_init(full_barrier(half), Keys::full_arrivals(half));
    barrier_init(empty_barrier(half), empty_arrivals(half));
  }
  barrier_init(kQFull, 1);
  barrier_init(kQEmpty, 8);
  barrier_init_fence();
}

// Q boxes of fewer than 64 rows leave the rest of each column tile as it is: zeros then, for
// leftovers may be NaN, whose moving maxima would make every block rescale.
FMH_DEVICE void clear_dead_rows(char* smem, int tile_rows) {
  const int chunks = (kTileRows - tile_rows) * 8;  // of 16 bytes, in a column tile
#pragma unroll 1
  for (int i = threadIdx.x; i < chunks; i += kThreads) {
    char* at = smem + kOffsetQ + tile_rows * 128 + i * 16;
#pragma unroll
    for (int t = 0; t < kColumnTiles; t++) {
      *(uint4*)(at + t * kTileBytes) = make_uint4(0, 0, 0, 0);
    }
  }
  proxy_fence();
}

// The lengths decide which page ids are read: two loads from DRAM, one after the other. Warps that
// have nothing to do yet fetch small block tables meanwhile.
FMH_DEVICE void prefetch_table(const MlaParams& p) {
  constexpr int kFirst = kThreads - 96, kLineEntries = 32;
  const int entry = ((int)threadIdx.x - kFirst) * kLineEntries;
  if (entry < 0 || p.capacity >= 1 << 20) return;
  const int width = small_quotient(p.capacity, p.page_block_size);
  if (entry < (p.batch - 1) * p.block_table_stride + width) line_prefetch(p.block_table + entry);
}

// The whole of a kernel.
template <typename Keys>
FMH_DEVICE void attend(char* smem, const Maps& maps, const MlaParams& p) {
  static_assert(kMathRegisters<Keys> % 8 == 0, "setmaxnreg");
  const int position = uniform(small_quotient(blockIdx.x, p.lanes));
  const Tile tile(p, blockIdx.x - position * p.lanes);
  if (threadIdx.x == 0) {
    if (shared_address(smem) != kSharedBase) asm volatile("trap;");
    init_barriers<Keys>();
    prefetch_map(maps.q);
    if (!kLists) prefetch_map(maps.k_left), prefetch_map(maps.k_right);
  }
  if (p.tile_rows < kTileRows) clear_dead_rows(smem, p.tile_rows);
  wait_for_predecessors();
  if (!kLists) prefetch_table(p);
  const int part = schedule(smem, p, position, tile.lane);  // ends with a CTA barrier

  // One branch for each role, with code of its own: setmaxnreg is honoured only then, and a loop
  // shared by both math groups would serialise their products.
  const int group = threadIdx.x / kGroupThreads;
  if (group == 0) {
    registers_grow<kMathRegisters<Keys>>();
    consume<Keys, 0>(smem, p, tile, part);
  } else if (group == 1) {
    registers_grow<kMathRegisters<Keys>>();
    consume<Keys, 1>(smem, p, tile, part);
  } else {
    registers_shrink<Keys::kProducerRegisters>();
    Keys::produce(smem, maps, p, tile);
  }
}

}  // namespace fmh

