// The two math warpgroups. Group 0 owns O[:, :256], group 1 O[:, 256:]; blocks are taken in
// pairs, group 0 computing the weights of the even block, group 1 those of the odd one:
//
//   group 0: QK0  softmax0  P0 ->        O_L += P0 V0L              O_L += P1 V1L
//   group 1: QK1               -> P0     O_R += P0 V0R | softmax1  P1 ->     O_R += P1 V1R
//
// Both halves of the even block come first, so P0 is never rescaled, and softmax 1 runs under the
// tensor core's work on P0 V0R. The order of these statements was measured, variant against
// variant; so were the places of the fences. Issue and wait of a product sit in the same straight
// line of code: under a branch, ptxas serialises every product (warning C7518).
#pragma once
#include "sm90/core/operands.h"
#include "sm90/ptx/named_barrier.h"

namespace fmh {

// Tokens past the length may hold NaN, which even a weight of zero would carry into O: rows of V
// past it become zeros.
template <int kGroup>
FMH_DEVICE void zero_tail(char* smem, u32 k_block, int valid) {
  char* v = smem + k_block;
#pragma unroll 1
  for (int i = threadIdx.x & (kGroupThreads - 1); i < (kBlockTokens - valid) * 64;
       i += kGroupThreads) {
    const int row = valid + (i >> 6), tile = (i >> 3) & 7, chunk = i & 7;
    *(uint4*)(v + tile * kTileBytes + row * 128 + chunk * 16) = make_uint4(0, 0, 0, 0);
  }
  proxy_fence();
  named_sync<kGroup == 0 ? kGroup0 : kGroup1, kGroupThreads>();
}

// Waits for one half of a block.
template <typename Keys>
FMH_DEVICE void wait_full(int half, u32 parity) {
  barrier_wait(full_barrier(half), parity);
  if constexpr (Keys::kByThreads) proxy_fence();
}

// S = Q K^T for the block in `buffer`, whose length ends inside it after `valid` tokens if < 64.
template <typename Keys, int kGroup>
FMH_DEVICE void compute_scores(char* smem, float (&s)[32], const HeldQ<Keys::kHeldTiles>& q,
                               u32& parity, int valid) {
  constexpr int left = kGroup == 0 ? kK0Left : kK1Left, right = left + 1;
  constexpr u32 offset = kGroup == 0 ? kOffsetK0 : kOffsetK1;
  wait_full<Keys>(left, parity);
  if constexpr (!Keys::kByThreads) {
    if (valid < kBlockTokens) {  // before the first product: between two it would serialise them
      wait_full<Keys>(right, parity);
      zero_tail<kGroup>(smem, offset, valid);
    }
  }
  wgmma_fence();
  multiply_qk<0, kLeftTiles>(s, kSharedBase + offset);
  wait_full<Keys>(right, parity);
  parity ^= 1;
  wgmma_fence();
  multiply_qk<kLeftTiles, kColumnTiles - Keys::kHeldTiles>(s, kSharedBase + offset);
  multiply_held_qk(s, q, kSharedBase + offset);
  wgmma_commit();
  wgmma_wait();
  pin(s);
}

// What of block `j` this group may not see becomes -inf. `masked`: some of a prefix is past the end.
template <int kGroup>
FMH_DEVICE void hide(char* smem, const MlaParams& p, const Tile& tile, const MathThread<kGroup>& me,
                     float (&s)[32], int j, int length, bool masked) {
  if constexpr (kLists) {
    const u64 valid = shared_at<const u64>(smem, kOffsetValid)[kGroup];
    if (uniform(valid != ~0ull)) mask_invalid(s, valid, me.lane);
  } else {
    if (masked) mask_scores(s, j, me.limits(p, tile, length), me.lane);
  }
}

template <typename Keys, int kGroup>
FMH_DEVICE void consume(char* smem, const MlaParams& p, const Tile& tile, int part) {
  constexpr u32 k0 = kSharedBase + kOffsetK0, k1 = kSharedBase + kOffsetK1;
  constexpr u32 p0 = kSharedBase + kOffsetP0, p1 = kSharedBase + kOffsetP1;
  constexpr u32 right = kLeftTiles * kTileBytes;
  float* max0 = shared_at<float>(smem, kOffsetMax0);
  float* max1 = shared_at<float>(smem, kOffsetMax1);
  float* sums = shared_at<float>(smem, kOffsetSums);
  const MathThread<kGroup> me;
  const int row = me.row;
  float s[32], o[128];
  u32 weights[4][4];
  HeldQ<Keys::kHeldTiles> held;
  u32 parity_k = 0, parity_q = 0, parity_sums = 0;

  FragmentWalk<true> walk(smem, p);
#pragma unroll 1
  while (walk.next(p, [&](int request) {
    store_empty<kGroup>(p, tile, request, threadIdx.x & (kGroupThreads - 1));
  })) {
    float maximum[2] = {kNoMax, kNoMax}, peak[2] = {kNoMax, kNoMax}, sum[2] = {0, 0};
    float scale[2], block_sum[2];
    const int length = walk.length;
    // Below this every row of the tile sees every token.
    const int least_limit =
        p.causal ? length - p.s_q + 1 + small_quotient(tile.first_row, p.group) : length;
#pragma unroll
    for (int i = 0; i < 128; i++) o[i] = 0;
#pragma unroll
    for (int i = 0; i < 16; i++) weights[i >> 2][i & 3] = 0;
    barrier_wait(kQFull, parity_q);
    parity_q ^= 1;
    me.hold_q(held);

#pragma unroll 1
    for (int j = walk.begin; j < walk.end; j += 2) {
      const bool two = j + 1 < walk.end, last = j + 2 >= walk.end;
      const bool masked = (j + 1 + kGroup) * kBlockTokens > least_limit;
      if constexpr (kGroup == 0) {
        compute_scores<Keys, 0>(smem, s, held, parity_k, length - j * kBlockTokens);
        me.release(kK0Right);
        if (last && me.lane == 0) barrier_arrive(kQEmpty);
        hide(smem, p, tile, me, s, j, length, masked);
        softmax_block(s, p.scale_log2, maximum, peak, scale, block_sum, weights);
        sum[0] = sum[0] * scale[0] + block_sum[0];
        sum[1] = sum[1] * scale[1] + block_sum[1];
        // Before the barrier, which keeps the compiler from moving it above the softmax: 1 %.
        me.publish(max0, maximum);
        named_sync<kGroup0, kGroupThreads>();  // every warp has read the rope tile: P0 may go there
        me.store_weights(p0, weights);
        proxy_fence();
        named_arrive<kP0Ready, 2 * kGroupThreads>();
        rescale(o, scale);
        wgmma_fence();
        multiply_own_weights(o, weights, k0);
        wgmma_commit();
        wgmma_wait();
        pin(o);
        me.release(kK0Left);
        if (two) {
          named_sync<kP1Ready, 2 * kGroupThreads>();
          adopt_maximum(max1[row], max1[row + 8], maximum, scale, sum, o);
          wgmma_fence();
          multiply_other_weights(o, p1, k1);
          wgmma_commit();
          wgmma_wait();
          pin(o);
          me.release(kK1Left);
        }
      } else {
        if (two) {
          compute_scores<Keys, 1>(smem, s, held, parity_k, length - (j + 1) * kBlockTokens);
          me.release(kK1Left);
        }
        if (last && me.lane == 0) barrier_arrive(kQEmpty);
        named_sync<kP0Ready, 2 * kGroupThreads>();
        adopt_maximum(max0[row], max0[row + 8], maximum, scale, sum, o);
        wgmma_fence();
        multiply_other_weights(o, p0, k0 + right);
        wgmma_commit();
        if (two) {
          hide(smem, p, tile, me, s, j + 1, length, masked);
          softmax_block(s, p.scale_log2, maximum, peak, scale, block_sum, weights);
          sum[0] = sum[0] * scale[0] + block_sum[0];
          sum[1] = sum[1] * scale[1] + block_sum[1];
          me.publish(max1, maximum);
          me.store_weights(p1, weights);
          proxy_fence();
          named_arrive<kP1Ready, 2 * kGroupThreads>();
          wgmma_wait();
          pin(o);
          me.release(kK0Right);
          rescale(o, scale);
          wgmma_fence();
          multiply_own_weights(o, weights, k1 + right);
          wgmma_commit();
          wgmma_wait();
          pin(o);
          me.release(kK1Right);
        } else {
          wgmma_wait();
          pin(o);
          me.release(kK0Right);
        }
      }
    }

    // Row sums over the quad, then over both groups. Two parities: the other group may still read
    // the last fragment's.
#pragma unroll
    for (int h = 0; h < 2; h++) {
      sum[h] += shuffle_xor(sum[h], 1);
      sum[h] += shuffle_xor(sum[h], 2);
    }
    float* shared_sums = sums + parity_sums * 128;
    float* peaks = shared_at<float>(smem, kOffsetPeaks) + parity_sums * 128;
    parity_sums ^= 1;
    me.publish(shared_sums + kGroup * 64, sum);
    if constexpr (kLists) me.publish(peaks + kGroup * 64, peak);
    named_arrive<kGroup == 0 ? kSumsFrom0 : kSumsFrom1, 2 * kGroupThreads>();
    named_sync<kGroup == 0 ? kSumsFrom1 : kSumsFrom0, 2 * kGroupThreads>();
    sum[0] = shared_sums[row] + shared_sums[64 + row];
    sum[1] = shared_sums[row + 8] + shared_sums[64 + row + 8];
    if constexpr (kLists) {
      peak[0] = fmaxf(peaks[row], peaks[64 + row]);
      peak[1] = fmaxf(peaks[row + 8], peaks[64 + row + 8]);
    }
    store_fragment<kGroup>(p, tile, walk, part, o, maximum, peak, sum, row, me.lane);
  }
}

}  // namespace fmh
