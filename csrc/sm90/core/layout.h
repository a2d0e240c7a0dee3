// Shared memory and barriers of the attention kernels: the one table of who lives where.
//
//   offset (d_qk 576)   bytes   what
//        0             73,728   Q: d_qk/64 column tiles of [64 rows][128 B], 128-byte swizzle
//   73,728             73,728   K0: the same shape, 64 tokens; its first 8 tiles are also V0
//  147,456             73,728   K1
//  221,184              8,192   P1: softmax weights of the odd block, one swizzled tile
//  229,376              2,368   barriers, row maxima, row sums, schedule (lists: 2,816, with the
//                               rows' largest logits where the schedule has been)
//
// P0, the weights of the even block, overlays K0's rope tile, which nothing reads after Q*K0.
// With d_qk 512 there is no rope tile and P0 has 8,192 bytes of its own behind K1.
#pragma once
#include "sm90/core/shape.h"

namespace fmh {

constexpr int kDimQK = FMH_D_QK;
static_assert(kDimQK == 576 || kDimQK == 512, "two head dims are laid out here");

constexpr int kColumnTiles = kDimQK / 64;
constexpr int kLeftTiles = 4;  // tiles of V's left half; also the first copy of a block
constexpr int kRightTiles = kColumnTiles - kLeftTiles;

// Dynamic shared memory starts here on sm_90 when a kernel has no static shared memory (checked
// at entry). As a constant it lets the compiler fold every wgmma descriptor; as a variable it
// cost eleven instructions per product.
constexpr u32 kSharedBase = 1024;

constexpr u32 kTileBytes = 8192;
constexpr u32 kBlockBytes = kColumnTiles * kTileBytes;
constexpr u32 kOffsetQ = 0;
constexpr u32 kOffsetK0 = kOffsetQ + kBlockBytes;
constexpr u32 kOffsetK1 = kOffsetK0 + kBlockBytes;
constexpr u32 kOffsetP1 = kOffsetK1 + kBlockBytes + (kDimQK == 512 ? kTileBytes : 0);
constexpr u32 kOffsetP0 = kDimQK == 512 ? kOffsetP1 - kTileBytes : kOffsetK0 + 8 * kTileBytes;
constexpr u32 kOffsetMisc = kOffsetP1 + kTileBytes;

constexpr u32 kOffsetBarriers = kOffsetMisc;         // 10 mbarriers
constexpr u32 kOffsetMax0 = kOffsetMisc + 128;       // float[64], written by group 0
constexpr u32 kOffsetMax1 = kOffsetMax0 + 256;       // float[64], written by group 1
constexpr u32 kOffsetSums = kOffsetMax1 + 256;       // float[2 parities][2 groups][64]
constexpr u32 kOffsetSchedule = kOffsetSums + 1024;  // ScheduleResult
constexpr u32 kOffsetScan = kOffsetSchedule + 64;    // int[12], one per warp
constexpr u32 kOffsetPartLoad = kOffsetScan + 64;    // int[kMaxParts], while scheduling
constexpr u32 kOffsetPeaks = kOffsetPartLoad;        // lists: float[2 parities][2 groups][64]
constexpr u32 kOffsetValid = kOffsetBarriers + 96;   // lists: u64[2], a bit for each token of K0, K1
constexpr u32 kSharedBytes = kOffsetPartLoad + (kLists ? 1024 : 4 * kMaxParts);

static_assert(kOffsetP0 % 1024 == 0 && kOffsetP1 % 1024 == 0, "swizzled tiles are 1024-aligned");
static_assert(kOffsetK0 % 1024 == 0 && kOffsetK1 % 1024 == 0, "swizzled tiles are 1024-aligned");
static_assert(kSharedBytes - kOffsetMisc == (kLists ? 2816 : 2368), "the table above, csrc/README.md");
static_assert(kSharedBytes <= 232448, "a block may use 227 KB");

// Halves of the two K buffers, in the order in which they are filled and released.
enum Half { kK0Left = 0, kK0Right = 1, kK1Left = 2, kK1Right = 3 };

FMH_DEVICE constexpr u32 full_barrier(int half) { return kSharedBase + kOffsetBarriers + 8 * half; }
FMH_DEVICE constexpr u32 empty_barrier(int half) { return full_barrier(4 + half); }
constexpr u32 kQFull = kSharedBase + kOffsetBarriers + 64;
constexpr u32 kQEmpty = kSharedBase + kOffsetBarriers + 72;

// Arrivals that free a half: one lane of each warp of every group that reads it.
//   K0Left  group 0 (QK0, PV0 left)              K0Right  group 0 (QK0) and group 1 (PV0 right)
//   K1Left  group 1 (QK1) and group 0 (PV1 left)  K1Right  group 1 (QK1, PV1 right)
FMH_DEVICE constexpr int empty_arrivals(int half) {
  return half == kK0Left || half == kK1Right ? 4 : 8;
}

// Named barriers; 0 is __syncthreads.
constexpr int kP0Ready = 1;
constexpr int kP1Ready = 2;
constexpr int kSumsFrom0 = 3;
constexpr int kGroup0 = 4;
constexpr int kGroup1 = 5;
constexpr int kSumsFrom1 = 6;

template <typename T>
FMH_DEVICE T* shared_at(char* smem, u32 offset) {
  return (T*)(smem + offset);
}

}  // namespace fmh
