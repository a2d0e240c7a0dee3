// Operands of the two products: which part of them comes from registers, which from shared memory.
#pragma once
#include "sm90/core/layout.h"
#include "sm90/core/epilogue.h"
#include "sm90/ptx/fence.h"
#include "sm90/ptx/matrix.h"
#include "sm90/ptx/mbarrier.h"
#include "sm90/ptx/wgmma.h"

namespace fmh {

// The last column tiles of Q stay in registers from one block to the next, as many as fit beside the
// producer (Keys::kHeldTiles). Every block then reads that much less from shared memory, and energy
// is what bounds large tiles: two tiles are 2.5 % at s_q 2, 128 heads.
template <int kTiles>
struct HeldQ {
  u32 tile[kTiles > 0 ? kTiles : 1][4][4];
};

// S += Q K^T over column tiles [kFirst, kLast) of one block, Q from shared memory.
template <int kFirst, int kLast>
FMH_DEVICE void multiply_qk(float (&s)[32], u32 k_block) {
#pragma unroll
  for (int t = kFirst; t < kLast; t++) {
#pragma unroll
    for (int step = 0; step < 4; step++) {
      const u32 at = t * kTileBytes + step * 32;
      wgmma_qk(s, descriptor_k_major(kSharedBase + kOffsetQ + at), descriptor_k_major(k_block + at),
               t + step > 0);
    }
  }
}

// The same over the tiles held in registers.
template <int kTiles>
FMH_DEVICE void multiply_held_qk(float (&s)[32], const HeldQ<kTiles>& q, u32 k_block) {
#pragma unroll
  for (int t = 0; t < kTiles; t++) {
#pragma unroll
    for (int step = 0; step < 4; step++) {
      const u32 at = (kColumnTiles - kTiles + t) * kTileBytes + step * 32;
      wgmma_qk_registers(s, q.tile[t][step], descriptor_k_major(k_block + at));
    }
  }
}

// O += P V with P from this group's registers; `v` is the first column tile of the half.
FMH_DEVICE void multiply_own_weights(float (&o)[128], const u32 (&weights)[4][4], u32 v) {
#pragma unroll
  for (int step = 0; step < 4; step++) {
    wgmma_pv_registers(o, weights[step], descriptor_mn_major(v + step * 2048, kTileBytes), true);
  }
}

// O += P V with the other group's P from shared memory.
FMH_DEVICE void multiply_other_weights(float (&o)[128], u32 weights, u32 v) {
#pragma unroll
  for (int step = 0; step < 4; step++) {
    wgmma_pv_shared(o, descriptor_k_major(weights + step * 32),
                    descriptor_mn_major(v + step * 2048, kTileBytes), true);
  }
}

// A lane's row of the four 8x8 matrices that its warp moves between registers and a swizzled tile
// at 0. Worked out where it is used: registers are what the main loop has least of.
struct MatrixRow {
  u32 address, chunk, swizzle;

  FMH_DEVICE MatrixRow(int warp, int lane) {
    asm volatile("" : "+r"(lane));
    const u32 row = warp * 16 + (lane & 15);
    address = row * 128;
    chunk = lane >> 4;
    swizzle = row & 7;
  }
  FMH_DEVICE u32 at(u32 tile, int step) const {
    return tile + address + (((2 * step + chunk) ^ swizzle) << 4);
  }
};

// What a math thread knows of itself.
template <int kGroup>
struct MathThread {
  int lane, warp;
  int row;  // accumulator rows `row` and `row + 8`

  FMH_DEVICE MathThread() {
    lane = threadIdx.x & 31;
    warp = uniform((threadIdx.x & (kGroupThreads - 1)) >> 5);
    row = warp * 16 + (lane >> 2);
  }

  FMH_DEVICE void release(int half) const {
    if (lane == 0) barrier_arrive(empty_barrier(half));
  }

  FMH_DEVICE void store_weights(u32 tile, const u32 (&weights)[4][4]) const {
    const MatrixRow mine(warp, lane);
#pragma unroll
    for (int i = 0; i < 4; i++) store_matrix_x4(mine.at(tile, i), weights[i]);
  }

  template <int kTiles>
  FMH_DEVICE void hold_q(HeldQ<kTiles>& q) const {
    const MatrixRow mine(warp, lane);
#pragma unroll
    for (int t = 0; t < kTiles; t++) {
      const u32 tile = kSharedBase + kOffsetQ + (kColumnTiles - kTiles + t) * kTileBytes;
#pragma unroll
      for (int i = 0; i < 4; i++) load_matrix_x4(q.tile[t][i], mine.at(tile, i));
    }
  }

  FMH_DEVICE void publish(float* to, const float (&v)[2]) const {
    if ((lane & 3) == 0) {
      to[row] = v[0];
      to[row + 8] = v[1];
    }
  }

  FMH_DEVICE RowLimits limits(const MlaParams& p, const Tile& tile, int length) const {
    RowLimits limits{{length, length}};
    if (p.causal) {
      const int first = length - p.s_q + 1, r = tile.first_row + row;
      limits.limit[0] = min(length, first + small_quotient(r, p.group));
      limits.limit[1] = min(length, first + small_quotient(r + 8, p.group));
    }
    return limits;
  }
};

}  // namespace fmh
