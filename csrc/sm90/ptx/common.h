// Types and warp helpers every other file uses. No toolkit header: NVRTC has none.
#pragma once

#define FMH_DEVICE __device__ __forceinline__

namespace fmh {

using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;

// The 128 bytes of a CUtensorMap, passed as a __grid_constant__ kernel argument.
struct __align__(64) TensorMap {
  unsigned char bytes[128];
};

constexpr u32 kAllLanes = 0xffffffffu;

FMH_DEVICE float infinity() { return __int_as_float(0x7f800000); }

FMH_DEVICE u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// A value all lanes of the warp hold, put into a uniform register: the compiler then emits one
// branch instead of divergent copies of what follows (half the code of the main loop).
FMH_DEVICE int uniform(int x) { return (int)__reduce_or_sync(kAllLanes, (unsigned)x); }

// a / b for 0 <= a < 2^20, b >= 1, exact: the quotient of a + 0.5 stays 0.5 / b away from every
// integer, which the error of the approximate division cannot reach. A fifth of the instructions
// of an integer division, on paths that run once with cold caches.
FMH_DEVICE int small_quotient(int a, int b) {
  float q;
  asm("div.approx.ftz.f32 %0, %1, %2;" : "=f"(q) : "f"((float)a + 0.5f), "f"((float)b));
  return (int)q;
}

FMH_DEVICE u32 shuffle_xor(u32 v, int mask) { return __shfl_xor_sync(kAllLanes, v, mask); }
FMH_DEVICE float shuffle_xor(float v, int mask) { return __shfl_xor_sync(kAllLanes, v, mask); }

FMH_DEVICE float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

FMH_DEVICE float log2_approx(float x) {
  float y;
  asm("lg2.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Two floats rounded to the element type, `low` in the low half.
FMH_DEVICE u32 pack(float low, float high) {
  u32 r;
#if FMH_FP16
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
#else
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
#endif
  return r;
}

// The same as fp16, whatever the element type.
FMH_DEVICE u32 pack_half(float low, float high) {
  u32 r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}

FMH_DEVICE float2 unpack_half(u32 pair) {
  float2 f;
  asm("{.reg .f16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h;}"
      : "=f"(f.x), "=f"(f.y)
      : "r"(pair));
  return f;
}

}  // namespace fmh
