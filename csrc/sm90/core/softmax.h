// Online softmax on accumulator fragments.
//
// A thread of a warpgroup holds, of a 64-row accumulator, rows `row` and `row + 8` (h = 0, 1):
// element i belongs to row h = (i >> 1) & 1 and column (i >> 2) * 8 + (lane & 3) * 2 + (i & 1).
#pragma once
#include "sm90/core/tile.h"

namespace fmh {

// The running maximum moves only when a new one exceeds it by this much (log2 units). Weights
// then reach 2^8 at most, which bf16, fp16 and the float32 sums hold exactly as well as 1; the
// result is the same up to rounding, and most rescales of O fall away (measured: 7 % at s_q 2).
constexpr float kMaxSlack = 8.f;

// Below every logit, yet finite: a row without a visible key keeps it and gets the sum 0.
constexpr float kNoMax = -1e30f;

constexpr float kLn2 = 0.6931471805599453f;
constexpr float kLog2E = 1.4426950408889634f;

// What O and its sums are multiplied by when the maximum moves. 1 as long as there is nothing to
// rescale: the first block of a fragment then skips the 128 multiplications, and their code need
// not even be fetched.
FMH_DEVICE float rescale_factor(float before, float after) {
  return before > kNoMax ? exp2_approx(before - after) : 1.f;
}

// -inf by selection, never by addition: masked logits may be NaN.
FMH_DEVICE void mask_scores(float (&s)[32], int block, const RowLimits& rows, int lane) {
  const int first = block * kBlockTokens + (lane & 3) * 2;
  const int limit[2] = {rows.limit[0] - first, rows.limit[1] - first};
#pragma unroll
  for (int i = 0; i < 32; i++) {
    const int column = (i >> 2) * 8 + (i & 1);
    if (column >= limit[(i >> 1) & 1]) s[i] = -infinity();
  }
}

// The same for entries of a list: bit `c` of `valid` says that token c of the block counts.
FMH_DEVICE void mask_invalid(float (&s)[32], u64 valid, int lane) {
  valid >>= (lane & 3) * 2;
  const u32 half[2] = {(u32)valid, (u32)(valid >> 32)};
#pragma unroll
  for (int i = 0; i < 32; i++) {
    const int column = (i >> 2) * 8 + (i & 1);
    if (!(half[column >> 5] & 1u << (column & 31))) s[i] = -infinity();
  }
}

// Scores to weights. `maximum` (log2 units) is the running maximum before and after, `scale` gets
// 2^(before - after), `sum` this thread's share of the block's row sums; `weights` are the
// weights as the A operand of four products over 16 tokens each. `peak` (lists) is the largest
// logit so far, which the running maximum may lag behind.
FMH_DEVICE void softmax_block(float (&s)[32], float scale_log2, float (&maximum)[2],
                              float (&peak)[2], float (&scale)[2], float (&sum)[2],
                              u32 (&weights)[4][4]) {
#pragma unroll
  for (int h = 0; h < 2; h++) {
    float top = s[h * 2];
#pragma unroll
    for (int i = 1; i < 16; i++) top = fmaxf(top, s[(i >> 1) * 4 + h * 2 + (i & 1)]);
    top = fmaxf(top, shuffle_xor(top, 1));
    top = fmaxf(top, shuffle_xor(top, 2));
    top *= scale_log2;
    if constexpr (kLists) peak[h] = fmaxf(peak[h], top);
    const float before = maximum[h];
    const float after = top > before + kMaxSlack ? top : before;
    scale[h] = rescale_factor(before, after);
    maximum[h] = after;
    float total = 0;
#pragma unroll
    for (int i = 0; i < 16; i++) {
      const int e = (i >> 1) * 4 + h * 2 + (i & 1);
      s[e] = exp2_approx(fmaf(s[e], scale_log2, -after));
      total += s[e];
    }
    sum[h] = total;
  }
#pragma unroll
  for (int k = 0; k < 4; k++) {
#pragma unroll
    for (int j = 0; j < 4; j++) weights[k][j] = pack(s[8 * k + 2 * j], s[8 * k + 2 * j + 1]);
  }
}

// O *= scale, skipped by a warp none of whose maxima moved.
FMH_DEVICE void rescale(float (&o)[128], const float (&scale)[2]) {
  if (__any_sync(kAllLanes, scale[0] != 1.f || scale[1] != 1.f)) {
#pragma unroll
    for (int i = 0; i < 128; i++) o[i] *= scale[(i >> 1) & 1];
  }
}

// Takes over the maximum the other group published, and brings sum and O to it.
FMH_DEVICE void adopt_maximum(float m0, float m1, float (&maximum)[2], float (&scale)[2],
                              float (&sum)[2], float (&o)[128]) {
  scale[0] = rescale_factor(maximum[0], m0);
  scale[1] = rescale_factor(maximum[1], m1);
  maximum[0] = m0;
  maximum[1] = m1;
  sum[0] *= scale[0];
  sum[1] *= scale[1];
  rescale(o, scale);
}

}  // namespace fmh
