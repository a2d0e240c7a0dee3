// e4m3 to fp16, the type of the products: two instructions for two values, where bf16 takes five.
// fp16 holds every e4m3 value times a power of two from 2^-15 to 2^7 exactly; P is more exact in it
// than in bf16.
#pragma once
#include "sm90/ptx/copy.h"
#include "sm90/quantised/layout.h"

namespace fmh {

FMH_DEVICE u32 multiply_halves(u32 a, u32 b) {
  u32 r;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}

// Two floats as fp16, `low` in the low half.
FMH_DEVICE u32 halves(float low, float high) { return pack_half(low, high); }

// Four e4m3 values as two pairs.
FMH_DEVICE void expand(u32 x, u32& low, u32& high) {
  asm("{.reg .b16 l, h; mov.b32 {l, h}, %2; cvt.rn.f16x2.e4m3x2 %0, l; cvt.rn.f16x2.e4m3x2 %1, h;}"
      : "=r"(low), "=r"(high)
      : "r"(x));
}

// The same times a pair of scales (one for the tensor is left to the softmax and the epilogue).
FMH_DEVICE void expand_scaled(u32 x, u32 scale, u32& low, u32& high) {
  expand(x, low, high);
  if (!kPerTensor) low = multiply_halves(low, scale), high = multiply_halves(high, scale);
}

// A pair of bf16 as fp16.
FMH_DEVICE u32 half_of_bf16(u32 pair) {
  return halves(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
}

FMH_DEVICE u32 load_shared_u8(u32 address) {
  u32 r;
  asm volatile("ld.shared.u8 %0, [%1];" : "=r"(r) : "r"(address));
  return r;
}
FMH_DEVICE u32 load_shared_u32(u32 address) {
  u32 r;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(r) : "r"(address));
  return r;
}
FMH_DEVICE uint2 load_shared_8(u32 address) {
  uint2 r;
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(r.x), "=r"(r.y) : "r"(address));
  return r;
}
FMH_DEVICE void store_shared_16(u32 address, u32 a, u32 b, u32 c, u32 d) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(a), "r"(b), "r"(c),
               "r"(d)
               : "memory");
}

// ue8m0: an exponent byte.
FMH_DEVICE float power_of_byte(u32 exponent) { return __uint_as_float(exponent << 23); }

}  // namespace fmh
