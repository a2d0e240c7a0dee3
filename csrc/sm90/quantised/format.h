// The rows of a quantised cache, and how a row lies in a slot of the ring.
//
//   FMH_FORMAT           row in the cache                             scales
//   1 v32                512 e4m3, 4 float scales, 64 bf16            one per 128 columns
//   2 model1             448 e4m3, 64 bf16; 8 bytes a token apart     7 ue8m0, one per 64 columns
//   3 v32_no_rope        512 e4m3, 4 float scales                     one per 128 columns
//   4 fp8, d_qk 576      576 e4m3                                     one for the tensor
//   5 fp8, d_qk 512      512 e4m3                                     one for the tensor
//
// A row's distance to the next in shared memory is an odd number of 16-byte pieces: then neither
// the loads of K (rows side by side) nor those of V (rows two apart) meet in a bank.
#pragma once
#include "sm90/core/shape.h"

namespace fmh {

constexpr int kV32 = 1, kModel1 = 2, kV32NoRope = 3, kFp8Wide = 4, kFp8 = 5;
constexpr int kFormat = FMH_FORMAT;
static_assert(kFormat >= kV32 && kFormat <= kFp8, "five formats");

constexpr bool kPerTensor = kFormat == kFp8Wide || kFormat == kFp8;
constexpr bool kFloatScales = kFormat == kV32 || kFormat == kV32NoRope;
constexpr int kDimQK = kFormat == kV32 || kFormat == kFp8Wide ? 576 : 512;
constexpr int kColumnTiles = kDimQK / 64;

// Column tiles of Q by the order of their columns: "wide" ones interleave 128 columns of K, of
// which a thread loads 32 bytes; "narrow" ones 64. The last is bf16 where the row has a bf16 part.
constexpr int kWideTiles = kFormat == kModel1 ? 6 : 8;
constexpr bool kHalfPart = kFormat == kV32 || kFormat == kModel1;
constexpr int kNarrowTiles = kColumnTiles - kWideTiles;
constexpr int kQuantisedTiles = kColumnTiles - (kHalfPart ? 1 : 0);

constexpr int kRowBytes = kFormat == kV32         ? 656
                          : kFormat == kV32NoRope ? 528
                          : kFormat == kFp8       ? 512
                                                  : 576;  // of one copy
constexpr int kRowPitch = kFormat == kV32                               ? 656
                          : kFormat == kV32NoRope || kFormat == kFp8 ? 528
                                                                        : 592;
static_assert(kRowPitch / 16 % 2 == 1 && kRowPitch % 16 == 0, "no bank conflicts");
constexpr int kScaleOffset = kFormat == kModel1 ? 576 : 512;  // in a row of shared memory
constexpr int kHalfOffset = kFormat == kModel1 ? 448 : 528;   // the bf16 part

}  // namespace fmh
