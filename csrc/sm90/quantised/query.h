// Q of a tile: read once for a fragment, brought to fp16 and into the order of the products.
//
// A row is multiplied by the power of two that brings its largest value to [2^8, 2^9); its scores
// are divided by it again in the softmax. So no value overflows, and none that counts is lost. The
// tile that meets the bf16 part of the cache stays bf16.
#pragma once
#include "sm90/core/tile.h"
#include "sm90/ptx/fence.h"
#include "sm90/ptx/named_barrier.h"
#include "sm90/quantised/convert.h"
#include "sm90/quantised/params.h"

namespace fmh {

FMH_DEVICE float2 floats_of(u32 pair) {
#if FMH_FP16
  return unpack_half(pair);
#else
  return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
#endif
}

FMH_DEVICE u32 bf16_pair(float low, float high) {
  u32 r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}

// Sixteen lanes hold a row: `wide` are 4 x 8 columns of one tile of the wide order, `narrow` eight
// columns of a narrow tile.
struct QueryPiece {
  uint4 wide[4];
  u32 narrow[4];

  // Lane l of 16: tile l / 2, chunks 4 (l % 2) to + 3 of it; narrow tile l / 8, chunk l % 8.
  FMH_DEVICE void load(const u16* row, int l) {
    const int tile = l >> 1;
    const u16* from = row + (tile >> 1) * 128 + (tile & 1) * 16 + (l & 1) * 8;
#pragma unroll
    for (int t = 0; t < 4; t++) {
      wide[t] = make_uint4(0, 0, 0, 0);
      if (row != nullptr && tile < kWideTiles) wide[t] = *(const uint4*)(from + t * 32);
      narrow[t] = 0;
      if (row != nullptr && (l >> 3) < kNarrowTiles) {
        narrow[t] = *(const u32*)(row + kWideTiles * 64 + (l >> 3) * 64 + t * 16 + (l & 7) * 2);
      }
    }
  }

  FMH_DEVICE float largest() const {
    float top = 0;
    const auto take = [&](u32 pair) {
      const float2 f = floats_of(pair);
      top = fmaxf(top, fmaxf(fabsf(f.x), fabsf(f.y)));
    };
#pragma unroll
    for (int t = 0; t < 4; t++) {
      take(wide[t].x), take(wide[t].y), take(wide[t].z), take(wide[t].w);
      take(narrow[t]);
    }
#pragma unroll
    for (int o = 1; o < 16; o <<= 1) top = fmaxf(top, shuffle_xor(top, o));
    return top;
  }

  FMH_DEVICE void store(int row, int l, float factor) const {
    const auto half = [&](u32 pair) {
      const float2 f = floats_of(pair);
      return halves(f.x * factor, f.y * factor);
    };
    const auto put = [&](int tile, int chunk, u32 a, u32 b, u32 c, u32 d) {
      const u32 at = kSharedBase + kOffsetQ + tile * kTileBytes + row * 128;
      store_shared_16(at + ((chunk ^ (row & 7)) << 4), a, b, c, d);
    };
    if ((l >> 1) < kWideTiles) {
      const int tile = l >> 1, chunk = (l & 1) * 4;
      put(tile, chunk, half(wide[0].x), half(wide[1].x), half(wide[2].x), half(wide[3].x));
      put(tile, chunk + 1, half(wide[0].y), half(wide[1].y), half(wide[2].y), half(wide[3].y));
      put(tile, chunk + 2, half(wide[0].z), half(wide[1].z), half(wide[2].z), half(wide[3].z));
      put(tile, chunk + 3, half(wide[0].w), half(wide[1].w), half(wide[2].w), half(wide[3].w));
    }
    if ((l >> 3) < kNarrowTiles) {
      const int tile = kWideTiles + (l >> 3);
      u32 x[4];
#pragma unroll
      for (int t = 0; t < 4; t++) {
        const float2 f = floats_of(narrow[t]);
        x[t] = kHalfPart && tile == kColumnTiles - 1 ? bf16_pair(f.x * factor, f.y * factor)
                                                     : halves(f.x * factor, f.y * factor);
      }
      put(tile, l & 7, x[0], x[1], x[2], x[3]);
    }
  }
};

// The exponent a row is divided by: 2^8 over the largest power of two not above `top`.
FMH_DEVICE float row_factor(float top) {
  const u32 exponent = __float_as_uint(top) >> 23;  // biased; 0 for zeros and denormals
  if (exponent == 0 || exponent == 255) return 1.f;  // inf and NaN stay what they are
  return __uint_as_float(min(262u - exponent, 254u) << 23);
}

FMH_DEVICE float inverse_power(float power) {
  return __uint_as_float((254u << 23) - __float_as_uint(power));
}

// Pulls the rows of a tile into L2, by the producer's threads: it is at a fragment's start before
// the math groups are.
FMH_DEVICE void prefetch_query(const MlaParams& p, const QuantisedParams& x, const Tile& tile,
                               int request, int thread) {
  constexpr int kLines = kDimQK / 64;
#pragma unroll 1
  for (int i = thread; i < tile.live * kLines; i += kGroupThreads) {
    const int row = i / kLines;
    const RowPlace place(p, tile, row);
    const QueryToken at(p, request, place.token);
    line_prefetch((const u16*)x.q + at.row * x.q_stride_batch + at.token * x.q_stride_token +
                  place.head * x.q_stride_head + (i - row * kLines) * 64);
  }
}

// All math threads; ends with a barrier of theirs. `scale_log2` includes the scales of a tensor.
FMH_DEVICE void load_query(char* smem, const MlaParams& p, const QuantisedParams& x,
                           const Tile& tile, int request, float scale_log2) {
  const int thread = threadIdx.x, l = thread & 15;
  RowState* states = shared_at<RowState>(smem, kOffsetStates);
  int* tokens = shared_at<int>(smem, kOffsetTokens);
  // Row after row, the next one's loads ahead: the code of one row is all that has to be fetched.
  const auto find = [&](int row, int& token) {
    token = 0;
    const u16* from = nullptr;
    if (row < tile.live) {
      const RowPlace place(p, tile, row);
      const QueryToken at(p, request, place.token);
      from = (const u16*)x.q + at.row * x.q_stride_batch + at.token * x.q_stride_token +
             place.head * x.q_stride_head;
      token = place.token;
    }
    return from;
  };
  QueryPiece next;
  int next_token;
  next.load(find(thread >> 4, next_token), l);
#pragma unroll 1
  for (int row = thread >> 4; row < kRows; row += kMathThreads / 16) {
    const QueryPiece piece = next;
    const int token = next_token;
    if (kRows > 16) next.load(find(row + 16, next_token), l);
    const float factor = row_factor(piece.largest());
    piece.store(row, l, factor);
    if (l == 0) {
      states[row] = RowState{scale_log2 * inverse_power(factor), kNoMax};
      tokens[row] = token;
    }
  }
  proxy_fence();
  named_sync<kMathBarrier, kMathThreads>();
}

}  // namespace fmh
