// Partial results: what the epilogue writes of a fragment and the combine kernel reads.
//
// fp16 with a power of two for each half of a row: half the bytes of float32, which go through L2
// twice, for an error of 2^-11 where the result is rounded to 2^-9 (bf16). Columns lie in the order
// in which the accumulators hold them; the combine kernel puts them right once.
#pragma once
#include "sm90/core/shape.h"

namespace fmh {

// What a half of a row is multiplied by.
struct PartialScale {
  float store, load;  // what is stored is O times `store`; `load` is 1 / store

  // `norm` is the sum of the magnitudes, 1 to 256 times the largest: it is brought to [2^14, 2^15).
  // Where it is infinite or NaN, some columns are; the row's sum of weights serves the others.
  FMH_DEVICE PartialScale(float norm, float sum) {
    u32 exponent = __float_as_uint(norm) >> 23;  // biased
    if (exponent == 255) exponent = (__float_as_uint(sum) >> 23) + 14;
    exponent = max(exponent, 15u);  // both factors stay normal numbers
    store = __uint_as_float((268 - exponent) << 23);
    load = __uint_as_float((exponent - 14) << 23);
  }
};

// Sum of the magnitudes of row h in a half, over the quad. An addition takes half the issue slots
// of a maximum.
FMH_DEVICE float row_norm(const float (&o)[128], int h) {
  float a = 0, b = 0;
#pragma unroll
  for (int i = 0; i < 32; i++) {
    a += fabsf(o[4 * i + 2 * h]);
    b += fabsf(o[4 * i + 2 * h + 1]);
  }
  a += b;
  a += shuffle_xor(a, 1);
  return a + shuffle_xor(a, 2);
}

// Row h of a half as a partial result: every lane's own columns side by side, no exchange. Within
// 32 columns, place 8 q + 2 i + b holds column 8 i + 2 q + b (partial_column undoes it).
FMH_DEVICE void store_partial_row(u16* out, const float (&o)[128], int h, float factor, int lane,
                                  bool live) {
  if (!live) return;
  out += (lane & 3) * 8;
#pragma unroll
  for (int k = 0; k < 8; k++) {
    u32 x[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const float* e = o + (4 * k + i) * 4 + 2 * h;
      x[i] = pack_half(e[0] * factor, e[1] * factor);
    }
    *(uint4*)(out + k * 32) = make_uint4(x[0], x[1], x[2], x[3]);
  }
}

// The column at an even place of a partial row.
FMH_DEVICE int partial_column(int place) {
  return (place & ~31) | ((place & 6) << 2) | ((place & 24) >> 2);
}

// Four columns of a partial row.
FMH_DEVICE uint2 load4(const u16* p) { return __ldcg((const uint2*)p); }

FMH_DEVICE void add_scaled(float4& a, float f, uint2 x) {
  const float2 low = unpack_half(x.x), high = unpack_half(x.y);
  a.x += f * low.x;
  a.y += f * low.y;
  a.z += f * high.x;
  a.w += f * high.y;
}

}  // namespace fmh
