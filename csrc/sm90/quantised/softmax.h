// Online softmax where query rows are columns of the accumulators.
//
// Of 64 tokens a thread holds the scores of tokens `lane / 4` and + 8 (of its warp's 16) for the
// query rows 8 j + 2 (lane % 4) + b: s[4 j + b] and s[4 j + 2 + b]. The maximum of a row lies in
// eight warps; it moves so seldom (kMostWeight) that all they
// usually exchange is a bit.
#pragma once
#include "sm90/core/softmax.h"
#include "sm90/ptx/fence.h"
#include "sm90/ptx/matrix.h"
#include "sm90/ptx/named_barrier.h"
#include "sm90/quantised/layout.h"

namespace fmh {

// The weights of a thread's tokens may add up to this before the maximum of a row has to move: fp16
// and float32 hold them as exactly as weights up to 1.
constexpr float kMostWeight = 8192.f;

// A barrier of the math threads that tells all whether one of them says yes.
FMH_DEVICE bool math_barrier_or(bool mine) {
  int any;
  test_delay();
  asm volatile(
      "{.reg .pred p, q;\nsetp.ne.s32 p, %1, 0;\nbar.red.or.pred q, %2, %3, p;\n"
      "selp.s32 %0, 1, 0, q;}"
      : "=r"(any)
      : "r"((int)mine), "n"(kMaximaBarrier), "n"(kMathThreads)
      : "memory");
  return any;
}

FMH_DEVICE void math_barrier() { named_sync<kMathBarrier, kMathThreads>(); }

FMH_DEVICE void store_matrix_transposed_x4(u32 address, u32 a, u32 b, u32 c, u32 d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                   address),
               "r"(a), "r"(b), "r"(c), "r"(d)
               : "memory");
}

// The thread's query rows of pair j: 8 j + 2 (lane % 4) and the next.
template <typename T>
FMH_DEVICE T* own_rows(T* of_rows, int j, int lane) {
  return of_rows + 8 * j + 2 * (lane & 3);
}

// What a thread keeps of the sums: those of the query rows 8 j + 2 (lane % 4) and the next, where j
// is the number in its lane's upper bits. Lanes that differ only in bits beyond it hold shares of
// the same rows.
constexpr int kRowPairs = kOwnRows / 2;  // of a thread

FMH_DEVICE int kept_pair(int lane) { return (lane >> 2) & (kRowPairs - 1); }

struct RowSums {
  float kept[2];

  FMH_DEVICE void add(float (&v)[kOwnRows], int lane) {
    halve<kRowPairs / 2>(v, lane);
    kept[0] += v[0];
    kept[1] += v[1];
  }

 private:
  // Lanes 4 kPairs apart give each other half of their 2 kPairs pairs.
  template <int kPairs>
  FMH_DEVICE static void halve(float (&v)[kOwnRows], int lane) {
    const bool upper = lane & (4 * kPairs);
#pragma unroll
    for (int i = 0; i < 2 * kPairs; i++) {
      const float keep = upper ? v[i + 2 * kPairs] : v[i], give = upper ? v[i] : v[i + 2 * kPairs];
      v[i] = keep + shuffle_xor(give, 4 * kPairs);
    }
    if constexpr (kPairs > 1) halve<kPairs / 2>(v, lane);
  }
};

// The largest of a value over all tokens of the pair, for each row of this thread.
FMH_DEVICE void gather_maxima(char* smem, float (&v)[kOwnRows], int warp, int lane) {
  float* of_warps = shared_at<float>(smem, kOffsetWarps);
#pragma unroll
  for (int i = 0; i < kOwnRows; i++) {
#pragma unroll
    for (int o = 4; o < 32; o <<= 1) v[i] = fmaxf(v[i], shuffle_xor(v[i], o));
  }
  if (lane < 4) {
#pragma unroll
    for (int j = 0; j < kRowPairs; j++) {
      *(float2*)own_rows(of_warps + warp * kRows, j, lane) = make_float2(v[2 * j], v[2 * j + 1]);
    }
  }
  math_barrier();
#pragma unroll
  for (int j = 0; j < kRowPairs; j++) {
#pragma unroll
    for (int w = 0; w < kMathWarps; w++) {
      const float2 x = *(const float2*)own_rows(of_warps + w * kRows, j, lane);
      v[2 * j] = fmaxf(v[2 * j], x.x);
      v[2 * j + 1] = fmaxf(v[2 * j + 1], x.y);
    }
  }
}

// Sums over all warps, left in shared memory: row_sum() reads them.
FMH_DEVICE void gather_sums(char* smem, RowSums sums, int warp, int lane) {
  float* of_warps = shared_at<float>(smem, kOffsetWarps);
#pragma unroll
  for (int o = 4 * kRowPairs; o < 32; o <<= 1) {
    sums.kept[0] += shuffle_xor(sums.kept[0], o);
    sums.kept[1] += shuffle_xor(sums.kept[1], o);
  }
  if (lane < 4 * kRowPairs) {
    *(float2*)own_rows(of_warps + warp * kRows, kept_pair(lane), lane) =
        make_float2(sums.kept[0], sums.kept[1]);
  }
  math_barrier();
}

FMH_DEVICE float row_sum(char* smem, int row) {
  const float* of_warps = shared_at<const float>(smem, kOffsetWarps);
  float sum = 0;
#pragma unroll
  for (int w = 0; w < kMathWarps; w++) sum += of_warps[w * kRows + row];
  return sum;
}

// Tokens of the slot that do not count: -inf by selection, masked scores may be NaN.
FMH_DEVICE void mask_tokens(float (&s)[kAccumulators], u32 valid, int lane) {
  const bool first = valid >> (lane >> 2) & 1, second = valid >> ((lane >> 2) + 8) & 1;
#pragma unroll
  for (int i = 0; i < kAccumulators; i++) {
    if (!((i & 2) ? second : first)) s[i] = -infinity();
  }
}

// Causal: query row n sees the tokens before `first_limit` + its query token. `token` is that of
// this thread's first row of scores.
FMH_DEVICE void mask_causal(char* smem, float (&s)[kAccumulators], int token, int first_limit,
                            int lane) {
  const int* tokens = shared_at<const int>(smem, kOffsetTokens);
#pragma unroll
  for (int j = 0; j < kRowPairs; j++) {
    const int2 q = *(const int2*)own_rows(tokens, j, lane);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int limit = first_limit + (i & 1 ? q.y : q.x);
      if (token + (i & 2 ? 8 : 0) >= limit) s[4 * j + i] = -infinity();
    }
  }
}

// The maxima of the rows move: O and the sums are brought to the new ones. Rare but for the first
// pair of a fragment.
FMH_DEVICE void move_maxima(char* smem, const float (&s)[kAccumulators], RowSums& sums,
                            float (&o)[4][kAccumulators], int warp, int lane) {
  RowState* states = shared_at<RowState>(smem, kOffsetStates);
  float top[kOwnRows];
#pragma unroll
  for (int i = 0; i < kOwnRows; i++) {
    top[i] = fmaxf(s[(i >> 1) * 4 + (i & 1)], s[(i >> 1) * 4 + 2 + (i & 1)]);
  }
  gather_maxima(smem, top, warp, lane);
  const RowState* kept = own_rows(states, kept_pair(lane), lane);
  const float kept_before[2] = {kept[0].maximum, kept[1].maximum};
#pragma unroll
  for (int j = 0; j < kRowPairs; j++) {
    const float4 state = *(const float4*)own_rows(states, j, lane);
    const float scale[2] = {state.x, state.z}, before[2] = {state.y, state.w};
#pragma unroll
    for (int b = 0; b < 2; b++) {
      const float x = top[2 * j + b] * scale[b];
      const float after = x > before[b] ? x : before[b];
      const float factor = rescale_factor(before[b], after);
      top[2 * j + b] = after;
#pragma unroll
      for (int m = 0; m < 4; m++) {
        o[m][4 * j + b] *= factor;
        o[m][4 * j + 2 + b] *= factor;
      }
    }
  }
  math_barrier();  // all have read the old ones
  if (warp == 0 && lane < 4) {
#pragma unroll
    for (int j = 0; j < kRowPairs; j++) {
      RowState* at = own_rows(states, j, lane);
      at[0].maximum = top[2 * j];
      at[1].maximum = top[2 * j + 1];
    }
  }
  math_barrier();
#pragma unroll
  for (int b = 0; b < 2; b++) sums.kept[b] *= rescale_factor(kept_before[b], kept[b].maximum);
}

// Scores to weights. True where the maximum of a row may have to move: the weights of this thread
// then add up to more than fp16 should carry (or to NaN).
FMH_DEVICE bool exponentials(char* smem, const float (&s)[kAccumulators],
                             float (&w)[kAccumulators], float (&both)[kOwnRows], int lane) {
  const RowState* states = shared_at<const RowState>(smem, kOffsetStates);
  float total = 0;
#pragma unroll
  for (int j = 0; j < kRowPairs; j++) {
    const float4 state = *(const float4*)own_rows(states, j, lane);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const float x = s[4 * j + i];
      w[4 * j + i] = exp2_approx(i & 1 ? fmaf(x, state.z, -state.w) : fmaf(x, state.x, -state.y));
    }
    both[2 * j] = w[4 * j] + w[4 * j + 2];
    both[2 * j + 1] = w[4 * j + 1] + w[4 * j + 3];
    total += both[2 * j] + both[2 * j + 1];
  }
  return !(total <= kMostWeight);
}

// Weights to shared memory as [query rows][64 tokens].
FMH_DEVICE void store_weights(const float (&w)[kAccumulators], u32 tile, int warp_of_group,
                              int lane) {
  // Matrix l / 8 of four: rows 8 (j + l / 16), tokens 8 (l / 8 % 2) of the warp's 16.
  const u32 row = (lane >> 4) * 8 + (lane & 7), chunk = warp_of_group * 2 + (lane >> 3 & 1);
  const u32 address = tile + row * 128 + ((chunk ^ (row & 7)) << 4);
#pragma unroll
  for (int j = 0; j < kRowPairs; j += 2) {
    store_matrix_transposed_x4(address + j * 1024, pack_half(w[4 * j], w[4 * j + 1]),
                               pack_half(w[4 * j + 2], w[4 * j + 3]),
                               pack_half(w[4 * j + 4], w[4 * j + 5]),
                               pack_half(w[4 * j + 6], w[4 * j + 7]));
  }
}

}  // namespace fmh
